//go:build unix

package wasm

import (
	"os"
	"os/exec"
	"syscall"
)

// ownGroup keeps the terminal's signals, which are for us, from a worker.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// signalOf is the number of the signal that ended a process; 0 if none did.
func signalOf(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return int(w.Signal())
	}
	return 0
}
