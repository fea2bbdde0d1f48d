//go:build !linux

package cache

import (
	"errors"
	"os"
)

// syncFileSystem is not to be had here.
func syncFileSystem(*os.File) error { return errors.ErrUnsupported }
