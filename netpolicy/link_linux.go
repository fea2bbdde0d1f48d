package netpolicy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/netpolicy/inside"
)

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenNone = 1

// The two ends know each other's hardware address, so that they need not ask for it.
var (
	taskMAC   = net.HardwareAddr{0x02, 0x73, 0x61, 0x6e, 0x64, 0x02}
	routerMAC = net.HardwareAddr{0x02, 0x73, 0x61, 0x6e, 0x64, 0x01}
)

// tasks and routers are the addresses by family, of the families that are there.
func (a Addresses) tasks() []netip.Addr   { return valid(a.Task4, a.Task6) }
func (a Addresses) routers() []netip.Addr { return valid(a.Router4, a.Router6) }

func valid(as ...netip.Addr) []netip.Addr {
	return slices.DeleteFunc(as, func(a netip.Addr) bool { return !a.IsValid() })
}

func host(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// readyRouter gives the router's namespace its addresses and has it take every destination for its own,
// by routes of the type local, so that it hands out packets to its sockets and to nothing else.
// It runs in the namespace.
func readyRouter(a Addresses) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	for _, addr := range a.routers() {
		if err := h.AddrAdd(lo, &netlink.Addr{IPNet: host(addr), Flags: noDAD(addr)}); err != nil {
			return fmt.Errorf("address %s: %w", addr, err)
		}
		// In the table main, so that the more specific route to the task goes before it.
		all := &net.IPNet{IP: make(net.IP, addr.BitLen()/8), Mask: net.CIDRMask(0, addr.BitLen())}
		err := h.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: all, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_MAIN, Scope: netlink.SCOPE_HOST})
		if err != nil {
			return fmt.Errorf("local route for everything: %w", err)
		}
	}
	knobs := map[string]string{"net/ipv4/icmp_ratelimit": "0"} // a refusal is said each time
	if a.Router6.IsValid() {
		knobs["net/ipv6/icmp/ratelimit"] = "0"
	}
	return setSysctls(knobs)
}

// noDAD lets an address be used at once: nobody else is on the link.
func noDAD(a netip.Addr) int {
	if a.Is6() {
		return unix.IFA_F_NODAD
	}
	return 0
}

// link makes the pair of ends, and readies both. It runs in the router's namespace.
func link(a Addresses, task *os.File) (found string, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return "", fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	in, err := netlink.NewHandleAt(netns.NsHandle(task.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return "", fmt.Errorf("netlink of the task: %w", err)
	}
	defer in.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = routerLink, routerMAC
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerNamespace = inside.Link, taskMAC, netlink.NsFd(task.Fd())
	if err := h.LinkAdd(pair); err != nil {
		return "", fmt.Errorf("veth: %w", err)
	}
	gw, err := h.LinkByName(routerLink)
	if err != nil {
		return "", fmt.Errorf("veth: %w", err)
	}
	lo, err := in.LinkByName("lo")
	if err != nil {
		return "", fmt.Errorf("lo of the task: %w", err)
	}
	out, err := in.LinkByName(inside.Link)
	if err != nil {
		return "", fmt.Errorf("veth of the task: %w", err)
	}
	if a.Task6.IsValid() { // no address of the link's own, and nothing said about it
		if err := errors.Join(h.LinkSetIP6AddrGenMode(gw, addrGenNone), in.LinkSetIP6AddrGenMode(out, addrGenNone)); err != nil {
			return "", fmt.Errorf("veth: %w", err)
		}
	}
	// The router's end first: the task's then is ready as soon as it is up.
	if err := errors.Join(h.LinkSetUp(gw), in.LinkSetUp(lo), in.LinkSetUp(out)); err != nil {
		return "", fmt.Errorf("veth: %w", err)
	}
	if err := joinTask(in, out, a); err != nil {
		return "", err
	}
	if err := errors.Join(running(h, gw.Attrs().Index), running(in, out.Attrs().Index)); err != nil {
		return "", err
	}
	for _, addr := range a.tasks() {
		if err := received(in, addr); err != nil {
			return "", err
		}
		if err := reachable(h, gw, addr, taskMAC); err != nil {
			return "", err
		}
	}
	return verify(in, out, a)
}

// running waits until what is sent by a link arrives. The kernel lets a link that was set up before its
// peer drop all until it has noticed that the peer is up, too, which it does in its own time. The other sends
// at once, but is told to IPv6 as ready no sooner.
func running(h *netlink.Handle, index int) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		l, err := h.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("veth: %w", err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("veth: the link stays %s", l.Attrs().OperState)
		}
	}
}

