//go:build !linux

package process

import (
	"errors"
	"os"
)

// receive is for Linux: elsewhere a worker opens its files itself.
func receive(int) ([]*os.File, error) { return nil, errors.ErrUnsupported }
