package netpolicy

import (
	"errors"
	"fmt"
)

// Policy is what a task reaches. The zero value is Isolated.
type Policy string

const (
	// Isolated is a network namespace with nothing up, not even loopback.
	Isolated Policy = ""
	// Loopback is a network namespace with its own loopback up.
	Loopback Policy = "loopback"
	// Full is the host's network, its abstract Unix sockets included.
	Full Policy = "full"
)

// ErrUnsupported is a policy that cannot be had here.
var ErrUnsupported = errors.New("network policy is not supported")

// String names the policy as the command line does.
func (p Policy) String() string {
	if p == Isolated {
		return "isolated"
	}
	return string(p)
}

// Check returns an error that wraps ErrUnsupported for every policy but those above.
func (p Policy) Check() error {
	switch p {
	case Isolated, Loopback, Full:
		return nil
	}
	return fmt.Errorf("%w: %q; use isolated or loopback", ErrUnsupported, string(p))
}

// Own reports whether the policy needs a network namespace of the task's own.
// What is unknown gets one.
func (p Policy) Own() bool { return p != Full }
