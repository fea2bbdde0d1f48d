//go:build !linux

package wasm

import (
	"errors"
	"os"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
)

// machineAt is what is at f's path, and the root to be closed after it.
func machineAt(f *os.File, _ executor.Caller) (tree.Machine, *os.Root, error) {
	m, err := tree.OpenDir(f.Name())
	return m, m.Root, err
}

// file is for workers that ask, and none does here.
func (r *running) file(string, []byte) error { return errors.ErrUnsupported }
