// Package netpolicytest is a network for tests: a host, and an internet that it reaches by an uplink, in network
// namespaces of their own. No packet leaves them.
package netpolicytest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Where things are. Web, Other and their kin are hosts of the internet: each has a web server at port 80, and
// an echo at port 7 of TCP and UDP.
const (
	Host4, Host6   = "192.0.2.2", "2001:db8:1::2"
	Gate4, Gate6   = "192.0.2.1", "2001:db8:1::1"
	Web4, Web6     = "203.0.113.10", "2001:db8:2::10"
	Other4, Other6 = "203.0.113.11", "2001:db8:2::11"
	Private4       = "10.1.2.3"
	Metadata       = "169.254.169.254"
	Resolver       = "203.0.113.53"
)

// Namespace is a network namespace, with a thread in it.
type Namespace struct {
	// File holds it.
	File *os.File
	work chan func()
	done chan struct{}
}

// NewNamespace makes one, which ends with the test.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	n := &Namespace{work: make(chan func()), done: make(chan struct{})}
	made := make(chan error)
	go func() {
		defer close(n.done)
		runtime.LockOSThread() // for good
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.File, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
		for f := range n.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(n.work)
		<-n.done
		n.File.Close()
	})
	return n
}

// Do runs f on a thread in the namespace; sockets that it opens, and processes that it starts, stay there.
func (n *Namespace) Do(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error)
	n.work <- func() { done <- f() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// World is a host with an internet.
type World struct {
	Host, Internet *Namespace
	// ResolvConf is a file that names the internet's resolver.
	ResolvConf string

	mu    sync.Mutex
	conns map[net.Conn]bool
	names map[string]Answer
	asked []string
	seen  map[string]int
}

// Answer is what the resolver says of a name.
type Answer struct {
	TTL       uint32
	Addresses []string
	// Alias is a CNAME, which comes before the addresses.
	Alias string
	// Long makes the answer too long for UDP.
	Long bool
}

// NewWorld makes a World, with the current namespace as its host if host is nil. It ends with the test.
func NewWorld(t testing.TB, host *Namespace) *World {
	t.Helper()
	w := &World{Host: host, Internet: NewNamespace(t), conns: map[net.Conn]bool{}, names: map[string]Answer{}, seen: map[string]int{}}
	w.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(w.ResolvConf, []byte("nameserver "+Resolver+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := func() error { return w.uplink(t) }
	if host == nil {
		if err := up(); err != nil {
			t.Fatal(err)
		}
	} else {
		host.Do(t, up)
	}
	w.Internet.Do(t, func() error {
		return ready("wan0", "lo", []string{Gate4 + "/24", Gate6 + "/64"}, []string{
			Web4 + "/32", Other4 + "/32", Private4 + "/32", Metadata + "/32", Resolver + "/32", Web6 + "/128", Other6 + "/128",
		}, nil)
	})
	w.serve(t)
	return w
}

// uplink runs on the host.
func (w *World) uplink(t testing.TB) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "up0"
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = "wan0", netlink.NsFd(w.Internet.File.Fd())
	if err := netlink.LinkAdd(v); err != nil {
		return fmt.Errorf("uplink: %w", err)
	}
	t.Cleanup(func() {
		// Else it would end with its peer's namespace, some time after the leak check.
		h, err := w.handle()
		if err == nil {
			defer h.Close()
			err = h.LinkDel(v)
		}
		if err != nil {
			t.Errorf("remove the uplink: %v", err)
		}
	})
	in, err := netlink.NewHandleAt(netns.NsHandle(w.Internet.File.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer in.Close()
	wan, err := in.LinkByName("wan0")
	if err != nil {
		return err
	}
	if err := errors.Join(in.LinkSetIP6AddrGenMode(wan, 1), in.LinkSetUp(wan)); err != nil {
		return err
	}
	if err := ready("up0", "lo", []string{Host4 + "/24", Host6 + "/64"}, nil, []string{Gate4, Gate6}); err != nil {
		return err
	}
	// As it was up before its peer, it sends nothing until the kernel has noticed that.
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if wan, err = in.LinkByName("wan0"); err != nil || wan.Attrs().OperState == netlink.OperUp {
			return err
		}
	}
	return fmt.Errorf("wan0 stays %s", wan.Attrs().OperState)
}

func (w *World) handle() (*netlink.Handle, error) {
	if w.Host == nil {
		return netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	return netlink.NewHandleAt(netns.NsHandle(w.Host.File.Fd()), unix.NETLINK_ROUTE)
}

// ready sets links up, with these addresses and default routes.
func ready(link, lo string, own, more, gates []string) error {
	for name, addrs := range map[string][]string{link: own, lo: more} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if name == link { // else it has an address of its own, some time later
			if err := netlink.LinkSetIP6AddrGenMode(l, 1); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, s := range addrs {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			a.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, a); err != nil {
				return fmt.Errorf("address %s: %w", s, err)
			}
		}
	}
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, g := range gates {
		ip := net.ParseIP(g)
		all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		if ip.To4() == nil {
			all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: all, Gw: ip}); err != nil {
			return fmt.Errorf("default route by %s: %w", g, err)
		}
	}
	return nil
}

func (w *World) serve(t testing.TB) {
	var open []io.Closer
	var servers sync.WaitGroup
	t.Cleanup(func() {
		for _, c := range open {
			c.Close()
		}
		w.mu.Lock()
		for c := range w.conns {
			c.Close() // of a test that failed, the other end may stay open
		}
		w.mu.Unlock()
		servers.Wait()
	})
	w.Internet.Do(t, func() error {
		for _, a := range []string{Web4, Web6, Other4, Other6, Private4, Metadata, Gate4} {
			for _, port := range []string{"80", "7"} {
				l, err := net.Listen("tcp", net.JoinHostPort(a, port))
				if err != nil {
					return err
				}
				open = append(open, l)
				servers.Go(func() { w.accept(l, port == "80") })
			}
			p, err := net.ListenPacket("udp", net.JoinHostPort(a, "7"))
			if err != nil {
				return err
			}
			open = append(open, p)
			servers.Go(func() { w.echoUDP(p) })
		}
		p, err := net.ListenPacket("udp", net.JoinHostPort(Resolver, "53"))
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", net.JoinHostPort(Resolver, "53"))
		if err != nil {
			return err
		}
		open = append(open, p, l)
		for _, s := range []*dns.Server{{PacketConn: p, Handler: dns.HandlerFunc(w.answer)}, {Listener: l, Handler: dns.HandlerFunc(w.answer)}} {
			servers.Go(func() { s.ActivateAndServe() }) //nolint:errcheck // ends with its socket
		}
		return nil
	})
}

func (w *World) saw(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[what]++
}

// Seen is how many connections, or datagrams, came to "tcp ADDRESS:PORT" or "udp ADDRESS:PORT".
func (w *World) Seen(what string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[what]
}

// SeenAny is what came to the internet, but for questions to its resolver.
func (w *World) SeenAny() (all []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k := range w.seen {
		all = append(all, k)
	}
	return all
}

func (w *World) accept(l net.Listener, web bool) {
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		w.saw("tcp " + l.Addr().String())
		w.mu.Lock()
		w.conns[c] = true
		w.mu.Unlock()
		conns.Go(func() {
			defer func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				delete(w.conns, c)
				c.Close()
			}()
			if !web {
				// Not by splice(2), whose pipes stay for a while.
				io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) //nolint:errcheck // the other end is the test
				return
			}
			b := make([]byte, 4096)
			n := 0
			for n < len(b) && !strings.Contains(string(b[:n]), "\r\n\r\n") {
				k, err := c.Read(b[n:])
				if n += k; err != nil {
					return
				}
			}
			body := "hello from " + l.Addr().(*net.TCPAddr).IP.String() + "\n"
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
		})
	}
}

