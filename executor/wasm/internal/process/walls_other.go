//go:build !linux

package process

import (
	"errors"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// Raise is for Linux.
func Raise(*wire.Walls) error { return errors.ErrUnsupported }
