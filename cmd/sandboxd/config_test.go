package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/access"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/pool"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestConfigFile(t *testing.T) {
	c, err := readConfig(writeConfig(t, `
socket = "/run/x.sock"
cache_max_bytes = "5GiB"
max_parallel = 3
shutdown_grace = "1m30s"
log_level = "debug"
[limits]
allow_unenforced = true
[[access]]
user = 1000
networks = ["full"]
memory_bytes = "unlimited"
[[access]]
group = "root"
pids_max = 99
timeout = "2h"
[network]
deny = ["10.0.0.0/8", "2001:db8::1"]
deny_defaults = false
resolv_conf = "/etc/other.conf"
`), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.validate(); err != nil {
		t.Error(err)
	}
	if c.Socket != "/run/x.sock" || c.StateDir != "/var/lib/sandboxd" || c.CacheMaxBytes != 5<<30 || c.MaxParallel != 3 ||
		c.ShutdownGrace.Duration != 90*time.Second || !c.Limits.AllowUnenforced {
		t.Errorf("%+v", c)
	}
	user, group := uint32(1000), uint32(0)
	want := access.Rules{
		{Name: "access rule 1 (user 1000)", User: &user, Networks: []executor.NetworkPolicy{executor.NetworkFull}, Most: executor.ResourceLimits{MemoryBytes: -1}},
		{Name: "access rule 2 (group root)", Group: &group, Most: executor.ResourceLimits{PidsMax: 99}, Timeout: 2 * time.Hour},
	}
	if !reflect.DeepEqual(c.rules, want) {
		t.Errorf("rules: %+v", c.rules)
	}
	l, err := localConfig(c)
	if err != nil || fmt.Sprint(l.Deny) != "[10.0.0.0/8 2001:db8::1/128]" || l.ResolvConf != "/etc/other.conf" {
		t.Errorf("%v %q, %v", l.Deny, l.ResolvConf, err)
	}
}

// TestConfigDeny: the defaults hold, whatever is denied beside them, unless they are dropped.
func TestConfigDeny(t *testing.T) {
	defaults, own := netpolicy.DefaultDeny(), netip.MustParsePrefix("10.0.0.0/8")
	for text, want := range map[string][]netip.Prefix{
		"": defaults, "[network]\ndeny = []": defaults, "[network]\ndeny = [\"10.0.0.0/8\"]": append(defaults, own),
		"[network]\ndeny_defaults = false": {}, "[network]\ndeny_defaults = false\ndeny = [\"10.0.0.0/8\"]": {own},
	} {
		c, err := readConfig(writeConfig(t, text), "")
		if err != nil {
			t.Fatal(err)
		}
		if l, err := localConfig(c); err != nil || l.Deny == nil || !slices.Equal(l.Deny, want) {
			t.Errorf("%q: %v, %v", text, l.Deny, err)
		}
	}
}

func TestConfigSizesMayBeBare(t *testing.T) {
	for text, want := range map[string]size{"cache_max_bytes = 2000000": 2000000, `cache_max_bytes = "512M"`: 512 << 20} {
		c, err := readConfig(writeConfig(t, text), "")
		if err != nil || c.CacheMaxBytes != want {
			t.Errorf("%s: %d, %v", text, c.CacheMaxBytes, err)
		}
	}
}

func TestCheckConfig(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "ok"},
		{"max_parallel = 2", "ok"},
		{"\nsokcet = 1", `c.toml:2:1: key "sokcet" is unknown`},
		{"[limits]\nallow = true", `c.toml:2:1: key "limits.allow" is unknown`},
		{"max_parallel = \"x\"", "c.toml:1:"},
		{"[network]\ndeny = [\"10.0.0.1/8\"]", "network.deny: \"10.0.0.1/8\" has bits beyond its length; write 10.0.0.0/8"},
		{"[network]\ndeny = [\"example\"]", "network.deny: \"example\" is not an address"},
		{"max_parallel = ", "c.toml:1:"},
		{"[wasm]\nreal_clock = true\ncode_dir = \"/x\"", "ok"},
		{"[wasm]\ncode_dir = \"x\"", "wasm.code_dir: \"x\" is not an absolute path"},
		{"shutdown_grace = 30", "duration"},
		{"shutdown_grace = \"soon\"", `"soon" is not a duration`},
		{"shutdown_grace = \"2h\"", "shutdown_grace: 2h0m0s is out of range"},
		{"cache_max_bytes = \"much\"", `"much" is not a size`},
		{"cache_max_bytes = 5", "cache_max_bytes: 5 is too small"},
		{"max_parallel = 0", "max_parallel: 0 is out of range"},
		{"log_level = \"loud\"", `log_level: "loud" is unknown`},
		{"socket = \"x\"", `socket: "x" is not an absolute path`},
		{"socket = \"/" + strings.Repeat("x", 100) + "\"", "socket:"},
		{"cache_dir = \"/var/lib/sandboxd\"", "use two directories"},
		{"[callers]\nfull_network_uids = [1]", `key "callers" is unknown`},
		{"[[access]]\nuser = \"*\"\nmemory_bytes = \"1GiB\"", "ok"},
		{"[[access]]\ngroup = 4242\nnetworks = []", "ok"},
		{"[[access]]\nuser = 1\nnetwork = \"full\"", `c.toml:3:1: key "access.network" is unknown`},
		{"[[access]]\nnetworks = [\"full\"]", "access: rule 1: it names both a user and a group, or neither"},
		{"[[access]]\nuser = 1\n[[access]]\nuser = 1\ngroup = 1", "access: rule 2: it names both"},
		{"[[access]]\nuser = \"no-such-user\"", `access: rule 1: user: "no-such-user" is unknown`},
		{"[[access]]\ngroup = \"no-such-group\"", `group: "no-such-group" is unknown`},
		{"[[access]]\nuser = -1", `user: "-1" is unknown`},
		{"[[access]]\nuser = 1\nnetworks = [\"internet\"]", `networks: "internet" is unknown`},
		{"[[access]]\nuser = 1\nconcurrent_tasks = -1", "concurrent_tasks: -1 is out of range"},
		{"[[access]]\nuser = 1\nmemory_bytes = 5", "limits.memory_bytes: 5 is out of range"},
		{"[[access]]\nuser = 1\nmemory_bytes = -2", "limits.memory_bytes: -2 is out of range"},
		{"[[access]]\nuser = 1\nmemory_bytes = \"all\"", `"all" is not a size`},
		{"[[access]]\nuser = 1\nopen_files = \"unlimited\"", "limits.open_files: -1 is out of range"},
		{"[[access]]\nuser = 1\ntimeout = \"1000h\"", "timeout: 1000h0m0s is out of range"},
		{"[[access]]\nuser = 1\npriority = 11", "priority: 11 is out of range"},
		{"[[executor]]\nname = \"a\"\n[[executor]]\nname = \"b\"\nbackend = \"wasm\"\ncomponent_path = \"/c.wasm\"", "ok"},
		{"backend = \"auto\"\nplatforms = [\"linux/amd64\", \"wasip1/wasm\"]", "ok"},
		{"backend = \"remote\"", "backend: \"remote\" is unknown"},
		{"platforms = [\"wasm\"]", "platforms: \"wasm\" is no platform"},
		{"[[executor]]\nname = \"a\"\nbackend = \"auto\"\ncomponent_path = \"/c.wasm\"", "component_path: is for backend wasm"},
		{"[[executor]]", "executor 1: name: \"\" is not"},
		{"[[executor]]\nname = \"a\"\n[[executor]]\nname = \"a\"", "executor 2: name: \"a\" is another's"},
		{"[[executor]]\nname = \"a\"\nstate_dir = \"/s\"\n[[executor]]\nname = \"b\"\nstate_dir = \"/s\"", "executor 2: state_dir: \"/s\" is another's"},
		{"[[executor]]\nname = \"a\"\nstate_dir = \"/s\"\ncache_dir = \"/s\"", "use two directories"},
		{"[[executor]]\nname = \"a\"\nbackend = \"docker\"", "backend: \"docker\" is unknown"},
		{"[[executor]]\nname = \"a\"\nendpoint = \"x\"", "endpoint: is for backend remote"},
		{"[[executor]]\nname = \"a\"\nmax_paralel = 1", `key "executor.max_paralel" is unknown`},
		{strings.Repeat("[[access]]\nuser = 1\n", 1001), "access: there are 1001 rules"},
	} {
		t.Run(c.text[:min(len(c.text), 80)], func(t *testing.T) {
			e, out, errs := testEnv("serve", "--check-config", "--config", writeConfig(t, c.text))
			code := run(context.Background(), e)
			if ok := c.want == "ok"; ok != (code == 0) || !ok && code != 1 || !strings.Contains(out.String()+errs.String(), c.want) {
				t.Errorf("exit %d, %q, %q; want %q", code, out, errs, c.want)
			}
		})
	}
}

