package netpolicy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sandboxd/sandboxd/netpolicy/netpolicytest"
)

// few are rules as a task has them.
var few = []Rule{rule("web.example", 443, "tcp"), rule("10.0.0.0/8", 5432, "tcp")}

// BenchmarkRouter is a router and its link. Of it, "link" alone is on a task's path: the
// rest is done while libcontainer makes the sandbox.
func BenchmarkRouter(b *testing.B) {
	require(b)
	m := newManager(b, netpolicytest.NewWorld(b, nil), Config{})
	a, err := m.Addresses(few)
	if err != nil {
		b.Fatal(err)
	}
	task := make([]*namespace, 1)
	start := func(b *testing.B) *Router {
		r, err := m.Start(RouterSpec{Addresses: a, Rules: few})
		if err != nil {
			b.Fatal(err)
		}
		return r
	}
	closes := func(b *testing.B, r *Router) {
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("start", func(b *testing.B) {
		for range b.N {
			r := start(b)
			b.StopTimer()
			closes(b, r)
			b.StartTimer()
		}
	})
	b.Run("link", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			r := start(b)
			if task[0], err = newNamespace(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			_, err := r.Attach(task[0].file)
			b.StopTimer()
			if err != nil {
				b.Fatal(err)
			}
			closes(b, r)
			task[0].close()
			b.StartTimer()
		}
	})
	b.Run("finish and close", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			r := start(b)
			if task[0], err = newNamespace(); err != nil {
				b.Fatal(err)
			}
			if _, err := r.Attach(task[0].file); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			closes(b, r)
			b.StopTimer()
			task[0].close()
			b.StartTimer()
		}
	})
}

// hostState is all of the host's network that one can see from it, but for counters.
func hostState(t testing.TB) map[string]string {
	t.Helper()
	all := map[string]string{}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		all["link "+l.Attrs().Name] = l.Type()
	}
	for table := range 256 {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			all["route "+r.String()] = ""
		}
	}
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		all["rule "+r.String()] = ""
	}
	c, err := (&ruleset{ns: currentNamespace(t)}).conn()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range tables {
		all["table "+x.Name] = ""
	}
	err = filepath.WalkDir("/proc/sys/net", func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		// Some are for writing alone; of those that count, one counts for the machine.
		if b, err := os.ReadFile(p); err == nil && !strings.HasSuffix(p, "_count") {
			all[p] = string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	namespaces, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range namespaces {
		if to, err := os.Readlink(p); err == nil { // the thread may have ended
			all["namespace "+to] = ""
		}
	}
	return all
}

func currentNamespace(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func diff(before, after map[string]string) (all []string) {
	for k, v := range after {
		if was, ok := before[k]; !ok || was != v {
			all = append(all, k+": "+strings.TrimSpace(was)+" became "+strings.TrimSpace(v))
		}
	}
	for k := range before {
		if _, ok := after[k]; !ok {
			all = append(all, k+" has gone")
		}
	}
	return all
}
