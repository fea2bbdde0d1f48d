//go:build linux || darwin || freebsd || windows

package rpc

import (
	"fmt"
	"net"

	"github.com/sandboxd/sandboxd/executor"
)

// askSocket has f ask the kernel who is at the other end of a connection.
func askSocket(n net.Conn, f func(fd uintptr) error) error {
	u, ok := n.(*net.UnixConn)
	if !ok {
		return executor.Errorf(executor.Unsupported, "%s names no callers; use a Unix socket", n.LocalAddr().Network())
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = f(fd) })
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("ask the socket for its caller: %w", err)
	}
	return nil
}