// TestConfigExecutors: without tables there is one, that is what the other keys say.
func TestConfigExecutors(t *testing.T) {
	for text, want := range map[string][]pool.ExecutorConfig{
		"max_parallel = 3": {{Name: "local", Backend: pool.Local, StateDir: "/var/lib/sandboxd", CacheDir: "/var/cache/sandboxd", MaxParallel: 3}},
		"max_parallel = 3\n[[executor]]\nname = \"a\"\nverbose = true\n[[executor]]\nname = \"b\"\nstate_dir = \"/s\"\ncache_dir = \"/c\"\nmax_parallel = 1\nchannel_buffer_size = 5": {
			{Name: "a", Backend: pool.Local, StateDir: "/var/lib/sandboxd/executors/a", CacheDir: "/var/cache/sandboxd", MaxParallel: 3, Verbose: true},
			{Name: "b", Backend: pool.Local, StateDir: "/s", CacheDir: "/c", MaxParallel: 1, ChannelBufferSize: 5},
		},
		"max_parallel = 3\nbackend = \"auto\"": {{Name: "auto", Backend: pool.Auto, StateDir: "/var/lib/sandboxd", CacheDir: "/var/cache/sandboxd", MaxParallel: 3}},
		"max_parallel = 3\nbackend = \"wasm\"\n[[executor]]\nname = \"a\"\n[[executor]]\nname = \"b\"\nbackend = \"local\"": {
			{Name: "a", Backend: pool.Wasm, StateDir: "/var/lib/sandboxd/executors/a", CacheDir: "/var/cache/sandboxd", MaxParallel: 3},
			{Name: "b", Backend: pool.Local, StateDir: "/var/lib/sandboxd/executors/b", CacheDir: "/var/cache/sandboxd", MaxParallel: 3},
		},
	} {
		c, err := readConfig(writeConfig(t, text), "")
		if err != nil {
			t.Fatal(err)
		}
		if got := c.executors(); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v; want %+v", got, want)
		}
	}
}

