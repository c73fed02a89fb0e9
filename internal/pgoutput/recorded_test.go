package pgoutput_test

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// recorded returns the messages of every recorded stream by its file's name.
func recorded(t testing.TB) map[string][][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "postgresql-*", "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no recorded streams: %v", err)
	}
	out := map[string][][]byte{}
	for _, name := range files {
		out[name] = load(t, name)
	}
	return out
}

// load reads what save wrote.
func load(t testing.TB, name string) [][]byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out [][]byte
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		m, err := strconv.Unquote(lines.Text())
		if err != nil {
			t.Fatalf("%s: %q: %v", name, lines.Text(), err)
		}
		out = append(out, []byte(m))
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRecorded tells the streams that servers of every version sent, so that one
// version at hand is enough to test them all.
func TestRecorded(t *testing.T) {
	t.Parallel()
	for name, messages := range recorded(t) {
		major, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(name)), "postgresql-"))
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strconv.Itoa(major)+"/"+filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			equal(t, withoutChoices(tell(t, messages)), expected(t, strings.TrimSuffix(filepath.Base(name), ".txt"), major))
		})
	}
}

func expected(t *testing.T, name string, major int) []string {
	t.Helper()
	if name == "stream" {
		return streamed(major)
	}
	for _, s := range scenarios {
		if s.name == name {
			return s.want
		}
	}
	t.Fatalf("no scenario is called %s", name)
	return nil
}
