package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
	"github.com/sandboxd/sandboxd/internal/testutil"
	"github.com/sandboxd/sandboxd/sandbox"
)

func TestMain(m *testing.M) {
	if err := sandbox.Seal(); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var warm bool

// newExecutor returns an executor with a state and a cache of its own.
func newExecutor(t *testing.T) *Executor {
	t.Helper()
	testutil.RequireRoot(t)
	if !warm {
		// libcontainer keeps two descriptors from the first time on.
		warm = true
		t.Run("warm up", func(t *testing.T) { runTask(t, openExecutor(t), &executor.TaskSpec{Script: "true"}) })
	}
	testutil.CheckLeaks(t)
	return openExecutor(t)
}

func openExecutor(t testing.TB) *Executor { return openWith(t, cache.Config{}) }

func openWith(t testing.TB, cfg cache.Config) *Executor {
	t.Helper()
	dir := openDir(t)
	store, err := cache.Open(filepath.Join(dir, "cache"), cfg)
	must(t, err)
	t.Cleanup(func() { must(t, store.Close()) })
	e, err := New(Config{
		StateDir: filepath.Join(dir, "state"), Cache: store, MaxParallel: 4, RangesDir: filepath.Join(dir, "ids"),
		CgroupParent: testutil.CgroupParent(), Version: "test",
	})
	must(t, err)
	t.Cleanup(func() { must(t, e.Close(context.Background())) })
	return e
}

// openDir is a temporary directory that others may pass through.
func openDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o711))
	}
	return dir
}

func runTask(t *testing.T, e *Executor, spec *executor.TaskSpec) *executor.TaskOutput {
	t.Helper()
	out, err := e.Execute(context.Background(), spec)
	must(t, err)
	return out
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		must(t, os.WriteFile(p, []byte(content), 0o644))
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func TestTaskIsNotRunTwice(t *testing.T) {
	e := newExecutor(t)
	work := openDir(t)
	write(t, work, map[string]string{"in": "input\n"})
	spec := &executor.TaskSpec{
		Workdir: work, Outputs: []string{"out/bin", "empty"},
		Script: "mkdir -p out/bin empty; date +%s%N >out/bin/when; ln -s when out/bin/link; chmod 755 out/bin/when; echo junk >junk; cat in; echo err >&2",
	}
	first := runTask(t, e, spec)
	if !first.Success() || first.Cached || string(first.Stdout.Inline) != "input\n" || string(first.Stderr.Inline) != "err\n" {
		t.Fatalf("%+v", first)
	}
	if got := fmt.Sprint(first.UndeclaredWrites); got != "[junk]" {
		t.Errorf("undeclared: %s", got)
	}
	if _, err := os.Stat(filepath.Join(work, "junk")); err == nil {
		t.Error("an undeclared file is in the caller's tree")
	}
	when := read(t, filepath.Join(work, "out/bin/link"))
	must(t, os.RemoveAll(filepath.Join(work, "out")))

	second := runTask(t, e, spec)
	if !second.Cached || !second.Success() || second.Signature != first.Signature || string(second.Stdout.Inline) != "input\n" || second.Duration != first.Duration {
		t.Errorf("second: %+v", second)
	}
	if again := read(t, filepath.Join(work, "out/bin/when")); again != when {
		t.Errorf("output is %q, was %q", again, when)
	}
	st, err := os.Stat(filepath.Join(work, "out/bin/when"))
	must(t, err)
	if st.Mode().Perm() != 0o755 {
		t.Errorf("mode %v", st.Mode())
	}

	write(t, work, map[string]string{"in": "other\n"})
	if third := runTask(t, e, spec); third.Cached || third.Signature == first.Signature || string(third.Stdout.Inline) != "other\n" {
		t.Errorf("third: %+v", third)
	}
}

func TestCauses(t *testing.T) {
	e := newExecutor(t)
	for name, c := range map[string]struct {
		spec  executor.TaskSpec
		cause executor.Cause
		code  int
	}{
		"exit":    {executor.TaskSpec{Script: "exit 3"}, executor.CauseExited, 3},
		"signal":  {executor.TaskSpec{Script: "kill -SEGV $$"}, executor.CauseSignaled, 139},
		"timeout": {executor.TaskSpec{Script: "sleep 1000", Timeout: 200 * time.Millisecond}, executor.CauseTimedOut, 143},
		"deaf":    {executor.TaskSpec{Script: "trap '' TERM; setsid sleep 1000 & sleep 1000", Timeout: 2 * time.Second}, executor.CauseTimedOut, 137},
		"memory":  {executor.TaskSpec{Script: "head -c 1073741824 /dev/zero | tail", Limits: executor.ResourceLimits{MemoryBytes: 128 << 20}}, executor.CauseOOMKilled, 137},
		"grandchild memory": {executor.TaskSpec{Script: "(head -c 1073741824 /dev/zero | tail) || true; sleep 1; exit 0",
			Limits: executor.ResourceLimits{MemoryBytes: 128 << 20}}, executor.CauseOOMKilled, 137},
		"pids":        {executor.TaskSpec{Script: "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24; do sleep 2 & done; wait", Limits: executor.ResourceLimits{PidsMax: 16}}, executor.CausePidsLimit, 2},
		"output":      {executor.TaskSpec{Script: "yes", Limits: executor.ResourceLimits{OutputBytes: 1 << 20}}, executor.CauseOutputLimit, 137},
		"not found":   {executor.TaskSpec{Argv: []string{"no-such-program"}}, executor.CauseExited, 127},
		"not allowed": {executor.TaskSpec{Argv: []string{"/etc/passwd"}}, executor.CauseExited, 126},
		"interpreter": {executor.TaskSpec{Script: "#!/bin/cat\nhello\n"}, executor.CauseExited, 0},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			out := runTask(t, e, &c.spec)
			if out.Cause != c.cause || out.ExitCode != c.code {
				t.Errorf("%s, code %d (%s), want %s, %d: %s", out.Cause, out.ExitCode, out.Evidence, c.cause, c.code, out.Stderr.Inline)
			}
		})
	}
}

