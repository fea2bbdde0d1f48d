//go:build !linux

package wasm

import "os"

// program is the one that runs.
func program() (string, error) { return os.Executable() }
