package integration_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
	"github.com/sandboxd/sandboxd/netpolicy/netpolicytest"
)

// attemptsEnv holds the attempts of the probe "network", as JSON: what to try, by name.
const attemptsEnv = "SANDBOXD_ATTEMPTS"

// networkAttempt is a way to reach something: how is one of ways.
type networkAttempt struct{ How, To string }

var ways = map[string]func(to string) error{
	"tcp":         func(to string) error { return echo("tcp", to) },
	"udp":         func(to string) error { return echo("udp", to) },
	"raw tcp":     rawConnect,
	"unix":        func(to string) error { return connectOnly("unix", to) },
	"name":        func(to string) error { return lookUp("udp", to) },
	"name by tcp": func(to string) error { return lookUp("tcp", to) },
	"ping":        func(string) error { return openSocket(unix.SOCK_DGRAM, unix.IPPROTO_ICMP) },
	"raw icmp":    func(string) error { return openSocket(unix.SOCK_RAW, unix.IPPROTO_ICMP) },
	"packet":      func(string) error { return openSocket(unix.SOCK_RAW, unix.IPPROTO_RAW) },
}

// refusalTime is how long a refusal may take.
const refusalTime = 50 * time.Millisecond

// tryNetwork makes each attempt thrice, as the machine may be busy, and says if even the fastest refusal was slow.
func tryNetwork() outcomes {
	var all map[string]networkAttempt
	if err := json.Unmarshal([]byte(os.Getenv(attemptsEnv)), &all); err != nil {
		return outcomes{"attempts": err.Error()}
	}
	o := outcomes{}
	for name, a := range all {
		fastest := time.Hour
		for range 3 {
			began := time.Now()
			err := ways[a.How](a.To)
			fastest = min(fastest, time.Since(began))
			o[name] = errnoName(err)
			if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
				o[name] = "no such name"
			}
		}
		if o[name] != "allowed" && fastest > refusalTime {
			o[name] += fmt.Sprintf(" after %v", fastest)
		}
	}
	return o
}

// echo sends a few bytes and wants them back.
func echo(network, to string) error {
	c, err := net.DialTimeout(network, to, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 5))
	return err
}

func connectOnly(network, to string) error {
	c, err := net.DialTimeout(network, to, 5*time.Second)
	if err == nil {
		c.Close()
	}
	return err
}

// rawConnect uses no library.
func rawConnect(to string) error {
	a, err := net.ResolveTCPAddr("tcp4", to)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return unix.Connect(s, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(a.IP.To4())})
}

func lookUp(network, name string) error {
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, server string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server)
	}}
	_, err := r.LookupHost(context.Background(), name+".")
	return err
}

func openSocket(kind, proto int) error {
	s, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, proto)
	if err == nil {
		unix.Close(s)
	}
	return err
}

// network is a daemon whose network is a world of the test's.
type network struct {
	*daemon
	world   *netpolicytest.World
	program string
}

func newNetwork(t *testing.T, more string) *network {
	t.Helper()
	rootAndClean(t)
	host := netpolicytest.NewNamespace(t)
	w := netpolicytest.NewWorld(t, host)
	d := startDaemonIn(t, host, fmt.Sprintf("[network]\nresolv_conf = %q\n%s\n", w.ResolvConf, more))
	b, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	n := &network{daemon: d, world: w, program: filepath.Join(d.dir, "probe")}
	must(t, os.WriteFile(n.program, b, 0o755))
	return n
}

// try makes attempts from a controlled task.
func (n *network) try(all map[string]networkAttempt, args ...string) (outcomes, result) {
	n.t.Helper()
	b, err := json.Marshal(all)
	must(n.t, err)
	r := n.runJSON(n.dir, append([]string{
		"--workdir", "none", "--network", "controlled", "--input", n.program + ":" + probePath,
		"--env", probeEnv + "=network", "--env", attemptsEnv + "=" + string(b),
	}, append(args, "--", probePath)...)...)
	var o outcomes
	if err := json.Unmarshal([]byte(r.Stdout), &o); err != nil {
		n.t.Fatalf("%v: %+v", err, r)
	}
	return o, r
}

func (o outcomes) check(t *testing.T, want outcomes) {
	t.Helper()
	for k, w := range want {
		if o[k] != w {
			t.Errorf("%s: %s, want %s", k, o[k], w)
		}
	}
}

