//go:build darwin || freebsd

package rpc

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
)

// callerOf is who connected, as the kernel noted it then. Which process it was is not asked for.
func callerOf(n net.Conn) (executor.Caller, process, error) {
	u, ok := n.(*net.UnixConn)
	if !ok {
		return executor.Caller{}, process{}, executor.Errorf(executor.Unsupported, "%s names no callers; use a Unix socket", n.LocalAddr().Network())
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return executor.Caller{}, process{}, err
	}
	var cred *unix.Xucred
	var failed error
	err = raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED) })
	if err == nil {
		err = failed
	}
	if err == nil && (cred.Ngroups < 1 || int(cred.Ngroups) > len(cred.Groups)) { // the first is the effective one
		err = fmt.Errorf("it has %d groups", cred.Ngroups)
	}
	if err != nil {
		return executor.Caller{}, process{}, fmt.Errorf("ask the socket for its caller: %w", err)
	}
	groups := cred.Groups[:cred.Ngroups]
	return executor.Caller{UID: cred.Uid, GID: groups[0], Groups: groups[1:]}, process{}, nil
}