// What Validate lets through must be enough for a task that needs next to nothing.
func TestSmallestLimits(t *testing.T) {
	e := newExecutor(t)
	for range 2 {
		for _, l := range []executor.ResourceLimits{{MemoryBytes: 32 << 20}, {PidsMax: 16}, {OpenFiles: 64}, {TmpBytes: 4096}, {OutputBytes: 3}} {
			out := runTask(t, e, &executor.TaskSpec{Script: "/bin/echo ok", Limits: l, Cache: executor.CacheOff})
			if !out.Success() || string(out.Stdout.Inline) != "ok\n" {
				t.Errorf("%+v: %s, code %d (%s): %s", l, out.Cause, out.ExitCode, out.Evidence, out.Stderr.Inline)
			}
		}
	}
}

func TestManyInputsWithFewOpenFiles(t *testing.T) {
	e := newExecutor(t)
	dir := openDir(t)
	spec := &executor.TaskSpec{Script: "ulimit -Hn; ulimit -Sn; ls /inputs | wc -l", Limits: executor.ResourceLimits{OpenFiles: 64}}
	for i := range executor.MaxInputs {
		name := fmt.Sprintf("in%d", i)
		write(t, dir, map[string]string{name: name})
		spec.Inputs = append(spec.Inputs, executor.Input{Host: filepath.Join(dir, name), Sandbox: "/inputs/" + name})
	}
	if out := runTask(t, e, spec); strings.Join(strings.Fields(string(out.Stdout.Inline)), " ") != fmt.Sprintf("64 64 %d", executor.MaxInputs) {
		t.Errorf("%q, %s", out.Stdout.Inline, out.Stderr.Inline)
	}
}

func TestCancel(t *testing.T) {
	e := newExecutor(t)
	ctx, cancel := context.WithCancel(context.Background())
	ctx = executor.WithEvents(ctx, func(ev executor.TaskEvent) {
		if strings.Contains(string(ev.Data), "ready") {
			cancel()
		}
	})
	out, err := e.Execute(ctx, &executor.TaskSpec{Script: "echo ready; sleep 1000"})
	must(t, err)
	if out.Cause != executor.CauseCanceled {
		t.Errorf("%+v", out)
	}
}

