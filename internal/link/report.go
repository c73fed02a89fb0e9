package link

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// Beside a report lies what it holds in short, so that the link can name it for as long as
// the report is there: also when this side has rejoined, and after a restart of the agent.

// reportSummary is that.
type reportSummary struct {
	Link         string    `json:"link_id"` // an earlier link may have had the name
	Transactions int       `json:"transactions"`
	Changes      int       `json:"changes"`
	States       int       `json:"states,omitempty"`
	First        time.Time `json:"first,omitzero"` // commits, by this server's clock
	Last         time.Time `json:"last,omitzero"`
}

const summaryEnd = ".json"

func summaryPath(report string) string { return strings.TrimSuffix(report, reportEnd) + summaryEnd }

// summarize writes the summary of a report that is written.
func (l *link) summarize(path string, sum tailSum) error {
	data, err := json.Marshal(reportSummary{l.rec.ID, sum.transactions, sum.changes, sum.states, sum.first, sum.latest})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.new")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), summaryPath(path))
}

// findReports reads which reports of this link are there.
func (l *link) findReports() {
	found := map[string]reportSummary{}                                                                   // by the report's path
	paths, _ := filepath.Glob(filepath.Join(l.m.cfg.StateDir, "reports", l.rec.Name+"-term*"+summaryEnd)) // a link's name has no special letter
	for _, path := range paths {
		report := strings.TrimSuffix(path, summaryEnd) + reportEnd
		if _, err := os.Stat(report); errors.Is(err, fs.ErrNotExist) { // it was dealt with
			_ = os.Remove(path)
			continue
		}
		var s reportSummary
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, &s)
		}
		switch {
		case err != nil:
			l.log.Warn("can't read what a report holds", "path", path, "error", err)
		case s.Link == l.rec.ID:
			found[report] = s
		}
	}
	l.update(func() { l.reports = found })
}

// reportNotes name the reports of transactions that were given up. The caller holds mu.
func (l *link) reportNotes() (notes problem.Findings) {
	if l.side.Phase == role.Diverged || l.side.Phase == role.Expelled { // its cause tells
		return nil
	}
	for path, s := range l.reports {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || s.Transactions+s.States == 0 {
			continue
		}
		notes = append(notes, problem.Noted("report-kept", "file "+path, s.words()+". This side gave them up when it rejoined").
			Advise("do again on the primary what of them is needed; this is said until the file is moved or removed"))
	}
	return notes
}

func (s reportSummary) words() string {
	out := fmt.Sprintf("transactions that the other side never received: %d, with %d changes", s.Transactions, s.Changes)
	if s.Transactions > 0 {
		out += ", committed from " + s.First.UTC().Format(time.DateTime) + " to " + s.Last.UTC().Format(time.DateTime) + " UTC"
	}
	if s.States > 0 {
		out += fmt.Sprintf("; and owners, settings or privileges: %d", s.States)
	}
	return out
}