// received waits until what comes for an address is taken: for one of IPv6 the kernel adds the local route
// later, by a worker, even where it has nothing to detect.
func received(in *netlink.Handle, addr netip.Addr) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		routes, err := in.RouteGet(addr.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("address %s: its local route does not come: %v, %v", addr, routes, err)
		}
	}
}

// reachable makes addr known at the other end of dev.
func reachable(h *netlink.Handle, dev netlink.Link, addr netip.Addr, mac net.HardwareAddr) error {
	index := dev.Attrs().Index
	n := &netlink.Neigh{LinkIndex: index, IP: addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
	if err := h.NeighAdd(n); err != nil {
		return fmt.Errorf("neighbour %s: %w", addr, err)
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: index, Dst: host(addr), Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("route to %s: %w", addr, err)
	}
	return nil
}

func joinTask(in *netlink.Handle, out netlink.Link, a Addresses) error {
	for i, addr := range a.tasks() {
		router := a.routers()[i]
		if err := in.AddrAdd(out, &netlink.Addr{IPNet: host(addr), Flags: noDAD(addr)}); err != nil {
			return fmt.Errorf("address %s: %w", addr, err)
		}
		if err := reachable(in, out, router, routerMAC); err != nil {
			return err
		}
		all := &net.IPNet{IP: make(net.IP, addr.BitLen()/8), Mask: net.CIDRMask(0, addr.BitLen())}
		if err := in.RouteAdd(&netlink.Route{LinkIndex: out.Attrs().Index, Dst: all, Gw: router.AsSlice(), Src: addr.AsSlice()}); err != nil {
			return fmt.Errorf("default route by %s: %w", router, err)
		}
	}
	return nil
}

// verify reads back what the task has, and puts it in words.
func verify(in *netlink.Handle, out netlink.Link, a Addresses) (string, error) {
	links, err := in.LinkList()
	if err != nil {
		return "", fmt.Errorf("read back the links: %w", err)
	}
	var seen []string
	for _, l := range links {
		at := l.Attrs()
		up := at.Flags&net.FlagUp != 0
		if want := at.Name == "lo" || at.Name == inside.Link; up != want {
			return "", fmt.Errorf("read back: the link %s of the task is up: %t", at.Name, up)
		}
	}
	addrs, err := in.AddrList(out, netlink.FAMILY_ALL)
	if err != nil {
		return "", fmt.Errorf("read back the addresses: %w", err)
	}
	want := a.tasks()
	for _, x := range addrs {
		got, _ := netip.AddrFromSlice(x.IP)
		if got = got.Unmap(); !slices.Contains(want, got) {
			return "", fmt.Errorf("read back: the task has the address %s", got)
		}
		if x.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			return "", fmt.Errorf("read back: the address %s is not ready", got)
		}
		seen = append(seen, got.String())
	}
	if len(seen) != len(want) {
		return "", fmt.Errorf("read back: the task has %d addresses of %d", len(seen), len(want))
	}
	routes, err := in.RouteList(out, netlink.FAMILY_ALL)
	if err != nil {
		return "", fmt.Errorf("read back the routes: %w", err)
	}
	var via []string
	for _, r := range routes {
		if gw, ok := netip.AddrFromSlice(r.Gw); ok {
			via = append(via, gw.Unmap().String())
		}
	}
	for _, r := range a.routers() {
		if !slices.Contains(via, r.String()) {
			return "", fmt.Errorf("read back: the task has no route by %s", r)
		}
	}
	return fmt.Sprintf("%s %s via %s", inside.Link, strings.Join(seen, " "), strings.Join(via, " ")), nil
}
