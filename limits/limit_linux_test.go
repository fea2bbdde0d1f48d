package limits

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestLimitAGroupThatIsThere: a group that was made without limits gets them later, and others after that.
func TestLimitAGroupThatIsThere(t *testing.T) {
	testutil.CheckLeaks(t)
	m := open(t)
	testutil.Require(t, m.can["memory_bytes"] && m.can["pids_max"] && m.can["cpu_quota_us"], "it has not all controllers")
	g := create(t, m, "later", Limits{})
	kernel := func(files ...string) string {
		for _, f := range files {
			if p := g.file(f); p != "" {
				return strings.TrimSpace(read(p))
			}
		}
		t.Fatalf("no group has %s", files)
		return ""
	}
	for f := range g.Applied() {
		if strings.HasPrefix(f, "pids") || strings.HasPrefix(f, "cpu") || f == "memory.max" || f == "memory.limit_in_bytes" {
			t.Errorf("%s is applied already", f)
		}
	}
	quota := func(n int) string {
		if m.mode == "v2" {
			return strconv.Itoa(n) + " 100000"
		}
		return strconv.Itoa(n)
	}
	check := func(memory, pids, cpu int) {
		t.Helper()
		for what, c := range map[string][2]string{
			"memory": {kernel("memory.max", "memory.limit_in_bytes"), strconv.Itoa(memory)},
			"pids":   {kernel("pids.max"), strconv.Itoa(pids)},
			"cpu":    {kernel("cpu.max", "cpu.cfs_quota_us"), quota(cpu)},
		} {
			if c[0] != c[1] {
				t.Errorf("%s is %s, want %s", what, c[0], c[1])
			}
		}
		if got := g.Applied()["pids.max"]; got != strconv.Itoa(pids) {
			t.Errorf("pids.max is said to be %s", got)
		}
	}
	limit := func(l Limits) {
		t.Helper()
		if err := g.Limit(l); err != nil {
			t.Fatal(err)
		}
	}
	limit(Limits{MemoryBytes: 128 << 20, PidsMax: 10, CPUQuotaUS: 50_000})
	check(128<<20, 10, 50_000)
	limit(Limits{MemoryBytes: 64 << 20, PidsMax: 20, CPUQuotaUS: 150_000})
	check(64<<20, 20, 150_000)
	limit(Limits{MemoryBytes: 128 << 20, PidsMax: 5, CPUQuotaUS: 20_000})
	check(128<<20, 5, 20_000)
	before := maps.Clone(g.Applied())
	for _, l := range []Limits{{PidsMax: -2}, {CPUQuotaUS: 999, PidsMax: 6}, {MemoryBytes: -7, PidsMax: 6}, {IOWeight: 10_001, PidsMax: 6}} {
		if err := g.Limit(l); err == nil {
			t.Errorf("%+v is taken", l)
		}
	}
	if check(128<<20, 5, 20_000); !maps.Equal(before, g.Applied()) {
		t.Errorf("what was refused is applied: %v", g.Applied())
	}
	m.can["pids_max"] = false
	defer func() { m.can["pids_max"] = true }()
	var ue *UnenforcedError
	if err := g.Limit(Limits{PidsMax: 5}); !errors.As(err, &ue) {
		t.Errorf("what cannot be enforced: %v", err)
	}
}

// TestHomes: what was asked once of which hierarchy has a file is what one finds by looking.
func TestHomes(t *testing.T) {
	testutil.CheckLeaks(t)
	m := open(t)
	g := create(t, m, "homes", Limits{})
	if len(m.home) == 0 {
		t.Fatal("nothing was found")
	}
	seen := map[string]string{}
	for _, h := range m.active() {
		files, err := filepath.Glob(h.dir + g.path + "/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			name := filepath.Base(f)
			if st, err := os.Stat(f); err != nil || st.IsDir() || seen[name] != "" {
				continue
			}
			seen[name] = f
			if got := g.file(name); got != f {
				t.Errorf("%s is at %q, want %q", name, got, f)
			}
		}
	}
	if len(seen) != len(m.home) {
		t.Errorf("%d files, of which %d are known", len(seen), len(m.home))
	}
	for _, name := range []string{"", "none", "../x"} {
		if got := g.file(name); got != "" {
			t.Errorf("%q is at %q", name, got)
		}
	}
	if home, err := (&Group{m: m, path: m.parent + "/no-such-group"}).homes(); err == nil {
		t.Errorf("of a group that is not there: %v", home)
	}
}
