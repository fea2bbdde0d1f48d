//go:build !linux

package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
)

func unsupported() error { return fmt.Errorf("rootfs: %w", errors.ErrUnsupported) }

// Rootfs cannot be made on this system.
type Rootfs struct{}

// Open reports that package rootfs needs Linux.
func Open(string, Spec) (*Rootfs, error) { return nil, unsupported() }

// OpenDir reports that package rootfs needs Linux.
func (*Rootfs) OpenDir() (*os.File, error) { return nil, unsupported() }

// Fresh is false on this system.
func (*Rootfs) Fresh() bool { return false }

// Mounts is empty on this system.
func (*Rootfs) Mounts() []Mount { return nil }

// Identity is empty on this system.
func (*Rootfs) Identity() string { return "" }

// Dir is empty on this system.
func (*Rootfs) Dir() string { return "" }

// Close does nothing on this system.
func (*Rootfs) Close() error { return nil }

// Collect reports that package rootfs needs Linux.
func Collect(context.Context, *os.File, []string, Limits, Store) ([]Entry, []string, error) {
	return nil, nil, unsupported()
}

// Place reports that package rootfs needs Linux.
func Place(context.Context, *os.File, []string, []Entry, func(Entry) (*os.File, error), func(Placing) error, func(func() error) error) error {
	return unsupported()
}

// Placeable reports that package rootfs needs Linux.
func Placeable(*os.File, []string) error { return unsupported() }

// Undeclared reports that package rootfs needs Linux.
func Undeclared(context.Context, *os.File, []string, int) ([]string, int64, error) {
	return nil, 0, unsupported()
}

// RemoveTree reports that package rootfs needs Linux.
func RemoveTree(*os.File, string) error { return unsupported() }

// Recover reports that package rootfs needs Linux.
func Recover(*os.File, Placing, []uint32) (int, error) { return 0, unsupported() }