func (w *World) echoUDP(p net.PacketConn) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := p.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			w.saw("udp " + p.LocalAddr().String())
			p.WriteTo(b[:n], from) //nolint:errcheck // the other end is the test
		}
	}
}

// Name has the resolver say something of a name.
func (w *World) Name(name string, a Answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names[dns.Fqdn(name)] = a
}

// Asked are the names that the internet's resolver was asked for.
func (w *World) Asked() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.asked...)
}

func (w *World) answer(rw dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	x := q.Question[0]
	w.mu.Lock()
	a, known := w.names[x.Name]
	w.asked = append(w.asked, strings.TrimSuffix(x.Name, "."))
	w.mu.Unlock()
	if !known {
		m.Rcode = dns.RcodeNameError
	}
	if a.Long && rw.RemoteAddr().Network() == "udp" {
		m.Truncated = true
		rw.WriteMsg(m) //nolint:errcheck // the asker asks again
		return
	}
	owner := x.Name
	if a.Alias != "" {
		m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: a.TTL}, Target: dns.Fqdn(a.Alias)})
		owner = dns.Fqdn(a.Alias)
	}
	for _, s := range a.Addresses {
		ip := netip.MustParseAddr(s)
		switch {
		case ip.Is4() && x.Qtype == dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: a.TTL}, A: ip.AsSlice()})
		case ip.Is6() && x.Qtype == dns.TypeAAAA:
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeAAAA, Class: dns.ClassINET, Ttl: a.TTL}, AAAA: ip.AsSlice()})
		}
	}
	rw.WriteMsg(m) //nolint:errcheck // the asker asks again
}
