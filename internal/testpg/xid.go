package testpg

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hawser/hawser/internal/postgres"
)

// SetNextXID makes the cluster as old as one that has used up all transaction ids before
// next: in steps over each of which all rows are frozen, as vacuum does in time. The
// test is skipped where pg_resetwal is missing.
func (c *Cluster) SetNextXID(t testing.TB, next uint32) {
	t.Helper()
	program := filepath.Join(c.config.BinDir, "pg_resetwal")
	if c.config.BinDir == "" {
		var err error
		if program, err = postgres.Tool("pg_resetwal", 0); err != nil {
			t.Skip(err)
		}
	}
	if _, err := os.Stat(program); err != nil {
		t.Skip(err)
	}
	c.Exec(t, "postgres", `ALTER DATABASE template0 ALLOW_CONNECTIONS true`)
	const step = 1 << 30 // an id is older than another when it is less than 2^31 behind
	for at := uint64(step); ; at += step {
		for _, database := range Rows(t, c.Connect(t, "postgres"), `SELECT datname FROM pg_database`) {
			c.Exec(t, database, `VACUUM FREEZE`)
		}
		at = min(at, uint64(next))
		c.resetXID(t, program, uint32(at))
		if at == uint64(next) {
			break
		}
	}
	c.Exec(t, "postgres", `ALTER DATABASE template0 ALLOW_CONNECTIONS false`)
}

func (c *Cluster) resetXID(t testing.TB, program string, next uint32) {
	t.Helper()
	c.Stop(t)
	owner := ownerOf(t, c.data)
	// The state of 2^20 transactions is in a file of 256 kB.
	segment := filepath.Join(c.data, "pg_xact", fmt.Sprintf("%04X", next>>20))
	err := os.WriteFile(segment, make([]byte, 256<<10), 0o600)
	if err == nil {
		err = os.Chown(segment, int(owner.Uid), int(owner.Gid))
	}
	if err != nil {
		t.Fatalf("set the next transaction id: %v", err)
	}
	cmd := Command(t, program, "--next-transaction-id="+fmt.Sprint(next), "--pgdata="+c.data)
	cmd.Dir = c.data
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pg_resetwal: %v\n%s", err, out)
	}
	c.Start(t)
}