// Collecting is part of a task: who cancels it need not wait for a terabyte of holes.
func TestCancelWhileCollecting(t *testing.T) {
	e := newExecutor(t)
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() {
		for ctx.Err() == nil {
			fds, _ := filepath.Glob("/proc/self/fd/*")
			for _, fd := range fds {
				if to, _ := os.Readlink(fd); filepath.Base(to) == "collected" {
					cancel()
				}
			}
		}
	})
	out, err := e.Execute(ctx, &executor.TaskSpec{Script: "truncate -s 15G collected", Outputs: []string{"collected"}, Cache: executor.CacheOff})
	must(t, err)
	if out.Cause != executor.CauseCanceled || len(out.OutputFiles) > 0 || out.Success() {
		t.Errorf("%+v", out)
	}
}

// A file's holes are neither stored nor given back as blocks.
func TestSparseOutput(t *testing.T) {
	e := newExecutor(t)
	dir := openDir(t)
	out := runTask(t, e, &executor.TaskSpec{
		Script:  "truncate -s 256M o; echo there | dd of=o bs=1M seek=100 conv=notrunc status=none; cat o >copy",
		Workdir: dir, Outputs: []string{"o", "copy"},
	})
	if !out.Success() {
		t.Fatalf("%+v\n%s", out, out.Stderr.Inline)
	}
	for _, name := range []string{"o", "copy"} {
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(dir, name), &st))
		if st.Size != 256<<20 || st.Blocks*512 > 8<<20 {
			t.Errorf("%s has %d bytes in %d blocks", name, st.Size, st.Blocks)
		}
	}
	f, err := os.Open(filepath.Join(dir, "o"))
	must(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	must(t, err)
	if got := hex.EncodeToString(h.Sum(nil)); got != out.OutputFiles[0].Digest.Hash || got != out.OutputFiles[1].Digest.Hash {
		t.Errorf("%s is not what %+v tells", got, out.OutputFiles)
	}
}

// A result belongs to what the task saw, also where that is as before by the end.
func TestChangedAndChangedBack(t *testing.T) {
	e := newExecutor(t)
	dir := openDir(t)
	write(t, dir, map[string]string{"in": "A"})
	spec := &executor.TaskSpec{
		Script:  "until [ $(cat in) = B ]; do sleep 0.01; done; cat in >out; echo read; until [ $(cat in) = A ]; do sleep 0.01; done",
		Workdir: dir, Outputs: []string{"out"},
	}
	for range 2 {
		ctx := executor.WithEvents(context.Background(), func(ev executor.TaskEvent) {
			switch {
			case ev.Kind == executor.EventStarted:
				write(t, dir, map[string]string{"in": "B"})
			case strings.Contains(string(ev.Data), "read"):
				write(t, dir, map[string]string{"in": "A"})
			}
		})
		out, err := e.Execute(ctx, spec)
		must(t, err)
		if !out.Success() || out.Cached {
			t.Fatalf("%+v", out)
		}
	}
}

// What the sandbox's own first process uses is not the task's.
func TestUsage(t *testing.T) {
	e := newExecutor(t)
	dir := openDir(t)
	u := runTask(t, e, &executor.TaskSpec{Argv: []string{"/bin/true"}}).Usage
	if u.PeakPids == nil || *u.PeakPids != 1 || u.PeakMemory == nil || *u.PeakMemory == 0 {
		t.Errorf("true: %+v", u)
	}
	u = runTask(t, e, &executor.TaskSpec{Script: "sleep 1 & sleep 1 & sleep 1 & dd if=/dev/zero of=x bs=1M count=20 conv=fsync status=none; wait", Workdir: dir}).Usage
	if u.PeakPids == nil || *u.PeakPids < 4 || *u.PeakPids > 8 {
		t.Errorf("4 at once: %+v", u)
	}
	if e.limits.Mode() == "v2" { // which counts what comes to a disk, of which there may be none
		if u.IOWrite == nil {
			t.Error("no I/O is told")
		}
		return
	}
	if u.IOWrite == nil || *u.IOWrite < 20<<20 {
		t.Errorf("20 MiB written: %+v", u)
	}
}

