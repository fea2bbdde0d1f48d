//go:build unix

package wasm

import (
	"os/exec"
	"syscall"
)

// ownGroup keeps the terminal's signals, which are for us, from a worker.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
