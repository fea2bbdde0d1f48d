package inside

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Setup readies the network namespace that the calling process is in, and
// returns what Verify found there. The process must be in the task's namespace,
// before the task is, and needs CAP_NET_ADMIN over it for Loopback. Controlled was readied
// from outside.
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
	all, err := interfaces()
	if err != nil {
		return "", fmt.Errorf("list network interfaces: %w", err)
	}
	var seen []string
	linked := false
	for _, i := range all {
		isUp, state := i.flags&unix.IFF_UP != 0, "down"
		if isUp {
			state = "up"
		}
		want := false
		switch {
		case i.flags&unix.IFF_LOOPBACK != 0:
			want = p == Loopback || p == Controlled
		case i.name == Link:
			want, linked = p == Controlled, true
		}
		if isUp != want {
			return "", fmt.Errorf("network %s: interface %s is %s", p, i.name, state)
		}
		seen = append(seen, i.name+" "+state)
	}
	if p == Controlled && !linked {
		return "", fmt.Errorf("network %s: there is no interface %s", p, Link)
	}
	slices.Sort(seen)
	return p.String() + ": " + strings.Join(seen, ", "), nil
}

type device struct {
	name  string
	flags uint32
}

// interfaces does what net.Interfaces does. A sandbox's first process would wait for
// the initialisers of net and of all that sorts before it: see sandbox/internal/first.
func interfaces() (all []device, err error) {
	rib, err := syscall.NetlinkRIB(unix.RTM_GETLINK, unix.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	messages, err := syscall.ParseNetlinkMessage(rib)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWLINK {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, err
		}
		// ParseNetlinkRouteAttr saw to it that this struct ifinfomsg is there: rtnetlink(7).
		d := device{flags: (*unix.IfInfomsg)(unsafe.Pointer(&m.Data[0])).Flags}
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_IFNAME {
				d.name = unix.ByteSliceToString(a.Value)
			}
		}
		all = append(all, d)
	}
	return all, nil
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
