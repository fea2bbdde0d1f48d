//go:build !linux

package process

import (
	"errors"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// raise is for Linux.
func raise(*wire.Walls) error { return errors.ErrUnsupported }
