//go:build !linux

package statedir

import (
	"errors"
	"os"
)

// Open is for Linux.
func Open(string) (*os.File, error) { return nil, errors.ErrUnsupported }
