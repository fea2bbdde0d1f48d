package netpolicy

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
	"github.com/sandboxd/sandboxd/netpolicy/netpolicytest"
)

var update = flag.Bool("update", false, "write what is found to testdata")

// bench is a host with an internet, a task's namespace and its router.
type bench struct {
	t      testing.TB
	world  *netpolicytest.World
	m      *Manager
	task   *netpolicytest.Namespace
	router *Router
	addrs  Addresses
}

func require(t testing.TB) {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	// The standard library keeps the pipes of splice(2) for later, until they are collected: twice.
	t.Cleanup(func() { runtime.GC(); runtime.GC() })
}

func newManager(t testing.TB, w *netpolicytest.World, cfg Config) *Manager {
	t.Helper()
	cfg.ResolvConf = w.ResolvConf
	m, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func newBench(t testing.TB, cfg Config, spec RouterSpec) *bench {
	t.Helper()
	require(t)
	b := &bench{t: t, world: netpolicytest.NewWorld(t, nil)}
	b.m = newManager(t, b.world, cfg)
	b.attach(spec)
	return b
}

// attach makes a router with a task's namespace.
func (b *bench) attach(spec RouterSpec) {
	b.t.Helper()
	var err error
	if b.addrs, err = b.m.Addresses(spec.Rules); err != nil {
		b.t.Fatal(err)
	}
	spec.Addresses = b.addrs
	b.task = netpolicytest.NewNamespace(b.t)
	if b.router, err = b.m.Start(spec); err != nil {
		b.t.Fatal(err)
	}
	r := b.router
	b.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			b.t.Error(err)
		}
	})
	if _, err = b.router.Attach(b.task.File); err != nil {
		b.t.Fatal(err)
	}
}

// rule is one with an address or a name, a port unless 0, and tcp, udp or both.
func rule(host string, port uint16, proto string) Rule {
	r := Rule{Text: fmt.Sprintf("%s:%d/%s", host, port, proto), TCP: proto != "udp", UDP: proto != "tcp"}
	if port != 0 {
		r.Ports = []Ports{{port, port}}
	}
	if p, err := netip.ParsePrefix(host); err == nil {
		r.Prefix = p
	} else if a, err := netip.ParseAddr(host); err == nil {
		r.Prefix = netip.PrefixFrom(a, a.BitLen())
	} else {
		r.Name = host
	}
	return r
}

// dial connects from the task's namespace.
func (b *bench) dial(network, address string) (c net.Conn, err error) {
	b.t.Helper()
	b.task.Do(b.t, func() error {
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), network, address)
		return nil
	})
	if err == nil {
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			b.t.Fatal(err)
		}
	}
	return c, err
}

// echo sends a few bytes, by a connection of its own, and wants them back.
func (b *bench) echo(network, address string) error {
	b.t.Helper()
	c, err := b.dial(network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	return again(c)
}

// again sends a few bytes and wants them back.
func again(c net.Conn) error {
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

func (b *bench) mustEcho(network, address string) {
	b.t.Helper()
	if err := b.echo(network, address); err != nil {
		b.t.Errorf("%s %s: %v", network, address, err)
	}
}

// mustRefuse wants one of these errors.
func (b *bench) mustRefuse(network, address string, want ...error) {
	b.t.Helper()
	err := b.echo(network, address)
	if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
		b.t.Errorf("%s %s: %v, want %v", network, address, err, want)
	}
}

// mustHearNothing sends by UDP what is dropped.
func (b *bench) mustHearNothing(address string) {
	b.t.Helper()
	c, err := b.dial("udp", address)
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(100 * time.Millisecond)) // nothing is to come
	if err := again(c); err == nil {
		b.t.Errorf("%s answers", address)
	}
}

// ask asks the router's resolver.
func (b *bench) ask(network, name string, kind uint16) *dns.Msg {
	b.t.Helper()
	c, err := b.dial(network, net.JoinHostPort(b.addrs.Router4.String(), "53"))
	if err != nil {
		b.t.Fatal(err)
	}
	conn := &dns.Conn{Conn: c}
	defer conn.Close()
	if err := conn.WriteMsg(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)); err != nil {
		b.t.Fatal(err)
	}
	m, err := conn.ReadMsg()
	if err != nil {
		b.t.Fatalf("ask for %s: %v", name, err)
	}
	return m
}

// resolve returns the addresses of a name, and what the resolver says.
func (b *bench) resolve(name string) (all []string, code string) {
	b.t.Helper()
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		m := b.ask("udp", name, kind)
		code = dns.RcodeToString[m.Rcode]
		found, _ := addresses(m, strings.TrimSuffix(m.Question[0].Name, "."), kind)
		for _, a := range found {
			all = append(all, a.String())
		}
	}
	return all, code
}

