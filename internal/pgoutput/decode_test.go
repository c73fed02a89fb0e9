package pgoutput_test

import (
	"strings"
	"testing"

	"github.com/hawser/hawser/internal/pgoutput"
)

const (
	beginMessage    = "B\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x03"
	insertMessage   = "I\x00\x00\x00\x01N\x00\x03t\x00\x00\x00\x0212nt\x00\x00\x00\x05hello"
	relationMessage = "R\x00\x00\x00\x01public\x00t\x00d\x00\x01\x01id\x00\x00\x00\x00\x17\xff\xff\xff\xff"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, message, reason string }{
		{"empty", "", "empty message"},
		{"a type of the future", "Z", "unknown type"},
		{"cut", insertMessage[:len(insertMessage)-1], "ends too early"},
		{"a byte too many", insertMessage + "x", "1 bytes too many"},
		{"a row of 65535 columns in no bytes", "I\x00\x00\x00\x01N\xff\xff", "ends too early"},
		{"a value of 4 GB", "I\x00\x00\x00\x01N\x00\x01t\xff\xff\xff\xff", "ends too early"},
		{"no row", "I\x00\x00\x00\x01X\x00\x00", ""},
		{"a name without end", "Y\x00\x00\x00\x01public", "ends too early"},
		{"unknown flags", "M\x02\x00\x00\x00\x00\x00\x00\x00\x01p\x00\x00\x00\x00\x00", "unknown flags"},
		{"an unknown replica identity", strings.Replace(relationMessage, "t\x00d", "t\x00z", 1), "unknown replica identity"},
		{"the end of a block that did not begin", "E", "no stream block"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var d pgoutput.Decoder
			m, err := d.Decode([]byte(c.message))
			if err == nil || m != nil {
				t.Fatalf("got %v and error %v", m, err)
			}
			if !strings.Contains(err.Error(), c.reason) {
				t.Errorf("got %q, want it to say %q", err, c.reason)
			}
		})
	}
}

// FuzzDecode starts from what servers really sent.
func FuzzDecode(f *testing.F) {
	for _, messages := range recorded(f) {
		for _, m := range messages {
			f.Add(m, false)
			f.Add(m, true)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, streamed bool) {
		var d pgoutput.Decoder
		m, err := d.DecodeChange(b, streamed)
		if (m == nil) == (err == nil) {
			t.Fatalf("message %v and error %v", m, err)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for name, message := range map[string]string{"begin": beginMessage, "insert": insertMessage, "relation": relationMessage} {
		b.Run(name, func(b *testing.B) {
			var d pgoutput.Decoder
			b.SetBytes(int64(len(message)))
			b.ReportAllocs()
			payload := []byte(message)
			for b.Loop() {
				if _, err := d.Decode(payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
