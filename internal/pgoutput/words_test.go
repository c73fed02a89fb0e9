package pgoutput_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/pgoutput"
)

// telling tells a stream in a line a message. Transactions are named a, b, … in
// the order in which they appear, and relations by their names, so that the lines
// are the same on every server.
type telling struct {
	dec       pgoutput.Decoder
	xids      map[uint32]string
	relations map[uint32]string
}

// tell decodes a stream from its beginning.
func tell(t *testing.T, messages [][]byte) []string {
	t.Helper()
	var w telling
	var out []string
	for _, b := range messages {
		out = append(out, w.tell(t, b))
	}
	return out
}

func (w *telling) tell(t *testing.T, payload []byte) string {
	t.Helper()
	m, err := w.dec.Decode(payload)
	if err != nil {
		t.Fatalf("%q: %v", payload, err)
	}
	if xid, ok := pgoutput.SubXID(m); ok {
		return w.xid(xid) + ": " + w.message(m)
	}
	return w.message(m)
}

func (w *telling) message(m pgoutput.Message) string {
	switch m := m.(type) {
	case *pgoutput.Begin:
		return "begin " + w.xid(m.XID)
	case *pgoutput.Commit:
		return "commit"
	case *pgoutput.Origin:
		return fmt.Sprintf("origin %s %X", m.Name, m.CommitLSN)
	case *pgoutput.StreamStart:
		return fmt.Sprintf("stream %s first=%t", w.xid(m.XID), m.First)
	case *pgoutput.StreamStop:
		return "stop"
	case *pgoutput.StreamCommit:
		return "stream commit " + w.xid(m.XID)
	case *pgoutput.StreamAbort:
		return fmt.Sprintf("stream abort %s of %s, placed=%t", w.xid(m.SubXID), w.xid(m.XID), m.AbortLSN != 0)
	case *pgoutput.Prepared:
		return fmt.Sprintf("prepared %c %s %s", m.Action, w.xid(m.XID), m.GID)
	}
	return w.change(m)
}

func (w *telling) change(m pgoutput.Message) string {
	switch m := m.(type) {
	case *pgoutput.Relation:
		return w.define(m)
	case *pgoutput.Type:
		return "type " + m.Namespace + "." + m.Name
	case *pgoutput.Insert:
		return "insert " + w.relations[m.RelationID] + row(m.New)
	case *pgoutput.Update:
		if m.OldKind == 0 {
			return "update " + w.relations[m.RelationID] + " to" + row(m.New)
		}
		return fmt.Sprintf("update %s %c%s to%s", w.relations[m.RelationID], m.OldKind, row(m.Old), row(m.New))
	case *pgoutput.Delete:
		return fmt.Sprintf("delete %s %c%s", w.relations[m.RelationID], m.OldKind, row(m.Old))
	case *pgoutput.Truncate:
		var names []string
		for _, id := range m.RelationIDs {
			names = append(names, w.relations[id])
		}
		return fmt.Sprintf("truncate %s cascade=%t restart=%t", strings.Join(names, ","), m.Cascade, m.RestartIdentity)
	case *pgoutput.LogicalMessage:
		return fmt.Sprintf("message transactional=%t %s=%q", m.Transactional, m.Prefix, m.Content)
	}
	return fmt.Sprintf("%T", m)
}

func (w *telling) define(m *pgoutput.Relation) string {
	if w.relations == nil {
		w.relations = map[uint32]string{}
	}
	w.relations[m.ID] = m.Name
	var columns []string
	for _, c := range m.Columns {
		if c.Key {
			c.Name += "*"
		}
		columns = append(columns, c.Name)
	}
	return fmt.Sprintf("relation %s.%s identity=%c (%s)", m.Namespace, m.Name, m.ReplicaIdentity, strings.Join(columns, ", "))
}

func (w *telling) xid(xid uint32) string {
	if w.xids == nil {
		w.xids = map[uint32]string{}
	}
	if w.xids[xid] == "" {
		w.xids[xid] = string(rune('a' + len(w.xids)))
	}
	return w.xids[xid]
}

func row(columns []pgoutput.Column) string {
	var b strings.Builder
	for _, c := range columns {
		switch c.Kind {
		case pgoutput.Null:
			b.WriteString(" null")
		case pgoutput.Unchanged:
			b.WriteString(" unchanged")
		default:
			fmt.Fprintf(&b, " %c%q", c.Kind, c.Data)
		}
	}
	return b.String()
}