func (b *bench) mustResolve(name string, want ...string) {
	b.t.Helper()
	if all, code := b.resolve(name); !slices.Equal(all, want) {
		b.t.Errorf("%s is %v, %s, want %v", name, all, code, want)
	}
}

func (b *bench) finish() Report {
	b.t.Helper()
	r, err := b.router.Finish()
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// lines are what was refused, in short.
func (r Report) lines() (all []string) {
	for _, d := range r.Denied {
		a := ""
		if d.Address.IsValid() {
			a = netip.AddrPortFrom(d.Address, d.Port).String()
		}
		all = append(all, strings.Join(strings.Fields(fmt.Sprintf("%d %s %s %s", d.Count, d.Protocol, a, d.Name)), " ")+": "+d.Reason)
	}
	return all
}

func wantLines(t testing.TB, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// TestReport: what passes is counted by rule to the byte, what does not is listed each, and reaches
// nobody.
func TestReport(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{Rules: []Rule{
		rule(netpolicytest.Web4, 7, "tcp"), rule("2001:db8:2::/64", 7, "both"), rule("10.0.0.0/8", 7, "udp"), rule("0.0.0.0/0", 80, "tcp"),
	}})
	b.mustEcho("tcp", netpolicytest.Web4+":7")
	b.mustEcho("tcp", netpolicytest.Web4+":7")
	b.mustEcho("tcp", "["+netpolicytest.Web6+"]:7")
	b.mustEcho("udp", "["+netpolicytest.Other6+"]:7")
	b.mustEcho("udp", netpolicytest.Private4+":7")
	refused := syscall.ECONNREFUSED
	for range 3 {
		b.mustRefuse("tcp", netpolicytest.Other4+":7", refused)
	}
	b.mustRefuse("tcp", netpolicytest.Private4+":7", refused)
	b.mustRefuse("tcp", netpolicytest.Metadata+":80", refused)
	b.mustRefuse("tcp", netpolicytest.Host4+":80", refused)
	b.mustRefuse("tcp", "[2001:db8:1::2]:7", refused)
	b.mustRefuse("tcp", "[64:ff9b::a9fe:a9fe]:80", refused)
	b.mustRefuse("udp", netpolicytest.Web4+":7", unix.EHOSTUNREACH)
	b.mustRefuse("udp", "["+netpolicytest.Web6+"]:8", unix.EACCES)
	b.mustRefuse("tcp", b.addrs.Router4.String()+":80", refused) // though 0.0.0.0/0 has it
	b.mustRefuse("tcp", b.addrs.Router4.String()+":1", refused)
	// More refusals than the kernel would say in a second, were it left to itself.
	for range 30 {
		b.mustRefuse("udp", netpolicytest.Web4+":9", unix.EHOSTUNREACH)
	}
	r := b.finish()
	wantLines(t, r.lines(), []string{
		"3 tcp 203.0.113.11:7: no rule allows it",
		"1 tcp 10.1.2.3:7: no rule allows it",
		"1 tcp 169.254.169.254:80: deny 169.254.0.0/16",
		"1 tcp 192.0.2.2:80: the host's own address",
		"1 tcp [2001:db8:1::2]:7: the host's own address",
		"1 tcp [64:ff9b::a9fe:a9fe]:80: deny 169.254.0.0/16",
		"1 udp 203.0.113.10:7: no rule allows it",
		"1 udp [2001:db8:2::10]:8: no rule allows it",
		"1 tcp 198.19.255.1:80: the link's own address",
		"1 tcp 198.19.255.1:1: the link's own address",
		"30 udp 203.0.113.10:9: no rule allows it",
	})
	if r.DeniedTotal != 42 {
		t.Errorf("%d were refused in all, want 42", r.DeniedTotal)
	}
	want := []Traffic{
		{"10.0.0.0/8:7/udp", 1, 5, 5}, {"2001:db8:2::/64:7/both", 2, 10, 10}, {"203.0.113.10:7/tcp", 2, 10, 10},
	}
	if !reflect.DeepEqual(r.Traffic, want) {
		t.Errorf("traffic %+v, want %+v", r.Traffic, want)
	}
	reached := b.world.SeenAny()
	wantLines(t, reached, []string{"tcp 203.0.113.10:7", "tcp [2001:db8:2::10]:7", "udp [2001:db8:2::11]:7", "udp 10.1.2.3:7"})
}

// TestLinkLocal: what is on the link alone is refused at once, as all else, and multicast is counted.
func TestLinkLocal(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{Rules: []Rule{rule("::/0", 0, "both"), rule("0.0.0.0/0", 0, "both")}})
	b.mustRefuse("tcp", "[fe80::1%net0]:80", syscall.ECONNREFUSED)
	b.mustRefuse("udp", "[fe80::1%net0]:80", unix.EACCES)
	b.mustRefuse("tcp", "169.254.1.1:80", syscall.ECONNREFUSED)
	b.mustHearNothing("224.0.0.251:5353")
	b.mustHearNothing("[ff02::fb%net0]:5353")
	wantLines(t, b.finish().lines(), []string{
		"1 tcp [fe80::1]:80: deny fe80::/10", "1 udp [fe80::1]:80: deny fe80::/10", "1 tcp 169.254.1.1:80: deny 169.254.0.0/16",
		"1 udp 224.0.0.251:5353: deny 224.0.0.0/4", "1 udp [ff02::fb]:5353: deny ff00::/8",
	})
}

