//go:build !linux

package process

import "github.com/tetratelabs/wazero"

// shareCode is for Linux.
func shareCode(string, wazero.CompiledModule) error { return nil }
