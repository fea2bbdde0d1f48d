package netpolicy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Manager makes Routers for the tasks of one daemon. It may be used by any number of goroutines.
type Manager struct {
	cfg  Config
	deny denyList
	net  *netlink.Handle // in the daemon's own namespace
	// relayed has a place for each connection and flow of all tasks.
	relayed chan struct{}
	ipv6    bool

	mu     sync.Mutex
	probed bool
}

// What is relayed for all tasks together leaves half of the open files that the daemon may have to others.
const (
	relayedFiles           = 6 // two sockets, and two pipes for splice(2)
	minRelayed, maxRelayed = 16, 1 << 16
)

// take reports whether there is a place to relay one connection more; give gives it back.
func (m *Manager) take() bool {
	select {
	case m.relayed <- struct{}{}:
		return true
	default:
		return false
	}
}

func (m *Manager) give() { <-m.relayed }

// Open makes a Manager. It changes nothing.
func Open(cfg Config) (*Manager, error) {
	if cfg.Deny == nil {
		cfg.Deny = DefaultDeny()
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.MinTTL == 0 {
		cfg.MinTTL = defaultMinTTL
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netpolicy: netlink: %w", err)
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		h.Close()
		return nil, fmt.Errorf("netpolicy: limit of open files: %w", err)
	}
	most := max(minRelayed, min(files.Cur/2/relayedFiles, maxRelayed))
	m := &Manager{cfg: cfg, deny: denyList{cfg.Deny}, net: h, relayed: make(chan struct{}, most)}
	_, err = os.Stat("/proc/net/if_inet6")
	m.ipv6 = err == nil
	return m, nil
}

// Close ends the Manager, once its Routers are closed.
func (m *Manager) Close() error {
	m.net.Close()
	return nil
}

// Probe reports whether this machine can have the policy Controlled, by making a router and a
// link for nobody. It does so once, if it works; the error wraps ErrUnsupported and names a remedy.
func (m *Manager) Probe() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.probed {
		return nil
	}
	if err := m.probe(); err != nil {
		return fmt.Errorf("%w: controlled: %w; load the modules veth, nf_tables, nft_tproxy, nft_socket and nft_reject_inet, which a kernel's own package has", ErrUnsupported, err)
	}
	m.probed = true
	return nil
}

func (m *Manager) probe() (err error) {
	a, err := m.Addresses(nil)
	if err != nil {
		return err
	}
	r, err := m.Start(RouterSpec{Addresses: a, Rules: []Rule{{Text: "probe", Name: "probe.invalid", TCP: true, UDP: true}}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	task, err := newNamespace()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, task.close()) }()
	_, err = r.Attach(task.file)
	return err
}

// candidates are pairs of addresses for links, from ranges that are nobody's to route: for
// benchmarks (RFC 2544), then for private networks.
var candidates = [2][][2]string{
	{
		{"198.19.255.2", "198.19.255.1"}, {"198.18.255.2", "198.18.255.1"},
		{"100.127.255.2", "100.127.255.1"}, {"10.255.254.2", "10.255.254.1"},
		{"172.31.254.2", "172.31.254.1"}, {"192.168.254.2", "192.168.254.1"},
	},
	{
		{"fd73:616e:6462:6f78::2", "fd73:616e:6462:6f78::1"}, {"fd73:616e:6462:6f79::2", "fd73:616e:6462:6f79::1"},
		{"2001:2:0:fffe::2", "2001:2:0:fffe::1"},
	},
}

// Addresses chooses addresses for a link that the host itself reaches by no route but a default
// one, and that no rule is about: they hide nothing from the task. The error wraps ErrUnsupported.
func (m *Manager) Addresses(rules []Rule) (a Addresses, err error) {
	if a.Task4, a.Router4, err = m.choose(v4, rules); err != nil {
		return a, err
	}
	if m.ipv6 {
		a.Task6, a.Router6, err = m.choose(v6, rules)
	}
	return a, err
}

func (m *Manager) choose(fam int, rules []Rule) (task, router netip.Addr, err error) {
	for _, c := range candidates[fam] {
		task, router = netip.MustParseAddr(c[0]), netip.MustParseAddr(c[1])
		free := !slices.ContainsFunc(rules, func(r Rule) bool {
			return r.Name == "" && r.Prefix.Bits() > 0 && (r.Prefix.Contains(task) || r.Prefix.Contains(router))
		})
		for _, a := range []netip.Addr{task, router} {
			if free {
				if free, err = m.routedByDefault(a); err != nil {
					return task, router, err
				}
			}
		}
		if free {
			return task, router, nil
		}
	}
	return task, router, fmt.Errorf("%w: controlled: the host has routes to, or the task rules about, all of the addresses that a link could have (%v); remove one", ErrUnsupported, candidates[fam])
}

// routedByDefault reports whether the host has no route to a but a default one.
func (m *Manager) routedByDefault(a netip.Addr) (bool, error) {
	routes, err := m.net.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if unreachable(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("netpolicy: route to %s: %w", a, err)
	}
	return !slices.ContainsFunc(routes, func(r netlink.Route) bool {
		if r.Dst == nil {
			return false
		}
		ones, _ := r.Dst.Mask.Size()
		return ones > 0
	}), nil
}

func unreachable(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL)
}

// reach is what the host's routes say of an address.
type reach int

const (
	noRoute reach = iota // or one that forbids
	itself               // the host's own address, or a broadcast
	away
)

// look asks the kernel now: the host's addresses change.
func (m *Manager) look(a netip.Addr) reach {
	routes, err := m.net.RouteGet(a.Unmap().AsSlice())
	if err != nil || len(routes) == 0 {
		return noRoute
	}
	switch routes[0].Type {
	case unix.RTN_UNICAST:
		return away
	case unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST:
		return itself
	}
	return noRoute
}

// maxOwn bounds the host's addresses that are refused by the kernel; others are by the relay.
const maxOwn = 4096

// own lists the host's addresses as they are now.
func (m *Manager) own() ([]netip.Prefix, error) {
	list, err := m.net.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("netpolicy: the host's addresses: %w", err)
	}
	var all []netip.Prefix
	for _, a := range list[:min(len(list), maxOwn)] {
		for _, ip := range []net.IP{a.IP, a.Broadcast} {
			if x, ok := netip.AddrFromSlice(ip); ok {
				x = x.Unmap()
				all = append(all, netip.PrefixFrom(x, x.BitLen()))
			}
		}
	}
	return all, nil
}

const (
	hostsOwn = "the host's own address"
	linksOwn = "the link's own address"
)

// refusal says why no rule can permit a; empty if one can.
func (m *Manager) refusal(a netip.Addr) string {
	if p, denied := m.deny.match(a); denied {
		return "deny " + p.String()
	}
	for _, form := range forms(a) {
		if m.look(form) == itself {
			return hostsOwn
		}
	}
	return ""
}
