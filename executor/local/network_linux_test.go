package local

import (
	"errors"
	"fmt"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/netpolicy"
)

// TestUnsupportedNetwork: what this machine cannot do is not the task's fault, nor ours.
func TestUnsupportedNetwork(t *testing.T) {
	err := unsupportedNetwork(fmt.Errorf("%w: controlled: load the module", netpolicy.ErrUnsupported))
	if e := executor.AsError(err); e.Kind != executor.Unsupported || e.Field != "network" {
		t.Errorf("%+v", e)
	}
	other := errors.New("other")
	if err := unsupportedNetwork(other); !errors.Is(err, other) || executor.KindOf(err) != executor.Internal {
		t.Errorf("%v, %s", err, executor.KindOf(err))
	}
}

// TestRulesAreSigned: each of a task's rules is part of what it is, and their order is not.
func TestRulesAreSigned(t *testing.T) {
	names := map[string]bool{}
	for _, allow := range [][]string{nil, {"a.example"}, {"a.example:1"}, {"a.example/tcp"}, {"a.example", "b.example"}, {"b.example", "a.example"}} {
		c, err := command(&executor.TaskSpec{Script: "true", Network: executor.NetworkControlled, Allow: allow}, "root")
		if err != nil {
			t.Fatal(err)
		}
		names[fmt.Sprint(c.Platform)] = true
	}
	if len(names) != 5 {
		t.Errorf("%d tasks of 5: %v", len(names), names)
	}
}
