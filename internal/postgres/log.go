package postgres

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/hawser/hawser/internal/problem"
)

// startLog is what the server writes before its log collector is there, and all
// that it writes when there is none. It begins anew with each start.
const startLog = "hawser-start.log"

// logTail bounds what is read of a log.
const logTail = 32 << 10

// logMark is where the collector's log stood before a start.
type logMark struct {
	name string
	size int64
}

func (c *Cluster) markLog() logMark {
	name := c.currentLog()
	info, err := os.Stat(filepath.Join(c.cfg.DataDir, name))
	if name == "" || err != nil {
		return logMark{}
	}
	return logMark{name: name, size: info.Size()}
}

// currentLog is the collector's file relative to the data directory, "" when there
// is none.
func (c *Cluster) currentLog() string {
	data, err := os.ReadFile(filepath.Join(c.cfg.DataDir, "current_logfiles"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "stderr "); ok && filepath.IsLocal(name) {
			return name
		}
	}
	return ""
}

// logSince is all that the server wrote since the mark, its end when it is long.
func (c *Cluster) logSince(before logMark) string {
	root, err := os.OpenRoot(c.cfg.DataDir)
	if err != nil {
		return ""
	}
	defer root.Close()
	text := readTail(root, startLog, 0)
	name := c.currentLog()
	if name == "" {
		return text
	}
	from := int64(0)
	if name == before.name {
		from = before.size
	}
	return text + readTail(root, name, from)
}

func readTail(root *os.Root, name string, from int64) string {
	f, err := root.Open(path.Clean(name))
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	if info.Size() < from { // it was begun anew
		from = 0
	}
	from = max(from, info.Size()-logTail)
	buf := make([]byte, info.Size()-from)
	n, err := f.ReadAt(buf, from)
	if err != nil && n == 0 {
		return ""
	}
	return string(buf[:n])
}

// startFailed explains a server that ended before it was ready.
func (c *Cluster) startFailed(before logMark, p *child) error {
	text := c.logSince(before)
	c.cfg.Log.Error("PostgreSQL did not start", "ended", p.err, "log", text)
	if err := c.checkPort(); err != nil {
		return err // somebody took it in the meantime
	}
	where := filepath.Join(c.cfg.DataDir, startLog)
	if name := c.currentLog(); name != "" {
		where = filepath.Join(c.cfg.DataDir, name)
	}
	failed := problem.New("start-failed", "cluster "+c.cfg.DataDir, "PostgreSQL did not start: "+salient(text), "tail "+problem.Word(where)).Advise("mend what its log names").Retry()
	if p.err != nil {
		return failed.Because(fmt.Errorf("%w: %w", errEnded, p.err))
	}
	return failed.Because(errEnded)
}

// severity finds the lines that tell why. Before "configuration file contains
// errors" the errors themselves are of severity LOG.
var severity = regexp.MustCompile(`(FATAL|PANIC|ERROR|DETAIL|HINT|error|initdb: error):  ?|LOG:  (invalid|unrecognized|parameter "|syntax error|could not|.* outside the valid range)`)

// salient picks from a log what tells why a program ended; from one in another
// language, its end.
func salient(text string) string {
	var lines, last []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		last = append(last, line)
		if at := severity.FindStringIndex(line); at != nil && !strings.Contains(line, "Future log output") {
			lines = append(lines, line[at[0]:])
		}
	}
	if len(lines) == 0 {
		lines = last
	}
	if len(lines) == 0 {
		return "it wrote nothing"
	}
	return strings.Join(lines[max(0, len(lines)-4):], "; ")
}
