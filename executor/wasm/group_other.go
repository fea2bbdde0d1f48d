//go:build !unix

package wasm

import (
	"os"
	"os/exec"
)

// ownGroup does nothing here.
func ownGroup(*exec.Cmd) {}

// signalOf is 0, for there are no signals.
func signalOf(*os.ProcessState) int { return 0 }