// TestNames: names are resolved if a rule has them, and lead where they do for as long as they say.
func TestNames(t *testing.T) {
	b := newBench(t, Config{MinTTL: time.Second}, RouterSpec{Rules: []Rule{rule("web.example", 7, "both"), rule("*.wild.example", 7, "tcp")}})
	b.world.Name("web.example", netpolicytest.Answer{TTL: 1, Addresses: []string{netpolicytest.Web4, netpolicytest.Web6}})
	b.world.Name("a.b.wild.example", netpolicytest.Answer{TTL: 100, Alias: "elsewhere.example", Addresses: []string{netpolicytest.Other4}})
	b.world.Name("long.wild.example", netpolicytest.Answer{TTL: 100, Long: true, Addresses: []string{netpolicytest.Private4}})
	b.world.Name("secret.example", netpolicytest.Answer{TTL: 100, Addresses: []string{netpolicytest.Other4}})

	b.mustRefuse("tcp", netpolicytest.Web4+":7", syscall.ECONNREFUSED) // not resolved yet
	b.mustResolve("WEB.example", netpolicytest.Web4, netpolicytest.Web6)
	b.mustEcho("tcp", netpolicytest.Web4+":7")
	b.mustEcho("udp", "["+netpolicytest.Web6+"]:7")
	b.mustRefuse("tcp", netpolicytest.Web4+":80", syscall.ECONNREFUSED)
	b.mustResolve("a.b.wild.example", netpolicytest.Other4)
	b.mustEcho("tcp", netpolicytest.Other4+":7")
	b.mustRefuse("udp", netpolicytest.Other4+":7", unix.EHOSTUNREACH) // that rule has no UDP
	b.mustResolve("long.wild.example", netpolicytest.Private4)
	for _, name := range []string{"secret.example", "wild.example", "xweb.example", "web.example.secret.example"} {
		if all, code := b.resolve(name); code != "REFUSED" || len(all) > 0 {
			t.Errorf("%s: %v, %s", name, all, code)
		}
	}
	if m := b.ask("tcp", "web.example", dns.TypeHTTPS); m.Rcode != dns.RcodeSuccess || len(m.Answer) > 0 {
		t.Errorf("HTTPS record: %v", m)
	}
	if all, code := b.resolve("nothing.wild.example"); code != "NXDOMAIN" || len(all) > 0 {
		t.Errorf("a name that is not there: %v, %s", all, code)
	}
	for _, asked := range b.world.Asked() {
		if strings.Contains(asked, "secret") {
			t.Errorf("the host's resolver was asked for %s", asked)
		}
	}

	// What is connected stays so, and what is not must ask again.
	var kept []net.Conn
	b.mustResolve("web.example", netpolicytest.Web4, netpolicytest.Web6)
	for _, network := range []string{"tcp", "udp"} {
		c, err := b.dial(network, netpolicytest.Web4+":7")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := again(c); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, c)
	}
	for end := time.Now().Add(10 * time.Second); ; {
		if err := b.echo("tcp", netpolicytest.Web4+":7"); errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("an address outlives its TTL")
		}
		time.Sleep(50 * time.Millisecond) // the TTL is a time
	}
	for _, c := range kept {
		if err := again(c); err != nil {
			t.Errorf("a %s connection ended with the TTL: %v", c.LocalAddr().Network(), err)
		}
	}
	b.mustResolve("web.example", netpolicytest.Web4, netpolicytest.Web6)
	b.mustEcho("tcp", netpolicytest.Web4+":7")

	// Another task has not asked.
	b.attach(RouterSpec{Rules: []Rule{rule("web.example", 7, "both")}})
	b.mustRefuse("tcp", netpolicytest.Web4+":7", syscall.ECONNREFUSED)
}

