package wasm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/process"
)

func TestExit(t *testing.T) {
	own, err := program() // with the race detector, if that is on
	must(t, err)
	e := openExecutor(t, Config{program: []string{own, process.Name}})
	for _, code := range []int{0, 3, 255} {
		if out := run(t, e, uncached(fmt.Sprintf("exit %d", code))); out.ExitCode != code || out.Cause != executor.CauseExited {
			t.Errorf("exit %d: %+v", code, out)
		}
	}
	// What has no place in the lower eight bits is no success.
	if out := run(t, e, uncached("exit 256")); out.Success() {
		t.Errorf("exit 256: %+v", out)
	}
	if out := run(t, e, uncached("panic")); out.ExitCode != 2 || !strings.Contains(string(out.Stderr.Inline), "as told") {
		t.Errorf("panic: %+v", out)
	}
}

func TestWhatATaskIsGiven(t *testing.T) {
	e := openExecutor(t, Config{})
	out := run(t, e, &executor.TaskSpec{Argv: []string{"a b", "", "args\nenv V\ncat"}, Env: map[string]string{"V": "w=x"}, Stdin: []byte("in")})
	if got, want := string(out.Stdout.Inline), fmt.Sprintf("%q\nw=x\nin", []string{"a b", "", "args\nenv V\ncat"}); got != want {
		t.Errorf("%q, want %q; %s", got, want, out.Stderr.Inline)
	}
}