// TestBackendsThatAreNotThere are refused by name.
func TestBackendsThatAreNotThere(t *testing.T) {
	c := defaultConfig()
	c.Executors = []pool.ExecutorConfig{{Name: "a", Backend: pool.Remote, Endpoint: "grpc://x"}}
	_, err := openHost(t.Context(), c, logrus.New())
	if executor.KindOf(err) != executor.Unsupported || !strings.Contains(err.Error(), "executor a") || !strings.Contains(err.Error(), "remote; use local") {
		t.Error(err)
	}
}

// TestPoolOfWasm: the configuration may have tasks run in WebAssembly alone.
func TestPoolOfWasm(t *testing.T) {
	c := defaultConfig()
	c.CacheDir = filepath.Join(t.TempDir(), "cache")
	c.Executors = []pool.ExecutorConfig{{Name: "a", Backend: pool.Wasm, MaxParallel: 1}}
	h, err := openHost(t.Context(), c, logrus.New())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	out, err := h.Execute(t.Context(), &executor.TaskSpec{Script: "echo hello"})
	if err != nil || string(out.Stdout.Inline) != "hello\n" || !out.Success() {
		t.Errorf("%+v, %v", out, err)
	}
}

// TestPriorityOfRules: root's own without a rule, and what the first rule says.
func TestPriorityOfRules(t *testing.T) {
	h := &pooled{}
	mayRaise := func(uid uint32) int { return h.mayRaise(executor.Caller{UID: uid, GID: uid}) }
	if a, b := mayRaise(0), mayRaise(1000); a != executor.MaxPriority || b != 0 {
		t.Errorf("without rules: %d, %d", a, b)
	}
	c, err := readConfig(writeConfig(t, "[[access]]\nuser = 1000\npriority = 4\n[[access]]\nuser = 0\npriority = 2"), "")
	if err == nil {
		err = c.validate()
	}
	if err != nil {
		t.Fatal(err)
	}
	h.Reconfigure(c)
	if a, b, d := mayRaise(0), mayRaise(1000), mayRaise(1001); a != 2 || b != 4 || d != 0 {
		t.Errorf("%d, %d, %d", a, b, d)
	}
}

func TestConfigFlagsGoBeforeTheFile(t *testing.T) {
	// The file's socket is wrong; the flag's makes it right.
	e, _, errs := testEnv("serve", "--socket", "/run/right.sock", "--check-config", "--config", writeConfig(t, `socket = "wrong"`))
	if code := run(context.Background(), e); code != 0 {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestConfigFileThatIsNotThere(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "x")
	if _, err := readConfig("", missing); err != nil {
		t.Errorf("the default file is needless: %v", err)
	}
	if _, err := readConfig(missing, ""); err == nil {
		t.Error("a named file must be there")
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"512M": 512 << 20, "512MiB": 512 << 20, "4GiB": 4 << 30, "4g": 4 << 30, "1.5k": 1536, "7": 7, "1125899906842623": 1<<50 - 1} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "M", "-1", "-1M", "1X", "1e400", "nan", "inf", "99999999999999999999G"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("%q: %d", in, got)
		}
	}
}