// TestRebinding: a name that leads to the host, or to what is denied, leads nowhere, when it is resolved and when it is used.
func TestRebinding(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{Rules: []Rule{rule("evil.example", 0, "both"), rule("::/0", 0, "both")}})
	for _, a := range []string{
		"127.0.0.1", "0.0.0.0", netpolicytest.Metadata, netpolicytest.Host4, netpolicytest.Host6, "::1", "fe80::1", "::ffff:127.0.0.1",
		"64:ff9b::7f00:1", "2002:a9fe:a9fe::1", "fd00:ec2::254", "224.0.0.1", "255.255.255.255", "192.0.2.255", "64:ff9b::c000:202",
	} {
		b.world.Name("evil.example", netpolicytest.Answer{TTL: 60, Addresses: []string{a}})
		if all, code := b.resolve("evil.example"); len(all) > 0 {
			t.Errorf("%s was resolved: %v, %s", a, all, code)
		}
	}
	// Among others, only it is left out.
	b.world.Name("evil.example", netpolicytest.Answer{TTL: 60, Addresses: []string{netpolicytest.Metadata, netpolicytest.Web4}})
	b.mustResolve("evil.example", netpolicytest.Web4)
	b.mustEcho("tcp", netpolicytest.Web4+":7")
	// An address that becomes the host's own after it was resolved: the kernel's rules know
	// nothing of that.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	own := &netlink.Addr{IPNet: host(netip.MustParseAddr(netpolicytest.Web4))}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.AddrAdd(lo, own)); err != nil {
		t.Fatal(err)
	}
	defer netlink.AddrDel(lo, own)
	l, err := net.Listen("tcp", netpolicytest.Web4+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Error("the host was reached")
			c.Close()
		}
	}()
	b.mustRefuse("tcp", netpolicytest.Web4+":7", unix.ECONNRESET, io.EOF, unix.EPIPE)
	b.mustHearNothing(netpolicytest.Web4 + ":9")
	lines := b.finish().lines()
	for _, want := range []string{
		"1 tcp 203.0.113.10:7 evil.example: the host's own address", "1 dns 127.0.0.1:0 evil.example: deny 127.0.0.0/8",
		"1 dns [64:ff9b::7f00:1]:0 evil.example: deny 127.0.0.0/8", "1 dns 192.0.2.255:0 evil.example: the host's own address",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("%q is not among\n%s", want, strings.Join(lines, "\n"))
		}
	}
}

// TestRelayOfTCP: bytes, their number, the end of either way, and refusals come through.
func TestRelayOfTCP(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{Rules: []Rule{rule(netpolicytest.Web4, 0, "tcp")}})
	c, err := b.dial("tcp", netpolicytest.Web4+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const size = 20 << 20
	data := make([]byte, size)
	rand.Read(data)
	go func() {
		c.Write(data)
		c.(*net.TCPConn).CloseWrite()
	}()
	back, err := io.ReadAll(c) // to the end, which comes after that of the other way
	if err != nil || !bytes.Equal(back, data) {
		t.Errorf("%d bytes came back, %v", len(back), err)
	}
	// Nobody listens there: that is only known after the task is connected.
	b.mustRefuse("tcp", netpolicytest.Web4+":81", unix.ECONNRESET, unix.EPIPE)
	c.Close()
	r := b.finish()
	if want := []Traffic{{netpolicytest.Web4 + ":0/tcp", 2, size, size}}; !reflect.DeepEqual(r.Traffic, want) {
		t.Errorf("traffic %+v, want %+v", r.Traffic, want)
	}
}

// TestLastWords: what a task sent last is passed on after its end, however soon that came.
func TestLastWords(t *testing.T) {
	const words = "the last words"
	b := newBench(t, Config{}, RouterSpec{})
	got := make(chan string)
	var l net.Listener
	b.world.Internet.Do(t, func() (err error) {
		l, err = net.Listen("tcp", netpolicytest.Web4+":9000")
		return err
	})
	defer l.Close()
	go func() {
		defer close(got)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all, err := io.ReadAll(c)
			got <- fmt.Sprint(string(all), err)
			c.Close()
		}
	}()
	for range 20 {
		b.attach(RouterSpec{Rules: []Rule{rule(netpolicytest.Web4, 0, "tcp")}})
		c, err := b.dial("tcp", netpolicytest.Web4+":9000")
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(words))
		c.Close()
		r := b.finish()
		if want := []Traffic{{netpolicytest.Web4 + ":0/tcp", 1, int64(len(words)), 0}}; !reflect.DeepEqual(r.Traffic, want) {
			t.Errorf("traffic %+v, want %+v", r.Traffic, want)
		}
		select {
		case s := <-got:
			if s != words+"<nil>" {
				t.Errorf("%q came through", s)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no last words came through")
		}
	}
}

