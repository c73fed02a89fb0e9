package schema

import (
	"fmt"
	"strings"
	"testing"
)

// TestLockedOutNamesAll: however many they are, each is named, with what gives it login.
func TestLockedOutNamesAll(t *testing.T) {
	t.Parallel()
	var names []string
	for i := range maxLockedOut + 2 {
		names = append(names, fmt.Sprintf("My role %d", i))
	}
	found := TellLockedOut(names, "alpha", "beta")
	if len(found) != maxLockedOut+1 {
		t.Fatalf("%d findings", len(found))
	}
	last := found[maxLockedOut]
	for _, name := range []string{`"My role 20"`, `"My role 21"`} {
		if !strings.Contains(last.Object, name) || !strings.Contains(last.Remedy, "ALTER ROLE "+name+" LOGIN PASSWORD '…';") {
			t.Errorf("%s is not named: %v", name, last)
		}
	}
	if TellLockedOut(nil, "alpha", "beta") != nil {
		t.Error("something is found where nobody is locked out")
	}
}
