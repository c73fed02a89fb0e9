package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/problem"
)

// TestPasswordFileOfEverybody: one that others can read is passed over, as libpq does.
func TestPasswordFileOfEverybody(t *testing.T) {
	t.Setenv("PGPASSWORD", "")
	file := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(file, []byte("*:*:*:app:hunter2\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	text := "host=127.0.0.1 user=app passfile=" + file
	s, err := Open(text)
	if err != nil {
		t.Fatal(err)
	}
	r := &refusal{server: s, config: &s.config.Config, pg: &pgconn.PgError{Code: "28P01"}}
	if p := r.problem(); s.config.Password != "" || p.Code != "password-missing" || p.Remedy != "chmod 600 "+problem.Word(file) {
		t.Errorf("password %q, %v", s.config.Password, p)
	}
	for _, given := range []string{text + " password=other", "postgresql://app:other@127.0.0.1,127.0.0.2/x?passfile=" + file} {
		if s, err := Open(given); err != nil || s.config.Password != "other" {
			t.Errorf("%s: %v", given, err)
		}
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if s.fresh().Password != "hunter2" {
		t.Error("the file is not read when it is its owner's alone")
	}
}

func TestRefusedPasswordOfTheEnvironment(t *testing.T) {
	t.Setenv("PGPASSWORD", "hunter2")
	s, err := Open("host=127.0.0.1 user=by_password passfile=/nonexistent/pass")
	if err != nil {
		t.Fatal(err)
	}
	r := &refusal{server: s, config: &s.config.Config, pg: &pgconn.PgError{Code: "28P01"}}
	p := r.problem()
	if p.Code != "password-wrong" || !strings.Contains(p.Advice, "PGPASSWORD") || strings.Contains(p.Error(), "hunter2") {
		t.Errorf("got %s: %v, advice %q", p.Code, p, p.Advice)
	}
}