// TestAbandonedConnection: what the task gave up before it was connected does not keep it, if it sent nothing.
func TestAbandonedConnection(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{})
	const silent = "203.0.113.99" // nobody answers there
	b.world.Internet.Do(t, func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: host(netip.MustParseAddr(silent)), Type: unix.RTN_BLACKHOLE})
	})
	for words, given := range map[string]bool{"": true, "words": false} {
		b.attach(RouterSpec{Rules: []Rule{rule(silent, 80, "tcp")}})
		c, err := b.dial("tcp", silent+":80")
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(words))
		c.Close()
		b.router.drain()
		b.router.live.mu.Lock()
		if sending := b.router.live.sending; (sending == 0) != given {
			t.Errorf("after %q, %d connections are still waited for", words, sending)
		}
		b.router.live.mu.Unlock()
		if r := b.finish(); len(r.Traffic) != 1 || r.Traffic[0].Connections != 1 {
			t.Errorf("traffic %+v", r.Traffic)
		}
	}
}

// TestLastDatagrams: so it is with datagrams, those of a flow that just began among them.
func TestLastDatagrams(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{})
	const tasks, flows, each = 15, 5, 20
	for _, a := range []string{netpolicytest.Web4, netpolicytest.Web6} {
		to := net.JoinHostPort(a, "7")
		for range tasks {
			b.attach(RouterSpec{Rules: []Rule{rule(a, 7, "udp")}})
			var open []net.Conn // together, for ports of their own
			for range flows {
				c, err := b.dial("udp", to)
				if err != nil {
					t.Fatal(err)
				}
				for range each {
					c.Write([]byte("x"))
				}
				open = append(open, c)
			}
			for _, c := range open {
				c.Close()
			}
			var got Traffic
			r := b.finish()
			for _, x := range r.Traffic {
				got = x
			}
			if len(r.Denied) > 0 || got.Sent != flows*each || got.Connections != flows {
				t.Errorf("traffic %+v, want %d bytes by %d flows; refused: %q", got, flows*each, flows, r.lines())
			}
		}
		for end := time.Now().Add(10 * time.Second); b.world.Seen("udp "+to) < tasks*flows*each; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d datagrams arrived at %s, want %d", b.world.Seen("udp "+to), to, tasks*flows*each)
			}
		}
	}
}

// TestRelayOfUDP: answers come from where the question went, also to a socket that is not connected,
// and large ones in pieces.
func TestRelayOfUDP(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{Rules: []Rule{rule("0.0.0.0/0", 7, "udp"), rule("::/0", 7, "udp")}})
	var p net.PacketConn
	b.task.Do(t, func() (err error) {
		p, err = net.ListenPacket("udp", ":0")
		return err
	})
	defer p.Close()
	var sent, lost int64
	for _, size := range []int{1, 0, 1400, 9000, 60000} {
		for _, a := range []string{netpolicytest.Web4, netpolicytest.Other4, netpolicytest.Web6} {
			to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(a), 7))
			data := bytes.Repeat([]byte{byte(size)}, size)
			back := make([]byte, 1<<16)
			came := false
			for try := 1; try <= 3 && !came; try++ { // one may be lost on a busy machine, but not each
				p.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := p.WriteTo(data, to); err != nil {
					t.Fatal(err)
				}
				sent += int64(size)
				n, from, err := p.ReadFrom(back)
				for err == nil && from.String() != to.String() && lost > 0 { // late
					n, from, err = p.ReadFrom(back)
				}
				if came = err == nil; !came {
					lost += int64(size)
					t.Logf("try %d: %d bytes to %s, which saw %d: %v; the task's network: %s; the router's: %s", try, size, to,
						b.world.Seen("udp "+to.String()), err, losses(b.task.File), losses(b.router.ns.file))
				} else if from.String() != to.String() || !bytes.Equal(back[:n], data) {
					t.Fatalf("%d bytes to %s: %d bytes from %v", size, to, n, from)
				}
			}
			if !came {
				t.Fatalf("%d bytes to %s: none came back; %+v", size, to, b.finish())
			}
		}
	}
	if err := b.echo("udp", netpolicytest.Web4+":7"); err != nil {
		t.Error(err)
	}
	r := b.finish()
	if len(r.Denied) > 0 {
		t.Errorf("refused: %q", r.lines())
	}
	var all Traffic
	for _, x := range r.Traffic {
		all.Sent, all.Received, all.Connections = all.Sent+x.Sent, all.Received+x.Received, all.Connections+x.Connections
	}
	if sent += 5; all.Sent < sent-lost || all.Sent > sent || all.Received < sent-lost || all.Received > all.Sent || all.Connections != 4 {
		t.Errorf("traffic %+v, want %d bytes each way by 4 flows, less %d", r.Traffic, sent, lost)
	}
}

