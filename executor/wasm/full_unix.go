//go:build unix

package wasm

import (
	"errors"
	"syscall"
)

// full says whether an error is that there is no room on a disk.
func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// unwritable says whether an error is that nothing can be written somewhere, whoever asks.
func unwritable(err error) bool {
	return full(err) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EIO)
}