// The cache is brought below its size without anyone asking.
func TestCacheStaysBelowItsSize(t *testing.T) {
	newExecutor(t)
	const size, tasks = 4 << 20, 40
	e := openWith(t, cache.Config{MaxBytes: size, Grace: -1})
	for i := range tasks {
		out := runTask(t, e, &executor.TaskSpec{Script: fmt.Sprintf("head -c %d /dev/zero >o; echo %d >>o", size/16, i), Outputs: []string{"o"}})
		if !out.Success() {
			t.Fatalf("%+v", out)
		}
	}
	e.gc.Close(context.Background()) // waits for what runs
	if st, err := e.cfg.Cache.Stats(); err != nil || st.Bytes > size+2*size/16 {
		t.Errorf("%+v, %v", st, err)
	}
}

// What is in a directory that is no state directory stays there, with its mode.
func TestNewRefusesWhatIsNoStateDirectory(t *testing.T) {
	newExecutor(t) // for the rights that it needs
	dir := openDir(t)
	state := filepath.Join(dir, "state")
	write(t, dir, map[string]string{"state/roots/precious": "x"})
	must(t, os.Chmod(state, 0o750))
	store, err := cache.Open(filepath.Join(dir, "cache"), cache.Config{})
	must(t, err)
	defer store.Close()
	if _, err := New(Config{StateDir: state, Cache: store, CgroupParent: testutil.CgroupParent()}); err == nil || !strings.Contains(err.Error(), "no state directory") {
		t.Fatalf("opened: %v", err)
	}
	entries, err := os.ReadDir(state)
	must(t, err)
	st, err := os.Stat(state)
	must(t, err)
	if _, err := os.Stat(filepath.Join(state, "roots/precious")); err != nil || len(entries) != 1 || st.Mode().Perm() != 0o750 {
		t.Errorf("%v, %v, %v", err, entries, st.Mode())
	}
}

