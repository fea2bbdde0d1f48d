//go:build !linux

package sandbox

import (
	"errors"
	"fmt"
)

// Seal has nothing to do where there are no sandboxes.
func Seal() error { return nil }

// Possible returns an errors.ErrUnsupported.
func Possible() error { return fmt.Errorf("sandbox: sandboxes need Linux: %w", errors.ErrUnsupported) }

// Config is what a Host is made with.
type Config struct{ Dir string }

// Host makes sandboxes, on Linux.
type Host struct{}

// Open needs Linux.
func Open(Config) (*Host, error) {
	return nil, Possible()
}