// losses are the counters of a network namespace that say why a packet went nowhere.
func losses(ns *os.File) string {
	var lines []string
	run := make(chan struct{})
	go func() {
		defer close(run)
		runtime.LockOSThread() // for good
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			lines = append(lines, err.Error())
			return
		}
		for _, f := range []string{"snmp6", "snmp", "dev"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + f)
			if err != nil {
				lines = append(lines, err.Error())
			}
			for _, l := range strings.Split(string(b), "\n") {
				if f != "snmp6" || !strings.HasSuffix(strings.TrimSpace(l), "\t0") {
					lines = append(lines, strings.Join(strings.Fields(l), " "))
				}
			}
		}
	}()
	<-run
	return strings.Join(lines, "; ")
}

// TestOtherProtocols: what is neither TCP nor UDP is refused and told of, whatever the rules.
func TestOtherProtocols(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{Rules: []Rule{rule("0.0.0.0/0", 0, "both"), rule("::/0", 0, "both")}})
	send := func(network, address string, data []byte, answer error) {
		t.Helper()
		b.task.Do(t, func() error {
			c, err := net.Dial(network, address)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Write(data); err != nil || answer == nil {
				return err
			}
			if _, err := c.Read(make([]byte, 1500)); !errors.Is(err, answer) {
				t.Errorf("%s %s: %v, want %v", network, address, err, answer)
			}
			return nil
		})
	}
	echo4, echo6 := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, []byte{128, 0, 0, 0, 0, 0, 0, 0}
	send("ip4:icmp", netpolicytest.Web4, echo4, unix.EHOSTUNREACH)
	send("ip4:icmp", b.addrs.Router4.String(), echo4, unix.EHOSTUNREACH)
	send("ip6:ipv6-icmp", netpolicytest.Web6, echo6, unix.EACCES)
	send("ip4:132", netpolicytest.Web4, make([]byte, 12), unix.EHOSTUNREACH)
	send("ip4:icmp", "224.0.0.5", echo4, nil) // nobody answers to a multicast
	wantLines(t, b.finish().lines(), []string{
		"1 icmp 203.0.113.10:0: no rule allows it", "1 icmp 198.19.255.1:0: the link's own address",
		"1 icmpv6 [2001:db8:2::10]:0: no rule allows it", "1 132 203.0.113.10:0: no rule allows it", "1 icmp 224.0.0.5:0: deny 224.0.0.0/4",
	})
}

// TestForgedSource: who has another's address as source, which takes capabilities that no task has, reaches nothing.
func TestForgedSource(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{Rules: []Rule{rule("0.0.0.0/0", 0, "both"), rule("::/0", 0, "both")}})
	for from, to := range map[string]string{"192.0.2.77": netpolicytest.Web4, "2001:db8:1::77": netpolicytest.Web6} {
		to = net.JoinHostPort(to, "7")
		b.task.Do(t, func() error {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}, Control: func(network, _ string, c syscall.RawConn) error {
				return transparent(network, "", c)
			}}
			c, err := d.Dial("udp", to)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("x"))
			return err
		})
		b.mustEcho("udp", to)
		if n := b.world.Seen("udp " + to); n != 1 {
			t.Errorf("%d datagrams arrived at %s, want 1", n, to)
		}
	}
}

// TestAudit: all passes but what is denied, and the rules that it takes are told.
func TestAudit(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{Audit: true, Rules: []Rule{rule("known.example", 7, "tcp")}})
	b.world.Name("web.example", netpolicytest.Answer{TTL: 60, Addresses: []string{netpolicytest.Web4}})
	b.world.Name("known.example", netpolicytest.Answer{TTL: 60, Addresses: []string{netpolicytest.Private4}})
	b.mustResolve("web.example", netpolicytest.Web4)
	b.mustResolve("known.example", netpolicytest.Private4)
	b.mustEcho("tcp", netpolicytest.Web4+":7")
	b.mustEcho("tcp", netpolicytest.Private4+":7")
	b.mustEcho("udp", netpolicytest.Other4+":7")
	b.mustEcho("tcp", "["+netpolicytest.Web6+"]:7")
	b.mustRefuse("tcp", netpolicytest.Metadata+":80", syscall.ECONNREFUSED)
	r := b.finish()
	wantLines(t, r.Needed, []string{"web.example:7/tcp", "known.example:7/tcp", "203.0.113.11:7/udp", "[2001:db8:2::10]:7/tcp"})
	wantLines(t, r.lines(), []string{"1 tcp 169.254.169.254:80: deny 169.254.0.0/16"})
}

