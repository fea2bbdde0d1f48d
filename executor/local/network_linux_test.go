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
