package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// binPatterns are the usual places of PostgreSQL's programs.
var binPatterns = []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin"}

// Tool returns the program of PostgreSQL of that name, at minMajor or above: the newest
// in HAWSER_PG_BIN (a list of directories), then in the usual directories, then in PATH.
func Tool(name string, minMajor int) (path string, err error) {
	path = findTool(name, func(major int) bool { return major >= minMajor })
	if path == "" {
		return "", problem.New("tool-missing", "program "+name,
			fmt.Sprintf("no %s of PostgreSQL %d or later was found", name, minMajor),
			fmt.Sprintf("apt-get install postgresql-%d", minMajor)).Advise("or set HAWSER_PG_BIN to the directory of its programs")
	}
	return path, nil
}

// findTool returns the newest program that fits, or "". PATH comes last: what Debian has
// there is a script that takes longer to tell its version than some of the programs to do
// their work.
func findTool(name string, fits func(major int) bool) string {
	var usual []string
	for _, pattern := range binPatterns {
		found, err := filepath.Glob(pattern)
		if err == nil { // the patterns are well-formed
			usual = append(usual, found...)
		}
	}
	for _, dirs := range [][]string{filepath.SplitList(os.Getenv("HAWSER_PG_BIN")), usual, filepath.SplitList(os.Getenv("PATH"))} {
		if path := newest(name, dirs, fits); path != "" {
			return path
		}
	}
	return ""
}

func newest(name string, dirs []string, fits func(major int) bool) string {
	var best string
	var bestMajor int
	for _, dir := range dirs {
		if !filepath.IsAbs(dir) {
			continue // what runs may not depend on where the agent was started
		}
		v, err := toolVersion(filepath.Join(dir, name))
		if err == nil && fits(v.major) && v.major > bestMajor {
			best, bestMajor = filepath.Join(dir, name), v.major
		}
	}
	return best
}

type version struct {
	major int
	text  string
}

var versionOutput = regexp.MustCompile(`\(PostgreSQL\) ((\d+)\S*)`)

// toolVersion asks a program for its version: "pg_dump (PostgreSQL) 15.18 (Debian …)".
func toolVersion(path string) (version, error) {
	if info, err := os.Stat(path); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
		return version{}, fmt.Errorf("%s is no program", path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return version{}, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	m := versionOutput.FindSubmatch(out)
	if m == nil {
		return version{}, fmt.Errorf("%s is not of PostgreSQL: it says %.80q", path, out)
	}
	major, err := strconv.Atoi(string(m[2]))
	if err != nil {
		return version{}, fmt.Errorf("version of %s: %w", path, err)
	}
	return version{major: major, text: string(m[1])}, nil
}
