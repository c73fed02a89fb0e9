package postgres

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

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
