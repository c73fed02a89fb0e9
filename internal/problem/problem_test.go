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
		{named, New("diverged", "on instance west: link shop", "it is read-only", "hawser link rejoin shop").At("instance west").Because(under)},
		{New("x", "a", "b", "c").At("the secondary"), New("x", "on instance west: a", "b", "c").At("the secondary")},
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

func TestNearest(t *testing.T) {
	known := []string{"postgres.managed.port", "postgres", "name", "log", "Shop", "shops"}
	for name, want := range map[string]string{"shop": "Shop", "SHOPS": "shops", "postgress": "postgres", "naem": "name", "lgo": "", "nothing of it": "", "": ""} {
		if got := Nearest(name, known); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func TestError(t *testing.T) {
	p := New("x", "", "it is off", "SET a = on;\nSET b = on;").Advise("then restart").At("the primary")
	if want := "it is off: refused (remedy: on the primary: SET a = on; / SET b = on; then restart)"; p.Because(errors.New("refused")).Error() != want {
		t.Errorf("%s, want %s", p.Because(errors.New("refused")), want)
	}
	if q := New("x", "", "it is off", ""); q.Meant("").Advice != "" || q.Meant("My shop").Advice != "did you mean 'My shop'?" {
		t.Errorf("what may be meant is told as %q and %q", q.Meant("").Advice, q.Meant("My shop").Advice)
	}
	if want := "it is off (remedy: wait)"; New("x", "", "it is off", "").Advise("wait").Error() != want {
		t.Error(New("x", "", "it is off", "").Advise("wait"))
	}
}

func TestWord(t *testing.T) {
	for s, want := range map[string]string{"shop": "shop", "public.été_1": "public.été_1", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, `"A".b`: `'"A".b'`, "$x": "'$x'"} {
		if got := Word(s); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}
