package apply

import (
	"slices"
	"testing"

	"github.com/hawser/hawser/internal/frame"
)

// TestDefined: the tables further on in a frame are known up to its first command, those
// in a stream block too, but for those that are still to be copied.
func TestDefined(t *testing.T) {
	ahead := func(messages ...[]byte) []frame.Record { return records(1000, messages...).Records }
	net, uniq, whole := asked{"public", "net", false}, asked{"public", "uniq", false}, asked{"public", "whole", true}
	command := cat([]byte("M\x01"), be64(1000), []byte(ddlPrefix+"\x00"), be32(0))
	for _, c := range []struct {
		name  string
		ahead []frame.Record
		want  []asked
	}{
		{"none", nil, nil},
		{"between changes", ahead(msgInsert("1"), msgTable(tableNet), msgInsert("2"), msgTable(tableFull), msgCommit(1000)), []asked{net, whole}},
		{"behind a command", ahead(msgTable(tableNet), command, msgTable(tableFull)), []asked{net}},
		{"in a stream block", ahead(msgStreamStart(990, 1), inStream(990, msgTable(tableUnique)), []byte("E"), msgTable(tableNet)), []asked{uniq, net}},
		{"to be copied", ahead(msgRelation(), msgTable(tableNet)), []asked{net}},
		{"not understood", ahead(msgTable(tableNet), []byte("R"), msgTable(tableFull)), []asked{net}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &Applier{ahead: c.ahead}
			a.seeds.tables = map[uint32]*seedTable{5000: {}}
			if got := a.defined(); !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
