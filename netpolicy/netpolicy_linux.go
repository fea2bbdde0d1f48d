package netpolicy

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Setup readies the network namespace that the calling process is in, and
// returns what Verify found there. The process must be in the task's namespace,
// before the task is, and needs CAP_NET_ADMIN over it for Loopback.
func (p Policy) Setup() (found string, err error) {
	if err := p.Check(); err != nil {
		return "", err
	}
	if p == Loopback {
		if err := up("lo"); err != nil {
			return "", err
		}
	}
	return p.Verify()
}

// Verify reads back from the kernel that the calling process's network is what
// the policy says, and puts it in words. It fails where more can be reached.
func (p Policy) Verify() (found string, err error) {
	if p == Full {
		return "full: the host's network", nil
	}
	all, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("list network interfaces: %w", err)
	}
	var seen []string
	for _, i := range all {
		loopback := i.Flags&net.FlagLoopback != 0
		isUp := i.Flags&net.FlagUp != 0
		if isUp && !loopback || isUp != (p == Loopback) && loopback {
			return "", fmt.Errorf("network %s: interface %s is %s", p, i.Name, i.Flags)
		}
		state := "down"
		if isUp {
			state = "up"
		}
		seen = append(seen, i.Name+" "+state)
	}
	slices.Sort(seen)
	return p.String() + ": " + strings.Join(seen, ", "), nil
}

// up is ifconfig NAME up (netdevice(7)). The kernel gives lo its addresses.
func up(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, req); err != nil {
		return fmt.Errorf("interface %s: read its flags: %w", name, err)
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("interface %s: set it up: %w", name, err)
	}
	return nil
}