// TestOverlay: the caller's tree changes by declared outputs alone, and the rest is listed.
func TestOverlay(t *testing.T) {
	e := openExecutor(t, Config{})
	work := t.TempDir()
	must(t, os.WriteFile(filepath.Join(work, "in"), []byte("input"), 0o600))
	must(t, os.WriteFile(filepath.Join(work, "gone"), nil, 0o600))
	spec := &executor.TaskSpec{Workdir: work, Outputs: []string{"out/d"}, Script: strings.Join([]string{
		"read /build/in", "ls /build", "write /build/in 3", "rm /build/gone", "mkdir /build/out/d/e", "write /build/out/d/f 100000",
		"symlink f /build/out/d/l", "mkdir /build/new", "write /build/out/other 1", "ls /build", "ls /build/out/d",
	}, "\n")}
	first := run(t, e, spec)
	if got, want := string(first.Stdout.Inline), "inputgone in \nin new out \ne f l \n"; got != want || !first.Success() {
		t.Fatalf("stdout %q, want %q; %+v %s", got, want, first, first.Stderr.Inline)
	}
	if want := []string{"gone (deleted)", "in", "new/", "out/other"}; !slices.Equal(first.UndeclaredWrites, want) || first.UndeclaredTotal != 4 {
		t.Errorf("undeclared %q, want %q", first.UndeclaredWrites, want)
	}
	tree := func() string {
		var all []string
		must(t, filepath.WalkDir(work, func(p string, d os.DirEntry, err error) error {
			rel, _ := filepath.Rel(work, p)
			all = append(all, fmt.Sprint(filepath.ToSlash(rel), d.Type()))
			return err
		}))
		return strings.Join(all, " ")
	}
	if got, want := tree(), ".d--------- gone---------- in---------- outd--------- out/dd--------- out/d/ed--------- out/d/f---------- out/d/lL---------"; got != want {
		t.Errorf("the work directory has %s, want %s", got, want)
	}
	if b, err := os.ReadFile(filepath.Join(work, "in")); err != nil || string(b) != "input" {
		t.Errorf("the input is %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(work, "out/d/l")); err != nil || len(b) != 100000 {
		t.Errorf("the output has %d bytes, %v", len(b), err)
	}
	// Again, with the outputs gone: from the cache, and in place.
	must(t, os.RemoveAll(filepath.Join(work, "out")))
	second := run(t, e, spec)
	if !second.Cached || second.Signature != first.Signature || first.Signature == "" {
		t.Errorf("not from the cache: %+v", second)
	}
	if _, err := os.Stat(filepath.Join(work, "out/d/f")); err != nil {
		t.Error(err)
	}
	// And with them there, as the task must not see.
	spec.Cache = executor.CacheRefresh
	if third := run(t, e, spec); third.Cached || third.Signature != first.Signature || string(third.Stdout.Inline) != string(first.Stdout.Inline) {
		t.Errorf("the last run's outputs were seen: %+v %s", third, third.Stdout.Inline)
	}
	// A failure leaves all as it was.
	spec.Script = "write /build/out/d 1\nexit 1"
	before := tree()
	if out := run(t, e, spec); out.Success() || tree() != before {
		t.Errorf("%+v; the work directory has %s", out, tree())
	}
}

// TestManyFiles: files that are read in order, and so opened before they are asked for, are what the task made of them.
func TestManyFiles(t *testing.T) {
	e := openShell(t, Config{})
	work := t.TempDir()
	var first, second strings.Builder
	for i := range 300 {
		content := fmt.Sprintln("content", i)
		must(t, os.WriteFile(filepath.Join(work, fmt.Sprintf("f%03d", i)), []byte(content), 0o600))
		first.WriteString(content)
		switch i {
		case 100:
			second.WriteString("changed\n")
		case 149:
			second.WriteString(content + "new\n")
		case 150:
		case 200:
			second.WriteString("content 0\n")
		default:
			second.WriteString(content)
		}
	}
	spec := uncached("cat *; echo changed >f100; rm f150; echo new >f149a; mv f000 f200; cp f200 f000; echo; cat *")
	spec.Workdir = work
	for range 2 { // nothing is left to the next task
		if got, want := string(run(t, e, spec).Stdout.Inline), first.String()+"\n"+second.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	must(t, os.WriteFile(filepath.Join(work, "f050"), []byte("another\n"), 0o600))
	if got := string(run(t, e, spec).Stdout.Inline); strings.Count(got, "another\n") != 2 {
		t.Errorf("what was changed since is not seen: %q", got)
	}
}

// TestStops: whatever a guest does, it ends when it must.
func TestStops(t *testing.T) {
	e := openExecutor(t, Config{MaxParallel: 2})
	for _, script := range []string{"spin", "calls", "sleep 1h", "print"} {
		t.Run(script, func(t *testing.T) {
			spec := uncached("echo ready\n" + script)
			spec.Timeout = 200 * time.Millisecond
			if out := run(t, e, spec); out.Cause != executor.CauseTimedOut {
				t.Errorf("%s: %+v", script, out)
			}
			// What it wrote before arrives while it is busy.
			ctx, cancel := context.WithCancel(t.Context())
			var canceled time.Time
			ctx = executor.WithEvents(ctx, func(ev executor.TaskEvent) {
				if ev.Kind == executor.EventStdout && canceled.IsZero() {
					canceled = time.Now()
					cancel()
				}
			})
			out, err := e.Execute(ctx, uncached("echo ready\n"+script))
			must(t, err)
			if out.Cause != executor.CauseCanceled {
				t.Errorf("%s: %+v", script, out)
			}
			t.Logf("%s ended %v after it was told to", script, time.Since(canceled))
		})
	}
	// Its successor has nothing of it.
	if out := run(t, e, uncached("echo fine")); string(out.Stdout.Inline) != "fine\n" {
		t.Errorf("%+v", out)
	}
}

func TestOutputLimit(t *testing.T) {
	e := openExecutor(t, Config{})
	spec := uncached("print")
	spec.Limits.OutputBytes = 300_000
	out := run(t, e, spec)
	if out.Cause != executor.CauseOutputLimit || out.Stdout.Digest.Size != 300_000 {
		t.Errorf("%s, %v", out.Cause, out.Stdout.Digest)
	}
}

func TestMemoryLimit(t *testing.T) {
	e := openExecutor(t, Config{})
	spec := uncached("grow")
	spec.Limits.MemoryBytes = 64 << 20
	out := run(t, e, spec)
	if out.Cause != executor.CauseOOMKilled || out.ExitCode == 0 || *out.Usage.PeakMemory > 64<<20 || *out.Usage.PeakMemory < 32<<20 {
		t.Errorf("%+v, peak %d", out, *out.Usage.PeakMemory)
	}
	if out := run(t, e, uncached("echo fine")); string(out.Stdout.Inline) != "fine\n" {
		t.Errorf("%+v", out)
	}
}

// TestDeterministic: a task sees the same, whenever it runs.
func TestDeterministic(t *testing.T) {
	script := "date\nsleep 1ms\ndate\nwrite /build/b 1\nwrite /build/a 1\nls /build"
	var seen []string
	for range 2 {
		e := openExecutor(t, Config{})
		for range 2 {
			seen = append(seen, string(run(t, e, uncached(script)).Stdout.Inline))
		}
	}
	for _, s := range seen {
		if s != "2022-01-01T00:00:00Z\n2022-01-01T00:00:00Z\na b \n" {
			t.Errorf("a task saw %q", s)
		}
	}
	e := openExecutor(t, Config{})
	spec := uncached("date")
	spec.Env = map[string]string{"SOURCE_DATE_EPOCH": "1000000000"}
	if got := string(run(t, e, spec).Stdout.Inline); got != "2001-09-09T01:46:40Z\n" {
		t.Errorf("with SOURCE_DATE_EPOCH it saw %q", got)
	}
	e = openExecutor(t, Config{RealClock: true})
	before := time.Now().Truncate(time.Second)
	at, err := time.Parse(time.RFC3339, strings.TrimSpace(string(run(t, e, uncached("date")).Stdout.Inline)))
	if err != nil || at.Before(before) || at.After(time.Now()) {
		t.Errorf("with the real clock it saw %v, %v", at, err)
	}
}

func TestRefused(t *testing.T) {
	e := openExecutor(t, Config{})
	for field, change := range map[string]func(*executor.TaskSpec){
		"network":             func(s *executor.TaskSpec) { s.Network = executor.NetworkFull },
		"workdir_mode":        func(s *executor.TaskSpec) { s.Workdir, s.WorkdirMode = "/", executor.WorkdirDirect },
		"rootfs":              func(s *executor.TaskSpec) { s.Rootfs = "/" },
		"debug":               func(s *executor.TaskSpec) { s.Debug = true },
		"limits.cpu_quota_us": func(s *executor.TaskSpec) { s.Limits.CPUQuotaUS = 100_000 },
		"limits.io_weight":    func(s *executor.TaskSpec) { s.Limits.IOWeight = 50 },
		"script":              func(s *executor.TaskSpec) { s.Script = "#!/usr/bin/env python3\n" },
	} {
		spec := uncached("exit 0")
		change(spec)
		if out, err := e.Execute(t.Context(), spec); executor.KindOf(err) != executor.Unsupported || executor.AsError(err).Field != field {
			t.Errorf("%s: %+v, %v", field, out, err)
		}
	}
	spec := uncached("exit 0")
	spec.Network, spec.Allow = executor.NetworkControlled, []string{"a.example"}
	if _, err := e.Execute(t.Context(), spec); executor.KindOf(err) != executor.Unsupported {
		t.Errorf("network controlled: %v", err)
	}
	if out := run(t, e, &executor.TaskSpec{Script: "exit 0", Network: executor.NetworkLoopback}); !out.Success() {
		t.Errorf("network loopback: %+v", out)
	}
}

// TestModule: what cannot run tasks says so with each.
func TestModule(t *testing.T) {
	for name, module := range map[string]string{
		"no module":   "hello",
		"no commands": "\x00asm\x01\x00\x00\x00",
	} {
		e := openExecutor(t, Config{Module: []byte(module)})
		for range 2 {
			if out, err := e.Execute(t.Context(), uncached("exit 0")); executor.KindOf(err) != executor.Unsupported {
				t.Errorf("%s: %+v, %v", name, out, err)
			}
		}
	}
}

// TestUndeclaredNames: what is dropped is told by its path, as it is, and quoted by who shows it.
func TestUndeclaredNames(t *testing.T) {
	out := run(t, openExecutor(t, Config{}), uncached("write /build/a\"b 1"))
	if want := []string{"a\"b"}; !slices.Equal(out.UndeclaredWrites, want) {
		t.Errorf("%q, want %q; %s", out.UndeclaredWrites, want, out.Stderr.Inline)
	}
}

// TestNoMemory: a module that has none and calls what takes one is told that.
func TestNoMemory(t *testing.T) {
	module := "\x00asm\x01\x00\x00\x00" +
		"\x01\x0c\x02\x60\x00\x00\x60\x04\x7f\x7f\x7f\x7f\x01\x7f" + // types: of nothing, and of fd_write
		"\x02\x23\x01\x16wasi_snapshot_preview1\x08fd_write\x00\x01" +
		"\x03\x02\x01\x00" + "\x07\x0a\x01\x06_start\x00\x01" +
		"\x0a\x0f\x01\x0d\x00\x41\x01\x41\x00\x41\x01\x41\x00\x10\x00\x1a\x0b" // fd_write(1, 0, 1, 0)
	out := run(t, openExecutor(t, Config{Module: []byte(module)}), uncached("x"))
	if out.ExitCode != exitTrap || !strings.Contains(string(out.Stderr.Inline), "it has no memory") {
		t.Errorf("%+v %s", out, out.Stderr.Inline)
	}
}

// TestTimeOfLinks: it can be set, of those that lead nowhere too, and not where nothing may be written.
func TestTimeOfLinks(t *testing.T) {
	e := openShell(t, Config{})
	spec := uncached("ln -s f l; ln -s none n; touch f; touch -d @5 f; touch -h -d @1000 l n; stat -c %Y f l n; touch -h none 2>/dev/null || echo $?; ln -s x $PWD/../in/y 2>/dev/null || touch -h -d @7 /in/f 2>/dev/null || echo $?")
	in := t.TempDir()
	must(t, os.WriteFile(filepath.Join(in, "f"), nil, 0o600))
	spec.Inputs = []executor.Input{{Host: in, Sandbox: "/in"}}
	if out := run(t, e, spec); string(out.Stdout.Inline) != "5\n1000\n1000\n1\n1\n" {
		t.Errorf("%q, %s", out.Stdout.Inline, out.Stderr.Inline)
	}
}

// TestModeBitsThatNoTreeKeeps: that a file does not become set-user-ID is said, and not found out later.
func TestModeBitsThatNoTreeKeeps(t *testing.T) {
	e := openShell(t, Config{})
	out := run(t, e, uncached("touch f; for m in 4755 g+s 1777 755; do chmod $m f 2>&1 || echo $?; done; stat -c %a f; install -m 2755 f g 2>/dev/null || echo $?"))
	const want = "chmod: changing permissions of 'f': set-user-ID, set-group-ID and sticky bits are not available in the wasm shell\n1\n"
	if got := string(out.Stdout.Inline); got != want+want+want+"755\n1\n" {
		t.Errorf("%q", got)
	}
}
