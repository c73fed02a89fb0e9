package agent_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/testpg"
)

// disk is a small file system of its own in place of a directory.
type disk struct {
	dir  string
	fill string
}

// ownDisk puts a directory, with what is in it, on a disk of its own of some MiB.
// Nothing may use the directory meanwhile.
func ownDisk(t *testing.T, dir string, size int) *disk {
	t.Helper()
	was, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	aside := t.TempDir()
	run := func(name string, args ...string) {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	run("cp", "-a", dir+"/.", aside)
	owner := was.Sys().(*syscall.Stat_t)
	options := fmt.Sprintf("size=%dm,mode=%o,uid=%d,gid=%d", size, was.Mode().Perm(), owner.Uid, owner.Gid)
	if err := syscall.Mount("hawser-test", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("a small disk can't be mounted here, which takes root: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	run("cp", "-a", aside+"/.", dir)
	return &disk{dir: dir, fill: filepath.Join(dir, "filler")}
}

// full leaves no room; room takes that back.
func (d *disk) full(t *testing.T) {
	t.Helper()
	f, err := os.Create(d.fill)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for err == nil {
		_, err = f.Write(block)
	}
	if !strings.Contains(err.Error(), "no space") {
		t.Fatal(err)
	}
}

func (d *disk) room(t *testing.T) {
	t.Helper()
	if err := os.Remove(d.fill); err != nil {
		t.Fatal(err)
	}
}

// clusterDisk puts a part of a cluster's data on a disk of its own.
func clusterDisk(t *testing.T, i *instance, part string, size int) *disk {
	t.Helper()
	i.Stop(t)
	d := ownDisk(t, filepath.Join(i.DataDir(), part), size)
	i.Start(t)
	return d
}

// awaitWords waits until a link that stands tells what it stands for.
func awaitWords(t *testing.T, i *instance, words ...string) {
	t.Helper()
	testpg.Eventually(t, 40*time.Second, fmt.Sprintf("the link on %s tells of %q", i.name, words), func() (bool, error) {
		l, err := i.Link(context.Background(), "shop")
		if err != nil || l.Cause == nil {
			return false, err
		}
		text := l.Cause.Cause + " " + l.Cause.Help()
		for _, w := range words {
			if !strings.Contains(text, w) {
				return false, fmt.Errorf("it is %s: %+v", l.State, l.Cause)
			}
		}
		t.Logf("%s: %s (remedy: %s)", l.State, l.Cause.Cause, l.Cause.Remedy)
		return true, nil
	})
}

const megabytes = `INSERT INTO t SELECT i, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 30) WHERE i > 0) FROM generate_series(%d, %d) i`

// TestReplicaDiskFull: the replica's disk is full, while its tables are copied and
// while changes stream; with room it goes on by itself.
func TestReplicaDiskFull(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	base := clusterDisk(t, b, "base", 128)
	a.Exec(t, "postgres", `CREATE DATABASE shop`)
	a.Exec(t, "shop", `CREATE TABLE t (id int PRIMARY KEY, v text)`, fmt.Sprintf(megabytes, 1, 20000))
	b.Exec(t, "postgres", `CREATE DATABASE room`)
	created := make(chan error, 1)
	hog := base.dir + "/hog"
	if err := os.WriteFile(hog, make([]byte, 85<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := a.CreateLink(context.Background(), api.LinkSpec{Name: "shop", Database: "shop", Peer: "beta", Role: api.RolePrimary})
		created <- err
	}()
	if err := testpg.Await(t, "the link's creation is answered", created); err != nil {
		t.Fatal(err)
	}
	awaitWords(t, b, "No space left on device", "free space")
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")

	base.full(t)
	a.Exec(t, "shop", fmt.Sprintf(megabytes, 30001, 32000))
	awaitWords(t, b, "No space left on device", "free space")
	a.Exec(t, "shop", `UPDATE t SET v = 'short' WHERE id % 10 = 0`)
	base.room(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}

// TestWALDiskFull: no room for WAL takes PostgreSQL down, on either side. The link goes
// on when it is up again.
func TestWALDiskFull(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"primary", "replica"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			i := map[string]*instance{"primary": a, "replica": b}[side]
			wal := clusterDisk(t, i, "pg_wal", 160)
			link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
			b.awaitState(t, "shop", api.StateSynchronized)
			wal.full(t)
			n := 0
			testpg.Eventually(t, testpg.Patience, "PostgreSQL goes down without room for WAL", func() (bool, error) {
				if !i.answers(t) {
					return true, nil
				}
				n++
				return false, try(t, a, fmt.Sprintf(megabytes, n*2000-1999, n*2000))
			})
			b.awaitState(t, "shop", api.StateDisconnected)
			wal.room(t)
			i.restartCrashed(t)
			b.awaitState(t, "shop", api.StateSynchronized)
			equal(t, a, b, "shop")
			a.Exec(t, "shop", `DELETE FROM t WHERE id % 2 = 0`)
			equal(t, a, b, "shop")
		})
	}
}

func (i *instance) answers(t *testing.T) bool {
	t.Helper()
	err := try(t, i, `SELECT 1`)
	return err == nil || !strings.Contains(err.Error(), "connect")
}

// restartCrashed starts a server that went down by itself.
func (i *instance) restartCrashed(t *testing.T) {
	t.Helper()
	testpg.Eventually(t, 20*time.Second, "PostgreSQL is down or up", func() (bool, error) {
		if i.answers(t) {
			return true, nil
		}
		_, err := os.Stat(filepath.Join(i.DataDir(), "postmaster.pid"))
		return os.IsNotExist(err), nil
	})
	if !i.answers(t) {
		i.Start(t)
	}
}

// TestSpoolDiskFull: a transaction that is larger than memory has no room on the
// disk of the replica's agent.
func TestSpoolDiskFull(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.Exec(t, "postgres", `ALTER SYSTEM SET logical_decoding_work_mem = '64kB'`, `SELECT pg_reload_conf()`)
	spool := filepath.Join(b.dir, "spool")
	if err := os.MkdirAll(spool, 0o700); err != nil {
		t.Fatal(err)
	}
	d := ownDisk(t, spool, 4)
	link(t, a, b, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	b.awaitState(t, "shop", api.StateSynchronized)
	d.full(t)
	a.Exec(t, "shop", fmt.Sprintf(megabytes, 1, 1500), `INSERT INTO t VALUES (100000, 'small')`)
	awaitWords(t, b, "no space left on device", "state_dir")
	d.room(t)
	b.awaitState(t, "shop", api.StateSynchronized)
	equal(t, a, b, "shop")
}
