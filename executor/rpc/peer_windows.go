package rpc

import (
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/sandboxd/sandboxd/executor"
)

// getPeerPID is SIO_AF_UNIX_GETPEERPID: which process connected.
const getPeerPID = 0x58000100

// callerOf refuses all but the user that this process runs as, who is user 0 to it: there are no numbers
// of users here. Who may open the socket's file at all is the directory's to say.
func callerOf(n net.Conn) (executor.Caller, process, error) {
	var pid, size uint32
	err := askSocket(n, func(fd uintptr) error {
		return windows.WSAIoctl(windows.Handle(fd), getPeerPID, nil, 0, (*byte)(unsafe.Pointer(&pid)), uint32(unsafe.Sizeof(pid)), &size, nil, 0)
	})
	if err != nil {
		return executor.Caller{}, process{}, err
	}
	same, err := isOurs(pid)
	if err != nil {
		return executor.Caller{}, process{}, fmt.Errorf("whose process %d is: %w", pid, err)
	}
	if !same {
		return executor.Caller{}, process{}, executor.Errorf(executor.Denied, "the daemon is another user's; run one of your own")
	}
	return executor.Caller{}, process{}, nil
}

// isOurs reports whether a process runs as the user of this one.
func isOurs(pid uint32) (bool, error) {
	p, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return false, err
	}
	defer func() { _ = windows.CloseHandle(p) }() // it was for reading alone
	var t windows.Token
	if err := windows.OpenProcessToken(p, windows.TOKEN_QUERY, &t); err != nil {
		return false, err
	}
	defer func() { _ = t.Close() }()
	theirs, err := t.GetTokenUser()
	if err != nil {
		return false, err
	}
	ours, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return false, err
	}
	return theirs.User.Sid.Equals(ours.User.Sid), nil
}