// A caller who may not go without limits may not do so by asking for more than there is, and
// what lies in the task is its caller's error.
func TestRefusals(t *testing.T) {
	e := newExecutor(t)
	dir := openDir(t)
	write(t, dir, map[string]string{"file": "x", "in/sub/f": "y"})
	must(t, os.Symlink("/etc", filepath.Join(dir, "link")))
	must(t, unix.Mount("tmpfs", filepath.Join(dir, "in/sub"), "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { must(t, unix.Unmount(filepath.Join(dir, "in/sub"), 0)) })
	stranger := executor.WithCaller(context.Background(), executor.Caller{UID: 4321, GID: 4321})
	for name, c := range map[string]struct {
		ctx   context.Context
		spec  executor.TaskSpec
		kind  executor.Kind
		field string
	}{
		"memory":         {stranger, executor.TaskSpec{Script: "true", Limits: executor.ResourceLimits{MemoryBytes: 1 << 49}}, executor.Denied, "limits.memory_bytes"},
		"below a file":   {t.Context(), executor.TaskSpec{Script: "true", Workdir: dir, Outputs: []string{"file/x"}, Inputs: nil, Cache: executor.CacheOff}, executor.Invalid, "outputs"},
		"mount in input": {t.Context(), executor.TaskSpec{Script: "true", Inputs: []executor.Input{{Host: filepath.Join(dir, "in"), Sandbox: "/inputs/in"}}, Cache: executor.CacheOff}, executor.Invalid, "inputs"},
	} {
		if strings.HasPrefix(name, "below") { // whose mounts are refused before
			c.spec.Workdir = openDir(t)
			write(t, c.spec.Workdir, map[string]string{"file": "x"})
		}
		_, err := e.Execute(c.ctx, &c.spec)
		if x := executor.AsError(err); err == nil || x.Kind != c.kind || x.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Root works for who owns the work directory: else a build of a user's tree, by sudo, could
// write nowhere in it.
func TestRootsTaskOwnsWhatTheDirectorysOwnerDoes(t *testing.T) {
	e := newExecutor(t)
	dir, input := openDir(t), openDir(t)
	for d, id := range map[string]int{dir: 4321, input: 4322} {
		write(t, d, map[string]string{"sub/f": "x"})
		for _, p := range []string{"", "sub", "sub/f"} {
			must(t, os.Chown(filepath.Join(d, p), id, id))
		}
		must(t, os.Chmod(filepath.Join(d, "sub/f"), 0o600))
	}
	for _, mode := range []executor.WorkdirMode{executor.WorkdirOverlay, executor.WorkdirDirect} {
		out := runTask(t, e, &executor.TaskSpec{
			Script: "stat -c %U sub/f; echo y >>sub/f; echo z >sub/g; cat /inputs/i/sub/f", Workdir: dir, WorkdirMode: mode,
			Inputs: []executor.Input{{Host: input, Sandbox: "/inputs/i"}},
		})
		if !out.Success() || string(out.Stdout.Inline) != "build\nx" {
			t.Errorf("%v: %+v %q %s", mode, out.Cause, out.Stdout.Inline, out.Stderr.Inline)
		}
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "sub/g"), &st))
	if st.Uid != 4321 || st.Gid != 4321 {
		t.Errorf("sub/g is of %d:%d", st.Uid, st.Gid)
	}
}

// A root that was replaced goes with the last task that uses it.
func TestReplacedRootIsClosed(t *testing.T) {
	e := newExecutor(t)
	roots := e.roots
	a, leaveA, err := roots.host("isolated", netip.Addr{})
	must(t, err)
	b, leaveB, err := roots.host("isolated", netip.Addr{})
	must(t, err)
	if a != b {
		t.Fatal("two roots of one host")
	}
	must(t, leaveB())
	roots.mu.Lock()
	roots.all["isolated"].replaced = true // as host does
	delete(roots.all, "isolated")
	roots.mu.Unlock()
	if _, err := os.Stat(a.Dir()); err != nil {
		t.Error(err)
	}
	must(t, leaveA())
	if _, err := os.Stat(a.Dir()); err == nil {
		t.Error("the root is still there")
	}
}

// The same task from several callers at once runs once.
func TestSameTaskAtOnceRunsOnce(t *testing.T) {
	e := newExecutor(t)
	var running sync.WaitGroup
	outs := make([]*executor.TaskOutput, 4)
	for i := range outs {
		running.Go(func() {
			out, err := e.Execute(context.Background(), &executor.TaskSpec{Script: "sleep 0.3; echo once"})
			if err != nil {
				t.Error(err)
				return
			}
			outs[i] = out
		})
	}
	running.Wait()
	ran := 0
	for _, out := range outs {
		if out == nil || !out.Success() || string(out.Stdout.Inline) != "once\n" {
			t.Fatalf("%+v", out)
		}
		if !out.Cached {
			ran++
		}
	}
	if ran != 1 {
		t.Errorf("it ran %d times", ran)
	}
}

// What the daemon has open is not its callers' by way of /proc.
func TestOpenAsFollowsNoMagicLink(t *testing.T) {
	testutil.RequireRoot(t)
	dir := openDir(t)
	must(t, os.Mkdir(filepath.Join(dir, "private"), 0o700))
	f, err := os.Open(filepath.Join(dir, "private"))
	must(t, err)
	defer f.Close()
	for _, p := range []string{fmt.Sprintf("/proc/self/fd/%d", f.Fd()), "/proc/self/root/etc", "/proc/thread-self/cwd"} {
		if g, err := caller.OpenAs(executor.Caller{UID: 4321, GID: 4321}, p, unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
			g.Close()
			t.Errorf("%s was opened", p)
		}
	}
}

// A success that met a limit may have done less than it would have else.
func TestStrainedSuccessIsNotStored(t *testing.T) {
	e := newExecutor(t)
	spec := executor.TaskSpec{
		Script: "(for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do sleep 2 & done; wait) || true",
		Limits: executor.ResourceLimits{PidsMax: 16},
	}
	for range 2 {
		out, err := e.Execute(context.Background(), &spec)
		if err != nil {
			t.Fatal(err)
		}
		if !out.Success() || out.Cached || !strings.Contains(out.Evidence, "refused") {
			t.Errorf("cached %t, %s: %s", out.Cached, out.Cause, out.Evidence)
		}
	}
}