// TestSharedAddress: an address that several names lead to is permitted for as long as any of them says, and an
// audit's list has all of them.
func TestSharedAddress(t *testing.T) {
	names := []Rule{rule("long.example", 7, "tcp"), rule("short.example", 7, "tcp")}
	b := newBench(t, Config{MinTTL: time.Second}, RouterSpec{Rules: names})
	b.world.Name("long.example", netpolicytest.Answer{TTL: 3600, Addresses: []string{netpolicytest.Web4}})
	b.world.Name("short.example", netpolicytest.Answer{TTL: 1, Addresses: []string{netpolicytest.Web4}})
	b.mustResolve("long.example", netpolicytest.Web4)
	b.mustResolve("short.example", netpolicytest.Web4)
	time.Sleep(1500 * time.Millisecond) // the TTL is a time
	b.mustEcho("tcp", netpolicytest.Web4+":7")

	b.attach(RouterSpec{Audit: true, Rules: names[:1]})
	for _, name := range []string{"long.example", "short.example", "other.example"} {
		b.world.Name(name, netpolicytest.Answer{TTL: 60, Addresses: []string{netpolicytest.Web4}})
		b.mustResolve(name, netpolicytest.Web4)
	}
	b.mustEcho("tcp", netpolicytest.Web4+":7")
	wantLines(t, b.finish().Needed, []string{"long.example:7/tcp", "short.example:7/tcp", "other.example:7/tcp"})
}

// TestManyConnections: what is beyond the bound is refused, and told of.
func TestManyConnections(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{Rules: []Rule{rule("0.0.0.0/0", 7, "tcp")}})
	const places = 3
	b.router.tcp.Add(maxTCP - places) // as if there were so many
	for range places {
		c, err := b.dial("tcp", netpolicytest.Web4+":7")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := again(c); err != nil {
			t.Fatal(err)
		}
	}
	b.mustRefuse("tcp", netpolicytest.Web4+":7", unix.ECONNRESET, unix.EPIPE, io.EOF)
	wantLines(t, b.finish().lines(), []string{"1 tcp 203.0.113.10:7: too many connections at once"})
}

// TestManyConnectionsOfAll: all tasks together leave descriptors to others.
func TestManyConnectionsOfAll(t *testing.T) {
	require(t)
	b := &bench{t: t, world: netpolicytest.NewWorld(t, nil)}
	b.m = newManager(t, b.world, Config{})
	b.m.relayed = make(chan struct{}, 1)
	b.attach(RouterSpec{Rules: []Rule{rule("0.0.0.0/0", 7, "both")}})
	b.mustEcho("udp", netpolicytest.Web4+":7") // its flow goes on
	b.mustRefuse("tcp", netpolicytest.Web4+":7", unix.ECONNRESET, unix.EPIPE, io.EOF)
	b.mustHearNothing(netpolicytest.Other4 + ":7")
	b.finish()
	if n := len(b.m.relayed); n > 0 {
		t.Errorf("%d places were not given back", n)
	}
}

// TestManyRefusals: a report has a bound, and its total has none.
func TestManyRefusals(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{})
	for port := range maxReported + 100 {
		b.mustRefuse("tcp", fmt.Sprintf("%s:%d", netpolicytest.Web4, port+1), syscall.ECONNREFUSED)
	}
	r := b.finish()
	if len(r.Denied) != maxReported || r.DeniedTotal != maxReported+100 {
		t.Errorf("%d are listed of %d", len(r.Denied), r.DeniedTotal)
	}
}

