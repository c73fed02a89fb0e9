package apply

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hawser/hawser/internal/pgoutput"
	"github.com/hawser/hawser/internal/problem"
)

// spool keeps on disk the changes of one transaction that is streamed before its
// commit, so that memory does not depend on a transaction's size. It holds
// nothing that must survive: after a restart the primary sends the transaction
// again. Each entry is a length (4 bytes, big-endian) and the record.
type spool struct {
	file *os.File
	w    *bufio.Writer
	size int64
	subs []subtransaction // in the order of their first change

	// Definitions of relations: if an aborted subtransaction takes one away with
	// it, the server does not send it again.
	defined []definition
}

type subtransaction struct {
	xid uint32
	at  int64 // offset of its first change
}

type definition struct {
	at      int64
	payload []byte
}

const spoolSuffix = ".spool"

func newSpool(dir string, xid uint32) (*spool, error) {
	f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("%d%s", xid, spoolSuffix)), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, spoolProblem(dir, err)
	}
	return &spool{file: f, w: bufio.NewWriterSize(f, 64<<10)}, nil
}

func spoolProblem(path string, err error) error {
	return problem.New("spool-failed", "spool "+path,
		"a transaction that is larger than memory can't be kept on the agent's disk",
		"").Advise("free space there, or set state_dir to a larger disk; the link goes on by itself").Retry().Because(err)
}

// clearSpools removes what an earlier applier left.
func clearSpools(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return spoolProblem(dir, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return spoolProblem(dir, err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), spoolSuffix) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return spoolProblem(dir, err)
		}
	}
	return nil
}

// add appends a message of the stream, as it was sent; by is the transaction, top-level or
// not, that made it, 0 if nobody knows.
func (s *spool) add(by uint32, msg pgoutput.Message, payload []byte) error {
	if by != 0 && !s.knows(by) {
		s.subs = append(s.subs, subtransaction{by, s.size})
	}
	if _, ok := msg.(*pgoutput.Relation); ok {
		s.defined = append(s.defined, definition{s.size, append([]byte(nil), payload...)})
	}
	return s.append(payload)
}

func (s *spool) append(payload []byte) error {
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(payload)))
	if _, err := s.w.Write(head[:]); err != nil {
		return spoolProblem(s.file.Name(), err)
	}
	if _, err := s.w.Write(payload); err != nil {
		return spoolProblem(s.file.Name(), err)
	}
	s.size += int64(len(head) + len(payload))
	return nil
}

func (s *spool) knows(xid uint32) bool {
	for i := len(s.subs) - 1; i >= 0; i-- {
		if s.subs[i].xid == xid {
			return true
		}
	}
	return false
}

// abort takes back the changes of an aborted subtransaction: all that follows
// its first one is its own or its children's.
func (s *spool) abort(xid uint32) error {
	i := 0
	for i < len(s.subs) && s.subs[i].xid != xid {
		i++
	}
	if i == len(s.subs) {
		return nil // it changed nothing
	}
	at := s.subs[i].at
	s.subs = s.subs[:i]
	if err := s.w.Flush(); err != nil {
		return spoolProblem(s.file.Name(), err)
	}
	if err := s.file.Truncate(at); err != nil {
		return spoolProblem(s.file.Name(), err)
	}
	if _, err := s.file.Seek(at, io.SeekStart); err != nil {
		return spoolProblem(s.file.Name(), err)
	}
	s.size = at
	for i := range s.defined {
		if s.defined[i].at < at {
			continue
		}
		s.defined[i].at = s.size
		if err := s.append(s.defined[i].payload); err != nil {
			return err
		}
	}
	return nil
}

// replay hands out every record in order. A payload is valid during the call alone.
func (s *spool) replay(do func(payload []byte) error) error {
	if err := s.w.Flush(); err != nil {
		return spoolProblem(s.file.Name(), err)
	}
	if _, err := s.file.Seek(0, io.SeekStart); err != nil {
		return spoolProblem(s.file.Name(), err)
	}
	r := bufio.NewReaderSize(s.file, 256<<10)
	var head [4]byte
	var payload []byte
	for {
		if _, err := io.ReadFull(r, head[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return spoolProblem(s.file.Name(), err)
		}
		n := int(binary.BigEndian.Uint32(head[:]))
		if cap(payload) < n {
			payload = make([]byte, n)
		}
		payload = payload[:n]
		if _, err := io.ReadFull(r, payload); err != nil {
			return spoolProblem(s.file.Name(), err)
		}
		if err := do(payload); err != nil {
			return err
		}
	}
}

// discard removes the file.
func (s *spool) discard() error {
	return errors.Join(s.file.Close(), os.Remove(s.file.Name()))
}
