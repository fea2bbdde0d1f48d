//go:build unix && !linux

package wasm

import "syscall"

// ownGroup keeps the terminal's signals, which are for us, from a worker.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
