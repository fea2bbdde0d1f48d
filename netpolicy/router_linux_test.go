package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
	"github.com/sandboxd/sandboxd/netpolicy/netpolicytest"
)

// bench is a host with an internet, a task's namespace and its router.
type bench struct {
	t      testing.TB
	world  *netpolicytest.World
	m      *Manager
	task   *netpolicytest.Namespace
	router *Router
	addrs  Addresses
}

func newManager(t testing.TB, w *netpolicytest.World, cfg Config) *Manager {
	t.Helper()
	if cfg.ResolvConf == "" && w != nil {
		cfg.ResolvConf = w.ResolvConf
	}
	m, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func require(t testing.TB) {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
}

func newBench(t testing.TB, cfg Config, spec RouterSpec) *bench {
	t.Helper()
	require(t)
	b := &bench{t: t, world: netpolicytest.NewWorld(t, nil)}
	b.m = newManager(t, b.world, cfg)
	b.attach(spec)
	return b
}

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
	found, err := b.router.Attach(b.task.File)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Log(found)
}

// rule is one with an address or a name, a port, and tcp, udp or both.
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
func (b *bench) dial(network, address string) (c net.Conn, took time.Duration, err error) {
	b.t.Helper()
	b.task.Do(b.t, func() error {
		began := time.Now()
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), network, address)
		took = time.Since(began)
		return nil
	})
	return c, took, err
}

// get asks a web server.
func (b *bench) get(address string) (string, error) {
	b.t.Helper()
	c, _, err := b.dial("tcp", net.JoinHostPort(address, "80"))
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	all, err := io.ReadAll(c)
	_, body, _ := strings.Cut(string(all), "\r\n\r\n")
	return body, err
}

func TestStaticRulesOfTCP(t *testing.T) {
	b := newBench(t, Config{}, RouterSpec{Rules: []Rule{
		rule(netpolicytest.Web4, 80, "tcp"), rule("2001:db8:2::10", 80, "tcp"),
	}})
	for _, a := range []string{netpolicytest.Web4, netpolicytest.Web6} {
		body, err := b.get(a)
		if err != nil || body != "hello from "+a+"\n" {
			if _, err := exec.LookPath("nft"); err == nil {
				b.router.ns.do(func() error {
					out, _ := exec.Command("nft", "list", "ruleset").CombinedOutput()
					t.Logf("%s", out)
					return nil
				})
			}
			t.Fatalf("%s: %q, %v", a, body, err)
		}
	}
	for _, a := range []string{"203.0.113.10:81", "203.0.113.11:80", "[2001:db8:2::11]:80"} {
		c, took, err := b.dial("tcp", a)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, %v", a, c, err)
		}
		t.Log(a, took)
	}
	rep, err := b.router.Finish()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", rep)
	_ = os.Stdout
	_ = unix.AF_INET
}
