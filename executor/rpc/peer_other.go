//go:build !linux && !darwin && !freebsd && !windows

package rpc

import (
	"net"

	"github.com/sandboxd/sandboxd/executor"
)

// callerOf knows nobody here, so all calls are refused.
func callerOf(net.Conn) (executor.Caller, process, error) {
	return executor.Caller{}, process{}, executor.Errorf(executor.Unsupported, "callers are not known on this system; run the daemon on Linux, macOS, FreeBSD or Windows")
}
