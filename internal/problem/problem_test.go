package problem

import (
	"errors"
	"reflect"
	"testing"
)

// TestOn: what another instance found says so once, and can't be taken for something here.
func TestOn(t *testing.T) {
	t.Parallel()
	under := errors.New("refused")
	named := New("diverged", "link shop", "it is read-only", "hawser link rejoin shop").Because(under)
	bare := New("starting", "", "the agent is starting", "")
	for _, c := range []struct{ in, want *Problem }{
		{named, New("diverged", "on instance west: link shop", "it is read-only", "on west: hawser link rejoin shop").Because(under)},
		{New("x", "a", "b", "on the secondary: c"), New("x", "on instance west: a", "b", "on the secondary: c")},
		{bare, New("starting", "", "on instance west: the agent is starting", "")},
	} {
		got := c.in.On("west")
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v became %+v, want %+v", c.in, got, c.want)
		}
		if again := got.On("east"); again != got {
			t.Errorf("on its way back it became %+v", again)
		}
	}
	if named.Object != "link shop" || (*Problem)(nil).On("west") != nil {
		t.Error("the problem itself was changed")
	}
}

func TestWord(t *testing.T) {
	for s, want := range map[string]string{"shop": "shop", "public.été_1": "public.été_1", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, `"A".b`: `'"A".b'`, "$x": "'$x'"} {
		if got := Word(s); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}
