//go:build !linux

package rpc

import (
	"net"

	"github.com/sandboxd/sandboxd/executor"
)

// callerOf knows nobody on systems other than Linux, so all calls are refused.
func callerOf(net.Conn) (executor.Caller, process, error) {
	return executor.Caller{}, process{}, executor.Errorf(executor.Unsupported, "callers are known on Linux only; run the daemon there")
}

// process is unknown.
type process struct{}

func (process) lives() bool { return false }
func (process) close()      {}
