//go:build !linux

package rpc

import (
	"net"

	"github.com/sandboxd/sandboxd/executor"
)

// callerOf knows nobody on systems other than Linux, so all calls are refused.
func callerOf(net.Conn) (executor.Caller, error) {
	return executor.Caller{}, executor.Errorf(executor.Unsupported, "callers are known on Linux only; run the daemon there")
}
