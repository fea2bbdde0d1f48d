package rpc

import (
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
)

// callerOf is who connected, as the kernel noted it then: not what the process
// has become since, which /proc would show. The process is to be closed, also with an error.
func callerOf(n net.Conn) (executor.Caller, process, error) {
	var c executor.Caller
	var p process
	err := askSocket(n, func(fd uintptr) error {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return err
		}
		c.UID, c.GID, c.PID = cred.Uid, cred.Gid, cred.Pid
		if c.Groups, err = peerGroups(fd); err == nil {
			p = peerProcess(fd)
		}
		return err
	})
	if err != nil {
		return executor.Caller{}, p, err
	}
	// Groups that have no id here are all shown as one, whose members those in them are not.
	c.Groups = slices.DeleteFunc(c.Groups, func(g uint32) bool { return g == overflowID })
	return c, p, nil
}

// process is the one that connected, held by a descriptor: its number can become another's,
// the descriptor cannot. The zero process is unknown.
type process struct{ fd *os.File }

// peerProcess asks for the process. Linux before 6.5 does not tell, nor does any of one that
// is gone already.
func peerProcess(fd uintptr) process {
	n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		return process{}
	}
	return process{os.NewFile(uintptr(n), "pidfd")}
}

// lives reports whether the process is known and has not ended: then its number is its own.
func (p process) lives() bool {
	if p.fd == nil {
		return false
	}
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return false
	}
	var n int
	var failed error
	err = raw.Control(func(fd uintptr) {
		// Readable is that it has ended (pidfd_open(2)).
		for failed = unix.EINTR; failed == unix.EINTR; {
			n, failed = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		}
	})
	return err == nil && failed == nil && n == 0
}

func (p process) close() {
	if p.fd != nil {
		_ = p.fd.Close()
	}
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
