//go:build !linux

package rpc

// process is unknown.
type process struct{}

func (process) lives() bool { return false }
func (process) close()      {}
