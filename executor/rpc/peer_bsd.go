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
	var cred *unix.Xucred
	err := askSocket(n, func(fd uintptr) (err error) {
		cred, err = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
		if err == nil && (cred.Ngroups < 1 || int(cred.Ngroups) > len(cred.Groups)) { // the first is the effective one
			err = fmt.Errorf("it has %d groups", cred.Ngroups)
		}
		return err
	})
	if err != nil {
		return executor.Caller{}, process{}, err
	}
	groups := cred.Groups[:cred.Ngroups]
	return executor.Caller{UID: cred.Uid, GID: groups[0], Groups: groups[1:]}, process{}, nil
}
