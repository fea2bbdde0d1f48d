// Package inside is what a sandbox's first process has to do with its network: to ready what
// needs no help from outside, and to read back what there is.
//
// It stands apart from package netpolicy, since the initialisers of all that the first
// process imports run in each sandbox: it imports next to nothing.
package inside

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
	// Controlled is a network namespace with its own loopback, and one link to a router that
	// passes on what rules allow.
	Controlled Policy = "controlled"
	// Full is the host's network, its abstract Unix sockets included.
	Full Policy = "full"
)

// Link is the name of the interface by which a controlled task reaches its router.
const Link = "net0"

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
	case Isolated, Loopback, Controlled, Full:
		return nil
	}
	return fmt.Errorf("%w: %q; use isolated, loopback or controlled", ErrUnsupported, string(p))
}

// Own reports whether the policy needs a network namespace of the task's own.
// What is unknown gets one.
func (p Policy) Own() bool { return p != Full }
