//go:build unix

package wasm

import (
	"os"
	"syscall"
)

// signalOf is the number of the signal that ended a process; 0 if none did.
func signalOf(s *os.ProcessState) int {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return int(w.Signal())
	}
	return 0
}