// TestAddressesHideNothing: the link has addresses that the host does not reach otherwise.
func TestAddressesHideNothing(t *testing.T) {
	require(t)
	m := newManager(t, netpolicytest.NewWorld(t, nil), Config{})
	up, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	a, err := m.Addresses(nil)
	if err != nil || a.Router4.String() != candidates[v4][0][1] {
		t.Fatalf("%v, %v", a, err)
	}
	if b, err := m.Addresses([]Rule{rule("198.19.0.0/16", 0, "both"), rule("0.0.0.0/0", 0, "both")}); err != nil || b.Router4 == a.Router4 {
		t.Errorf("with a rule about it: %v, %v", b, err)
	}
	for i, c := range candidates[v4] {
		if a, err = m.Addresses(nil); err != nil || a.Task4.String() != c[0] {
			t.Errorf("with %d taken: %v, %v", i, a, err)
		}
		p, err := netip.MustParseAddr(c[0]).Prefix(24)
		if err != nil {
			t.Fatal(err)
		}
		err = netlink.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Dst: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Addresses(nil); !errors.Is(err, ErrUnsupported) {
		t.Errorf("with all taken: %v", err)
	}
}

// TestNoRouteForIPv6: a host without IPv6 is told no such address.
func TestNoRouteForIPv6(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{Rules: []Rule{rule("web.example", 7, "both")}})
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if r.Gw != nil {
			if err := netlink.RouteDel(&r); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.world.Name("web.example", netpolicytest.Answer{TTL: 60, Addresses: []string{netpolicytest.Web4, netpolicytest.Web6}})
	b.mustResolve("web.example", netpolicytest.Web4)
}

// TestNothingIsLeft: 500 tasks in a row, each with something that passes and something that does not, change
// nothing on the host, while they run and after.
func TestNothingIsLeft(t *testing.T) {
	require(t)
	w := netpolicytest.NewWorld(t, nil)
	w.Name("web.example", netpolicytest.Answer{TTL: 60, Addresses: []string{netpolicytest.Web4}})
	m := newManager(t, w, Config{})
	if err := m.Probe(); err != nil {
		t.Fatal(err)
	}
	before := hostState(t)
	n := 500
	if os.Getenv("SANDBOXD_VM") == "1" {
		n = 50 // it is slow
	}
	for i := range n {
		func() {
			task, err := newNamespace()
			if err != nil {
				t.Fatal(err)
			}
			defer task.close()
			spec := RouterSpec{Rules: []Rule{rule("web.example", 7, "both"), rule("10.0.0.0/8", 0, "both")}}
			if spec.Addresses, err = m.Addresses(spec.Rules); err != nil {
				t.Fatal(err)
			}
			r, err := m.Start(spec)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err := r.Attach(task.file); err != nil {
				t.Fatal(err)
			}
			err = task.do(func() error {
				c, err := net.Dial("tcp", netpolicytest.Private4+":7")
				if err != nil {
					return err
				}
				defer c.Close()
				if _, err := net.Dial("tcp", netpolicytest.Web4+":7"); !errors.Is(err, syscall.ECONNREFUSED) {
					return fmt.Errorf("not refused: %w", err)
				}
				return again(c)
			})
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				during := hostState(t)
				for k := range during {
					if strings.HasPrefix(k, "namespace ") {
						delete(during, k) // the task's and the router's, of which the host sees nothing else
					}
				}
				withoutNamespaces := map[string]string{}
				for k, v := range before {
					if !strings.HasPrefix(k, "namespace ") {
						withoutNamespaces[k] = v
					}
				}
				if d := diff(withoutNamespaces, during); len(d) > 0 {
					t.Errorf("while a task runs, the host is changed: %q", d)
				}
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}()
	}
	if d := diff(before, hostState(t)); len(d) > 0 {
		t.Errorf("the host is changed: %q", d)
	}
}

// TestRuleset holds the rules for people to read.
func TestRuleset(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil && os.Getenv("SANDBOXD_VM") == "1" {
		t.Skip("the VM has no nft(8)")
	}
	testutil.Require(t, err == nil, "needs nft(8), of the package nftables")
	mixed := rule("192.0.2.0/24", 0, "both")
	mixed.Ports = []Ports{{80, 80}, {8000, 8999}}
	for name, spec := range map[string]RouterSpec{
		"names and addresses": {Rules: []Rule{
			rule("registry.example", 443, "both"), rule("10.0.0.0/8", 5432, "tcp"), rule("10.1.0.0/16", 5432, "tcp"), rule("2001:db8::/32", 443, "both"), mixed,
		}},
		"nothing": {}, "audit": {Audit: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, Config{}, spec)
			b.router.ns.do(func() error {
				out, err := exec.Command(nft, "list", "ruleset").CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				got := regexp.MustCompile(`(?m)^\s+# .*\n`).ReplaceAll(out, nil)
				golden := filepath.Join("testdata", strings.ReplaceAll(name, " ", "-")+".nft")
				if *update {
					return errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(golden, got, 0o644))
				}
				want, err := os.ReadFile(golden)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%v; nft lists\n%s\nwant\n%s", err, got, want)
				}
				return nil
			})
		})
	}
}

// TestFailuresLeaveNothing: neither a router that cannot be made, nor a link.
func TestFailuresLeaveNothing(t *testing.T) {
	require(t)
	m := newManager(t, netpolicytest.NewWorld(t, nil), Config{})
	a, err := m.Addresses(nil)
	if err != nil {
		t.Fatal(err)
	}
	bad := rule("192.0.2.0/24", 0, "tcp")
	bad.Ports = []Ports{{1, 10}, {5, 20}} // which the kernel does not take
	if r, err := m.Start(RouterSpec{Addresses: a, Rules: []Rule{bad}}); err == nil || r != nil {
		t.Errorf("%v, %v", r, err)
	}
	r, err := m.Start(RouterSpec{Addresses: a})
	if err != nil {
		t.Fatal(err)
	}
	task := netpolicytest.NewNamespace(t)
	if _, err := r.Attach(task.File); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Attach(task.File); err == nil {
		t.Error("a second link was made")
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
}
