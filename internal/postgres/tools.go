package postgres

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/hawser/hawser/internal/problem"
)

// binPatterns are the usual places of PostgreSQL's programs.
var binPatterns = []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin"}

var versionText = regexp.MustCompile(`(\d+)(?:\.\d+)?`)

// Tool returns the newest program of PostgreSQL of that name, at minMajor or
// above, among HAWSER_PG_BIN (which alone counts when set), the usual directories and PATH.
func Tool(name string, minMajor int) (string, error) {
	var best string
	var bestMajor int
	for _, dir := range binDirs() {
		path := filepath.Join(dir, name)
		major, err := toolMajor(path)
		if err == nil && major >= minMajor && major > bestMajor {
			best, bestMajor = path, major
		}
	}
	if best == "" {
		return "", problem.New("tool-missing", "program "+name,
			fmt.Sprintf("no %s of PostgreSQL %d or later was found", name, minMajor),
			fmt.Sprintf("apt-get install postgresql-%d postgresql-client-%d, or set HAWSER_PG_BIN to its directory", minMajor, minMajor))
	}
	return best, nil
}

func binDirs() []string {
	if dir := os.Getenv("HAWSER_PG_BIN"); dir != "" {
		return []string{dir}
	}
	var dirs []string
	for _, pattern := range binPatterns {
		found, err := filepath.Glob(pattern)
		if err == nil {
			dirs = append(dirs, found...)
		}
	}
	return append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
}

// toolMajor asks a program for its version: "pg_dump (PostgreSQL) 15.18 (Debian …)".
func toolMajor(path string) (int, error) {
	if info, err := os.Stat(path); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
		return 0, fmt.Errorf("%s is no program", path)
	}
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	m := versionText.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("%s does not tell its version", path)
	}
	return strconv.Atoi(string(m[1]))
}
