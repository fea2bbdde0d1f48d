//go:build !unix

package wasm

import (
	"os"
	"syscall"
)

// ownGroup does nothing here.
func ownGroup() *syscall.SysProcAttr { return nil }

// signalOf is 0, for there are no signals.
func signalOf(*os.ProcessState) int { return 0 }
