package rpc

import (
	"fmt"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
)

// callerOf is who connected, as the kernel noted it then: not what the process
// has become since, which /proc would show.
func callerOf(n net.Conn) (executor.Caller, error) {
	u, ok := n.(*net.UnixConn)
	if !ok {
		return executor.Caller{}, executor.Errorf(executor.Unsupported, "%s names no callers; use a Unix socket", n.LocalAddr().Network())
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return executor.Caller{}, err
	}
	var c executor.Caller
	var failed error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); failed != nil {
			return
		}
		c.UID, c.GID, c.PID = cred.Uid, cred.Gid, cred.Pid
		c.Groups, failed = peerGroups(fd)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return executor.Caller{}, fmt.Errorf("ask the socket for its caller: %w", err)
	}
	return c, nil
}

// peerGroups asks for the groups, whose number the kernel tells where there is
// no room for them.
func peerGroups(fd uintptr) ([]uint32, error) {
	const most = 65536 // NGROUPS_MAX
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errno == syscall.ERANGE && size/4 > uint32(len(groups)) && size/4 <= most:
			groups = make([]uint32, size/4)
		default:
			return nil, fmt.Errorf("SO_PEERGROUPS: %w", errno)
		}
	}
}