func TestNetworkControlled(t *testing.T) {
	n := newNetwork(t, "")
	n.world.Name("web.example", netpolicytest.Answer{TTL: 60, Addresses: []string{netpolicytest.Web4, netpolicytest.Web6}})
	n.world.Name("loopback.example", netpolicytest.Answer{TTL: 60, Addresses: []string{"127.0.0.1", "::1"}})
	n.world.Name("metadata.example", netpolicytest.Answer{TTL: 60, Addresses: []string{netpolicytest.Metadata}})
	n.world.Name("host.example", netpolicytest.Answer{TTL: 60, Addresses: []string{netpolicytest.Host4, netpolicytest.Host6}})
	n.world.Name("secret.example", netpolicytest.Answer{TTL: 60, Addresses: []string{netpolicytest.Other4}})
	o, r := n.try(map[string]networkAttempt{
		"address":           {"tcp", netpolicytest.Other4 + ":7"},
		"address by UDP":    {"udp", netpolicytest.Other4 + ":7"},
		"IPv6":              {"tcp", "[" + netpolicytest.Other6 + "]:7"},
		"name":              {"tcp", "web.example:7"},
		"name by UDP":       {"udp", "web.example:7"},
		"name's DNS by TCP": {"name by tcp", "web.example"},

		"another port":           {"tcp", netpolicytest.Other4 + ":80"},
		"another port, raw":      {"raw tcp", netpolicytest.Other4 + ":80"},
		"another address":        {"tcp", netpolicytest.Private4 + ":7"},
		"another by UDP":         {"udp", netpolicytest.Private4 + ":7"},
		"another name":           {"name", "secret.example"},
		"another name by TCP":    {"name by tcp", "secret.example"},
		"metadata":               {"tcp", netpolicytest.Metadata + ":80"},
		"metadata's name":        {"name", "metadata.example"},
		"loopback's name":        {"name", "loopback.example"},
		"the host's name":        {"name", "host.example"},
		"the host":               {"tcp", netpolicytest.Host4 + ":80"},
		"the host's resolver":    {"tcp", netpolicytest.Resolver + ":53"},
		"the gateway":            {"tcp", "198.19.255.1:80"},
		"the relay itself":       {"tcp", "198.19.255.1:1"},
		"the gateway by UDP":     {"udp", "198.19.255.1:7"},
		"ping":                   {"ping", ""},
		"raw ICMP":               {"raw icmp", ""},
		"raw IP":                 {"packet", ""},
		"an abstract socket":     {"unix", "@/sandboxd/test"},
		"the daemon's socket":    {"unix", n.socket},
		"its own loopback":       {"tcp", "127.0.0.1:7"},
		"the host's IPv6":        {"tcp", "[" + netpolicytest.Host6 + "]:80"},
		"mapped metadata":        {"tcp", "[64:ff9b::a9fe:a9fe]:80"},
		"another IPv6 by UDP":    {"udp", "[" + netpolicytest.Other6 + "]:80"},
		"another port of IPv6":   {"tcp", "[" + netpolicytest.Other6 + "]:80"},
		"another port by a name": {"tcp", "web.example:80"},
	}, "--allow", netpolicytest.Other4+":7", "--allow", "["+netpolicytest.Other6+"]:7", "--allow", "web.example:7",
		"--allow", "loopback.example", "--allow", "metadata.example", "--allow", "host.example",
		"--allow", netpolicytest.Metadata, "--allow", netpolicytest.Host4, "--allow", netpolicytest.Host6, "--allow", "64:ff9b::/96")
	want := outcomes{
		"address": "allowed", "address by UDP": "allowed", "IPv6": "allowed", "name": "allowed", "name by UDP": "allowed", "name's DNS by TCP": "allowed",
		"another by UDP": "EHOSTUNREACH", "another IPv6 by UDP": "EACCES", "the gateway by UDP": "EHOSTUNREACH",
		"another name": "no such name", "another name by TCP": "no such name", "metadata's name": "no such name",
		"loopback's name": "no such name", "the host's name": "no such name",
		"raw ICMP": "EPERM", "raw IP": "EPERM", "the daemon's socket": "ENOENT",
	}
	for k := range o {
		if _, known := want[k]; !known {
			want[k] = "ECONNREFUSED"
		}
	}
	want["ping"] = "EACCES"
	o.check(t, want)
	t.Logf("%s %v\n%+v\n%+v", r.Applied.Network, r.Applied.Sandbox, r.Denied, r.Traffic)
	_ = exec.Command
	_ = slices.Sort[[]string]
	_ = strings.Cut
	_ = testutil.Require
	_ = executor.Denied
}
