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

const (
	// attemptsEnv holds the attempts of the probe "network", as JSON: what to try, by name.
	attemptsEnv = "SANDBOXD_ATTEMPTS"
	// refusalEnv is how long a refusal may take.
	refusalEnv = "SANDBOXD_REFUSAL"
)

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

// refusalTime is how long a refusal may take. An emulated machine has no such times.
func refusalTime() time.Duration {
	if inVM() {
		return time.Second
	}
	return 50 * time.Millisecond
}

// tryNetwork makes each attempt thrice, as the machine may be busy, and says if even the fastest refusal was slow.
func tryNetwork() outcomes {
	var all map[string]networkAttempt
	if err := json.Unmarshal([]byte(os.Getenv(attemptsEnv)), &all); err != nil {
		return outcomes{"attempts": err.Error()}
	}
	most, err := time.ParseDuration(os.Getenv(refusalEnv))
	if err != nil {
		return outcomes{"refusal": err.Error()}
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
		if o[name] != "allowed" && fastest > most {
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
		"--env", refusalEnv + "=" + refusalTime().String(),
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
	n.listenHere("unix", abstract)
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
		"an abstract socket":     {"unix", abstract},
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
	if !strings.HasPrefix(r.Applied.Network, "controlled: net0 198.19.255.2 ") || !slices.Contains(r.Applied.Sandbox, "network=controlled: lo up, net0 up") {
		t.Errorf("applied: %+v", r.Applied)
	}
	traffic := []executor.RuleTraffic{
		{Rule: netpolicytest.Other4 + ":7", Connections: 6, Sent: 30, Received: 30}, {Rule: "[" + netpolicytest.Other6 + "]:7", Connections: 3, Sent: 15, Received: 15},
		{Rule: "web.example:7", Connections: 6, Sent: 30, Received: 30},
	}
	if !slices.Equal(r.Traffic, traffic) {
		t.Errorf("traffic: %+v, want %+v", r.Traffic, traffic)
	}
	total := int64(0)
	for _, d := range r.Denied {
		total += d.Count
	}
	if total != r.DeniedTotal || !slices.Contains(r.Denied, executor.DeniedConnection{
		Protocol: "tcp", Address: netpolicytest.Web4, Port: 80, Name: "web.example", Count: 3, Rule: "no rule allows it",
	}) || !slices.Contains(r.Denied, executor.DeniedConnection{
		Protocol: "tcp", Address: netpolicytest.Metadata, Port: 80, Count: 3, Rule: "deny 169.254.0.0/16",
	}) {
		t.Errorf("refused, %d in all: %+v", r.DeniedTotal, r.Denied)
	}
	for _, to := range n.world.SeenAny() {
		if !strings.HasSuffix(to, ":7") {
			t.Errorf("the task reached %s", to)
		}
	}
	// An abstract socket of the host's is there for the host.
	var reached error
	n.in.Do(t, func() error {
		reached = connectOnly("unix", abstract)
		return nil
	})
	if reached != nil {
		t.Errorf("the abstract socket was not to be reached by anybody: %v", reached)
	}
}

// listenHere listens on the host.
func (n *network) listenHere(network, address string) net.Listener {
	n.t.Helper()
	var l net.Listener
	n.in.Do(n.t, func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	n.t.Cleanup(func() { l.Close() })
	return l
}

// TestNetworkOfNeighbours: two controlled tasks have the same address, and cannot reach each other by it, nor by the gateway.
func TestNetworkOfNeighbours(t *testing.T) {
	n := newNetwork(t, "")
	// It listens at all of its addresses, and tells when.
	task := n.as(0, n.dir, "run", "--workdir", "none", "--network", "controlled", "--input", n.program+":"+probePath,
		"--env", probeEnv+"=listen", "--", probePath)
	r, err := task.StdoutPipe()
	must(t, err)
	must(t, task.Start())
	_, err = io.ReadFull(r, make([]byte, len(listening)))
	must(t, err)
	o, _ := n.try(map[string]networkAttempt{
		"the same address":   {"tcp", "198.19.255.2:7"},
		"the gateway":        {"tcp", "198.19.255.1:7"},
		"the other's socket": {"unix", abstract},
	}, "--allow", "0.0.0.0/0:7")
	o.check(t, outcomes{"the same address": "ECONNREFUSED", "the gateway": "ECONNREFUSED", "the other's socket": "ECONNREFUSED"})
	must(t, task.Process.Signal(unix.SIGTERM))
	task.Wait() // its status tells of the signal
}

const (
	abstract  = "@/sandboxd/test"
	listening = "listening"
)

// listenForEver is a probe that serves whoever reaches it.
func listenForEver() outcomes {
	for network, a := range map[string]string{"tcp": ":7", "unix": abstract} {
		l, err := net.Listen(network, a)
		if err != nil {
			return outcomes{"listen": err.Error()}
		}
		go func() {
			for {
				c, err := l.Accept()
				if err == nil {
					go io.Copy(c, c)
				}
			}
		}()
	}
	fmt.Print(listening)
	select {}
}

// TestNetworkAudit: an audit's answer is what --allow takes, and makes the task run without it.
func TestNetworkAudit(t *testing.T) {
	n := newNetwork(t, "")
	n.world.Name("web.example", netpolicytest.Answer{TTL: 60, Addresses: []string{netpolicytest.Web4, netpolicytest.Web6}})
	tries := map[string]networkAttempt{
		"name": {"tcp", "web.example:7"}, "address": {"udp", netpolicytest.Other4 + ":7"}, "IPv6": {"tcp", "[" + netpolicytest.Other6 + "]:7"},
		"metadata": {"tcp", netpolicytest.Metadata + ":80"},
	}
	want := outcomes{"name": "allowed", "address": "allowed", "IPv6": "allowed", "metadata": "ECONNREFUSED"}
	for range 2 { // never from the cache
		o, r := n.try(tries, "--audit")
		o.check(t, want)
		if needed := []string{"203.0.113.11:7/udp", "[2001:db8:2::11]:7/tcp", "web.example:7/tcp"}; !slices.Equal(r.Needed, needed) || r.Cached {
			t.Fatalf("needed %q, cached: %t; want %q", r.Needed, r.Cached, needed)
		}
		if r.DeniedTotal != 3 {
			t.Errorf("refused: %+v", r.Denied)
		}
	}
	allow := []string{"--allow", "web.example:7/tcp", "--allow", "[2001:db8:2::11]:7/tcp", "--allow", "203.0.113.11:7/udp"}
	o, first := n.try(tries, allow...)
	o.check(t, want)
	// The order of rules is nothing to the cache, and other rules are another task.
	_, again := n.try(tries, append(slices.Clone(allow[4:]), allow[:4]...)...)
	if !again.Cached || again.Signature != first.Signature || again.DeniedTotal != first.DeniedTotal || !slices.Equal(again.Traffic, first.Traffic) {
		t.Errorf("from the cache: %+v, after %+v", again, first)
	}
	if _, other := n.try(tries, allow[:4]...); other.Cached || other.Signature == first.Signature {
		t.Errorf("with other rules: %+v", other)
	}
}

// TestNetworkDeny: what the configuration denies is denied, and the host's own even where the defaults are not.
func TestNetworkDeny(t *testing.T) {
	n := newNetwork(t, "deny_defaults = false\ndeny = [\"203.0.113.11\", \"2001:db8:2::/64\"]")
	l := n.listenHere("tcp", netpolicytest.Host4+":7")
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
	o, r := n.try(map[string]networkAttempt{
		"denied": {"tcp", netpolicytest.Other4 + ":7"}, "denied IPv6": {"tcp", "[" + netpolicytest.Web6 + "]:7"},
		"not denied": {"tcp", netpolicytest.Metadata + ":7"}, "the host": {"tcp", netpolicytest.Host4 + ":7"},
	}, "--allow", "0.0.0.0/0", "--allow", "::/0")
	o.check(t, outcomes{"denied": "ECONNREFUSED", "denied IPv6": "ECONNREFUSED", "not denied": "allowed", "the host": "ECONNREFUSED"})
	if !slices.Contains(r.Denied, executor.DeniedConnection{Protocol: "tcp", Address: netpolicytest.Other4, Port: 7, Count: 3, Rule: "deny 203.0.113.11/32"}) {
		t.Errorf("refused: %+v", r.Denied)
	}
}

// TestNetworkCurl: a program that people use, with names by libc.
func TestNetworkCurl(t *testing.T) {
	if inVM() {
		t.Skip("the VM has no curl")
	}
	_, err := exec.LookPath("curl")
	testutil.Require(t, err == nil, "needs curl")
	n := newNetwork(t, "")
	n.world.Name("web.example", netpolicytest.Answer{TTL: 60, Addresses: []string{netpolicytest.Web4, netpolicytest.Web6}})
	run := func(url string) outcome {
		return n.run(n.dir, "--workdir", "none", "--network", "controlled", "--allow", "web.example:80/tcp", "--", "curl", "-sS", "--max-time", "10", url)
	}
	if o := run("http://web.example/"); o.code != 0 || o.stdout != "hello from "+netpolicytest.Web4+"\n" && o.stdout != "hello from "+netpolicytest.Web6+"\n" {
		t.Errorf("%+v", o)
	}
	for url, says := range map[string]string{
		"http://" + netpolicytest.Other4 + "/": "refused 1 connection: 203.0.113.11:80/tcp", "http://other.example/": "other.example/dns",
	} {
		if o := run(url); o.code == 0 || !strings.Contains(o.stderr, says) {
			t.Errorf("%s: %+v, want %q", url, o, says)
		}
	}
}

// TestNetworkLeavesNothing: neither tasks that end, nor those whose daemon is killed.
func TestNetworkLeavesNothing(t *testing.T) {
	n := newNetwork(t, "")
	tasks := 40
	if inVM() {
		tasks = 10
	}
	tasks = number(t, "SANDBOXD_NETWORK_TASKS", tasks)
	state := func() (all []string) {
		n.in.Do(t, func() error {
			for _, f := range []string{"dev", "route", "ipv6_route", "fib_trie"} {
				b, err := os.ReadFile("/proc/thread-self/net/" + f)
				if err != nil {
					return err
				}
				for l := range strings.Lines(string(b)) {
					if f == "dev" {
						l, _, _ = strings.Cut(l, ":") // then come counters
					}
					if f == "ipv6_route" {
						l = strings.Join(slices.Delete(strings.Fields(l), 6, 8), " ") // references and uses
					}
					all = append(all, l)
				}
			}
			return nil
		})
		return all
	}
	descriptors := func() (all []string) {
		dir := fmt.Sprintf("/proc/%d/fd/", n.cmd.Process.Pid)
		entries, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			to, _ := os.Readlink(dir + e.Name()) // it may be closed meanwhile
			all = append(all, to)
		}
		slices.Sort(all)
		return all
	}
	script := []string{"--workdir", "none", "--cache", "off", "--network", "controlled", "--allow", "203.0.113.10:80", "-c", "true"}
	runAll := func() {
		t.Helper()
		for range tasks {
			if o := n.run(n.dir, script...); o.code != 0 {
				t.Fatalf("%+v", o)
			}
		}
	}
	runAll() // so that what grows once has grown
	before, open := state(), descriptors()
	runAll()
	if after := state(); !slices.Equal(before, after) {
		t.Errorf("the host's network was\n%q\nand is\n%q", before, after)
	}
	for end := time.Now().Add(10 * time.Second); ; { // sandboxes are unmade after their answers
		now := descriptors()
		// One that leaks for each task would be as many as tasks. Fewer may be a connection that ends meanwhile, and what
		// is kept for good: the range of ids (three descriptors) of a sandbox that overlapped with the one before.
		if len(now) < len(open)+tasks {
			break
		}
		if time.Now().After(end) {
			t.Errorf("the daemon had %d descriptors, %q, and has %d, %q", len(open), open, len(now), now)
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	r, hold := fifo(t, n.dir, 0)
	task := n.as(0, n.dir, "run", "--workdir-mode", "direct", "--network", "controlled", "-c", "echo x >alive; exec sleep 1000 >alive")
	must(t, task.Start())
	_, err := io.ReadFull(r, make([]byte, 2))
	must(t, err)
	must(t, hold.Close())
	n.end(unix.SIGKILL)
	io.Copy(io.Discard, r) // until the task is gone
	task.Wait()            // its daemon went
	if after := state(); !slices.Equal(before, after) {
		t.Errorf("after the daemon was killed, the host's network was\n%q\nand is\n%q", before, after)
	}
	n.start()
	if o := n.run(n.dir, script...); o.code != 0 {
		t.Errorf("after that, %+v", o)
	}
}
