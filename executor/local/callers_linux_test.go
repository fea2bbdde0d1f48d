package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/access"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
	"github.com/sandboxd/sandboxd/pool"
	"github.com/sandboxd/sandboxd/rootfs"
)

// Users that no account belongs to, and nothing on this machine.
var (
	alice = executor.Caller{UID: 4001, GID: 4001, Groups: []uint32{4100}}
	bob   = executor.Caller{UID: 4002, GID: 4002}
)

func by(t *testing.T, c executor.Caller) context.Context {
	return executor.WithCaller(t.Context(), c)
}

// own gives what is at paths below dir to c.
func own(t *testing.T, c executor.Caller, dir string, paths ...string) {
	t.Helper()
	for _, p := range paths {
		must(t, os.Lchown(filepath.Join(dir, p), int(c.UID), int(c.GID)))
	}
}

// neighbours makes a directory of alice's and two of bob's, of which one is closed.
func neighbours(t *testing.T) (dir string) {
	t.Helper()
	dir = openDir(t)
	write(t, dir, map[string]string{
		"alice/f": "alice's\n", "alice/sub/f": "alice's\n", "alice/bobs/f": "bob's\n", "alice/secret": "bob's\n",
		"bob/closed/in/f": "bob's\n", "bob/open/f": "bob's\n", "bob/open/secret": "bob's\n", "bob/any/f": "bob's\n",
	})
	own(t, alice, dir, "alice", "alice/f", "alice/sub", "alice/sub/f")
	own(t, bob, dir, "alice/bobs", "alice/bobs/f", "alice/secret", "bob", "bob/closed", "bob/closed/in", "bob/closed/in/f", "bob/open", "bob/open/f", "bob/open/secret", "bob/any")
	for p, mode := range map[string]os.FileMode{"alice/secret": 0o600, "bob/closed": 0o700, "bob/open/secret": 0o600, "bob/any": 0o777} {
		must(t, os.Chmod(filepath.Join(dir, p), mode))
	}
	must(t, os.Symlink("../bob/closed/in", filepath.Join(dir, "alice/link")))
	must(t, os.Symlink("../bob/any", filepath.Join(dir, "alice/any")))
	return dir
}

// Nobody names by the daemon what they could not open or write to themselves.
func TestPathsAreTheCallers(t *testing.T) {
	e := newExecutor(t)
	dir := neighbours(t)
	at := func(p string) string { return filepath.Join(dir, p) }
	input := func(p string) []executor.Input {
		return []executor.Input{{Host: at(p), Sandbox: "/inputs/i"}}
	}
	for name, c := range map[string]struct {
		spec  executor.TaskSpec
		field string
		text  string
	}{
		"closed workdir":           {executor.TaskSpec{Workdir: at("bob/closed/in")}, "workdir", "permission denied"},
		"workdir by a link":        {executor.TaskSpec{Workdir: at("alice/link")}, "workdir", "permission denied"},
		"workdir that is not":      {executor.TaskSpec{Workdir: at("bob/closed/none")}, "workdir", "permission denied"},
		"input in a closed one":    {executor.TaskSpec{Inputs: input("bob/closed/in/f")}, "inputs", "permission denied"},
		"input that is secret":     {executor.TaskSpec{Inputs: input("bob/open/secret")}, "inputs", "permission denied"},
		"input by a link":          {executor.TaskSpec{Inputs: input("alice/link")}, "inputs", "permission denied"},
		"input by /proc":           {executor.TaskSpec{Inputs: []executor.Input{{Host: "/proc/1/root/etc", Sandbox: "/inputs/i"}}}, "inputs", ""},
		"root":                     {executor.TaskSpec{Rootfs: at("bob/closed/in")}, "rootfs", "permission denied"},
		"secret below the workdir": {executor.TaskSpec{Workdir: at("alice")}, "workdir", "secret"},
		"secret below an input":    {executor.TaskSpec{Inputs: input("bob/open")}, "inputs", "secret"},
		"output in another's":      {executor.TaskSpec{Workdir: at("bob/open"), Outputs: []string{"o"}}, "outputs", ".: is a directory that you may not write to"},
		"output below another's":   {executor.TaskSpec{Workdir: at("alice"), Outputs: []string{"bobs/o"}}, "outputs", "bobs: is a directory that you may not write to"},
		"output by a link":         {executor.TaskSpec{Workdir: at("alice"), Outputs: []string{"any/o"}}, "outputs", "any: is, or lies beyond, a symbolic link"},
		"output in direct mode":    {executor.TaskSpec{Workdir: at("alice"), WorkdirMode: executor.WorkdirDirect, Outputs: []string{"bobs/o"}}, "", ""},
	} {
		for _, mode := range []executor.CacheMode{executor.CacheUse, executor.CacheOff} {
			if mode == executor.CacheOff && strings.HasPrefix(name, "secret") {
				continue // nobody reads it before the task
			}
			t.Run(strings.ReplaceAll(name, " ", "-")+"-"+string(mode), func(t *testing.T) {
				before := tree(t, dir)
				spec := c.spec
				spec.Script, spec.Cache = "echo x >bobs/o || echo x >any/o || exit 3", mode
				ctx := executor.WithEvents(by(t, alice), func(ev executor.TaskEvent) {
					if ev.Kind == executor.EventStarted && c.field != "" {
						t.Error("it was started")
					}
				})
				out, err := e.Execute(ctx, &spec)
				if c.field == "" { // the task finds out
					if err != nil || out.Success() {
						t.Errorf("%+v, %v", out, err)
					}
				} else if x := executor.AsError(err); err == nil || x.Kind != executor.Invalid || x.Field != c.field || !strings.Contains(x.Text, c.text) {
					t.Errorf("%v; want %q of %s", err, c.text, c.field)
				}
				if after := tree(t, dir); after != before {
					t.Errorf("the tree was\n%s and is\n%s", before, after)
				}
			})
		}
	}
	// What a secret of another's is below a work directory, the task cannot read either.
	for name, spec := range map[string]executor.TaskSpec{
		"overlay": {Workdir: at("alice"), Script: "cat secret"}, "direct": {Workdir: at("alice"), Script: "cat secret", WorkdirMode: executor.WorkdirDirect},
		"write": {Workdir: at("alice"), Script: "echo >>bobs/f", WorkdirMode: executor.WorkdirDirect},
		"input": {Inputs: input("bob/open"), Script: "cat /inputs/i/secret"}, "root": {Rootfs: "/", Script: "true"},
	} {
		spec.Cache = executor.CacheOff
		out, err := e.Execute(by(t, alice), &spec)
		if name == "root" {
			if err == nil {
				t.Error("the machine's own root was taken")
			}
		} else if err != nil || out.Success() || strings.Contains(string(out.Stdout.Inline), "bob") || !strings.Contains(string(out.Stderr.Inline), "Permission denied") {
			t.Errorf("%s: %+v, %v", name, out, err)
		}
	}
	// And bob may.
	out, err := e.Execute(by(t, bob), &executor.TaskSpec{Workdir: at("bob/closed/in"), Script: "cat f >o", Outputs: []string{"o"}, Inputs: input("bob/open/secret")})
	if err != nil || !out.Success() || read(t, at("bob/closed/in/o")) != "bob's\n" {
		t.Errorf("bob's own: %+v, %v", out, err)
	}
}

// tree tells of all in dir by name, owner, mode and size.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		fmt.Fprintln(&b, p[len(dir):], st.Uid, st.Gid, st.Mode, st.Size)
		return nil
	}))
	return b.String()
}

// What a task makes in its caller's tree is its caller's, with the group that the directory gives.
func TestWhatATaskMakesIsItsCallers(t *testing.T) {
	e := newExecutor(t)
	dir, shared := openDir(t), openDir(t)
	write(t, shared, map[string]string{"d/old": "x", "made/old": "x"}) // as a team's tree is
	own(t, alice, dir, "")
	for _, p := range []string{"d", "d/old", "made", "made/old"} {
		must(t, os.Lchown(filepath.Join(shared, p), int(alice.UID), 4100))
	}
	for _, p := range []string{"d", "made"} {
		must(t, os.Chmod(filepath.Join(shared, p), os.ModeSetgid|0o775))
	}
	must(t, os.Lchown(shared, int(alice.UID), 4100)) // a group that she is in beside her own
	must(t, os.Chmod(shared, os.ModeSetgid|0o775))
	for _, c := range []struct {
		dir  string
		mode executor.WorkdirMode
		gid  uint32
	}{{dir, executor.WorkdirOverlay, alice.GID}, {dir, executor.WorkdirDirect, alice.GID}, {shared, executor.WorkdirOverlay, 4100}, {shared, executor.WorkdirDirect, 4100}} {
		for range 2 { // the second is from the cache, without direct
			out, err := e.Execute(by(t, alice), &executor.TaskSpec{
				Workdir: c.dir, WorkdirMode: c.mode, Outputs: []string{"o", "made/o", "d"},
				Script: "mkdir -p made d/e; [ ! -e made/old ] || echo y >>made/old; echo x | tee o made/o d/e/f >/dev/null; ln -s f d/e/l",
			})
			must(t, err)
			if !out.Success() {
				t.Fatalf("%+v: %s", out, out.Stderr.Inline)
			}
			for _, p := range []string{"o", "made", "made/o", "d", "d/e", "d/e/f", "d/e/l"} {
				var st unix.Stat_t
				must(t, unix.Lstat(filepath.Join(c.dir, p), &st))
				if st.Uid != alice.UID || st.Gid != c.gid {
					t.Errorf("%s in mode %q is of %d:%d; want %d:%d", p, c.mode, st.Uid, st.Gid, alice.UID, c.gid)
				}
			}
			for _, p := range []string{"o", "made/o", "d/e"} {
				must(t, os.RemoveAll(filepath.Join(c.dir, p)))
			}
		}
	}
}

// swap exchanges two names in a directory all the time, until the function that it returns is called. That
// tells how often.
func swap(t *testing.T, dir, a, b string, pace time.Duration) (stop func() int) {
	t.Helper()
	d, err := os.Open(dir)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	n := 0
	var swapping sync.WaitGroup
	swapping.Go(func() {
		defer d.Close()
		for ctx.Err() == nil {
			if err := unix.Renameat2(int(d.Fd()), a, int(d.Fd()), b, unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("swap: %v", err)
				return
			}
			n++
			time.Sleep(pace) // so that there are moments in which nothing changes
		}
	})
	stop = sync.OnceValue(func() int { cancel(); swapping.Wait(); return n })
	t.Cleanup(func() { stop() })
	return stop
}

// races is how often a race is tried of so many times. The test VM's processors are emulated.
func races(n int) int {
	if os.Getenv("SANDBOXD_VM") == "1" {
		return n / 20
	}
	return n
}

// A link that is changed while the daemon opens it leads to what the caller may open, or to an error.
func TestOpeningIsNoRace(t *testing.T) {
	newExecutor(t)
	dir := neighbours(t)
	a := filepath.Join(dir, "alice")
	theirs := map[uint64]bool{}
	for _, p := range []string{"bob/closed", "bob/closed/in", "bob/closed/in/f"} {
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(dir, p), &st))
		theirs[st.Ino] = true
	}
	must(t, os.Symlink("sub", filepath.Join(a, "own")))
	stop := swap(t, a, "own", "link", 0)
	opened, refused, tries := 0, 0, races(10_000)
	for range tries {
		o, err := caller.Open(alice, &executor.TaskSpec{Workdir: filepath.Join(a, "link"), Inputs: []executor.Input{{Host: filepath.Join(a, "link/f")}, {Host: filepath.Join(a, "own")}}})
		if err != nil {
			if !errors.Is(err, unix.EACCES) {
				t.Fatal(err)
			}
			refused++
			continue
		}
		opened++
		for _, f := range append(o.Inputs, o.Work) {
			var st unix.Stat_t
			must(t, unix.Fstat(int(f.Fd()), &st))
			if theirs[st.Ino] {
				t.Fatalf("%s is bob's", f.Name())
			}
		}
		must(t, o.Close())
	}
	t.Logf("%d swaps; %d of %d opened, %d refused", stop(), opened, tries, refused)
	if opened == 0 || refused == 0 {
		t.Error("there was no race")
	}
	// Root would have opened it: it is the rights that count.
	f, err := caller.OpenAs(executor.Caller{}, filepath.Join(dir, "bob/closed/in"), unix.O_RDONLY|unix.O_DIRECTORY)
	must(t, err)
	must(t, f.Close())
}

// Nor does a directory that becomes a link while outputs are placed lead them elsewhere, be it where all may write.
func TestPlacingIsNoRace(t *testing.T) {
	newExecutor(t)
	dir := neighbours(t)
	a := filepath.Join(dir, "alice")
	must(t, os.WriteFile(filepath.Join(dir, "blob"), []byte("x"), 0o600))
	work, err := caller.OpenAs(alice, a, unix.O_RDONLY|unix.O_DIRECTORY)
	must(t, err)
	defer work.Close()
	for _, name := range []string{"any", "link", "bobs"} { // to where all may write, to what is closed, and what bob may write to
		t.Run(name, func(t *testing.T) {
			before := tree(t, filepath.Join(dir, "bob"))
			stop := swap(t, a, "sub", name, 0)
			placed, tries := 0, races(5_000)
			for range tries {
				blob, err := os.Open(filepath.Join(dir, "blob"))
				must(t, err)
				err = caller.As(alice, func() error {
					return rootfs.Place(t.Context(), work, []string{"sub/o"}, []rootfs.Entry{{Path: "sub/o", Kind: 'f', Mode: 0o644, Size: 1}},
						func(rootfs.Entry) (*os.File, error) { return blob, nil }, nil, nil)
				})
				_ = blob.Close() // where it did not come to that
				if err == nil {
					placed++
				}
			}
			n := stop()
			t.Logf("%d swaps; %d of %d placed", n, placed, tries)
			if placed == 0 || placed == tries {
				t.Error("there was no race")
			}
			if after := tree(t, filepath.Join(dir, "bob")); after != before {
				t.Errorf("bob's tree was\n%s and is\n%s", before, after)
			}
			if n%2 == 1 {
				must(t, unix.Renameat2(unix.AT_FDCWD, filepath.Join(a, "sub"), unix.AT_FDCWD, filepath.Join(a, name), unix.RENAME_EXCHANGE))
			}
			if got := read(t, filepath.Join(a, "bobs/f")); got != "bob's\n" {
				t.Errorf("%q", got)
			}
			if _, err := os.Lstat(filepath.Join(a, "bobs/o")); err == nil {
				t.Error("it was placed in bob's directory")
			}
		})
	}
}

// The same for whole tasks: what they show is alice's.
func TestTasksAreNoRace(t *testing.T) {
	e := newExecutor(t)
	dir := neighbours(t)
	a := filepath.Join(dir, "alice")
	must(t, os.Remove(filepath.Join(a, "secret"))) // which cannot be hashed
	must(t, os.Symlink("sub", filepath.Join(a, "own")))
	must(t, os.Symlink("../../bob/closed/in", filepath.Join(a, "sub/link")))
	write(t, a, map[string]string{"sub/dir/f": "alice's\n"})
	own(t, alice, a, "sub/dir", "sub/dir/f")
	stops := []func() int{swap(t, a, "own", "link", 0), swap(t, filepath.Join(a, "sub"), "dir", "link", 3*time.Millisecond)}
	before := tree(t, filepath.Join(dir, "bob"))
	ran, refused := 0, 0
	for i := range races(300) {
		spec := &executor.TaskSpec{
			Workdir: filepath.Join(a, "link"), Cache: executor.CacheOff, Outputs: []string{"o"},
			Script: "cat f; [ ! -e /inputs/f ] || cat /inputs/f; cat dir/f link/f || true; echo x >o; mkdir -p dir; echo x >dir/o",
		}
		if i%8 == 0 {
			spec.Inputs = []executor.Input{{Host: filepath.Join(a, "link/f"), Sandbox: "/inputs/f"}}
		}
		if i%4 == 0 {
			spec.Outputs = []string{"dir/o"}
		}
		if i%2 == 0 { // which hashes all of it
			spec.Cache = executor.CacheUse
		}
		out, err := e.Execute(by(t, alice), spec)
		if err != nil {
			refused++
			if k := executor.KindOf(err); k != executor.Invalid {
				t.Fatalf("%s: %v", k, err)
			}
			continue
		}
		ran++
		if s := string(out.Stdout.Inline); strings.Contains(s, "bob") {
			t.Fatalf("it shows %q", s)
		}
	}
	swaps := 0
	for _, stop := range stops {
		swaps += stop()
	}
	t.Logf("%d swaps; %d ran, %d refused", swaps, ran, refused)
	if refused == 0 || ran == 0 {
		t.Error("there was no race")
	}
	if after := tree(t, filepath.Join(dir, "bob")); after != before {
		t.Errorf("bob's tree was\n%s and is\n%s", before, after)
	}
}

// A result is one user's, also where another has the same files; and so is the right to read a file that is known.
func TestResultsAreOneUsers(t *testing.T) {
	e := newExecutor(t)
	dir := openDir(t)
	write(t, dir, map[string]string{"f": "of both\n"})
	spec := &executor.TaskSpec{Script: "cat /inputs/f; head -c 16 /dev/urandom | md5sum", Inputs: []executor.Input{{Host: filepath.Join(dir, "f"), Sandbox: "/inputs/f"}}}
	run := func(c executor.Caller) *executor.TaskOutput {
		t.Helper()
		out, err := e.Execute(by(t, c), spec)
		must(t, err)
		return out
	}
	first := run(alice)
	if other := run(bob); other.Cached || string(other.Stdout.Inline) == string(first.Stdout.Inline) || other.Signature != first.Signature {
		t.Errorf("bob's is %+v, alice's %+v", other, first)
	}
	if again := run(alice); !again.Cached || string(again.Stdout.Inline) != string(first.Stdout.Inline) {
		t.Errorf("alice's own: %+v", again)
	}
	// Group 4100 may read it, and alice is in it no more.
	must(t, os.Chown(filepath.Join(dir, "f"), int(bob.UID), 4100))
	must(t, os.Chmod(filepath.Join(dir, "f"), 0o640))
	run(bob)
	late := alice
	late.Groups = nil
	if _, err := e.Execute(by(t, late), spec); executor.AsError(err).Field != "inputs" {
		t.Errorf("without the group: %v", err)
	}
	if _, err := e.Execute(by(t, alice), spec); err != nil {
		t.Errorf("with the group: %v", err)
	}
}

// What access rules say holds for whole tasks, and from the next on where they change.
func TestAccessIsEnforced(t *testing.T) {
	e := newExecutor(t)
	limited := access.Rule{Name: "access rule 1 (user 4001)", User: &alice.UID, Networks: []executor.NetworkPolicy{executor.NetworkIsolated}, Timeout: 1e9,
		Most: executor.ResourceLimits{MemoryBytes: 64 << 20, PidsMax: 20, OpenFiles: 128, OutputBytes: 1 << 20, TmpBytes: 1 << 20}}
	e.Reconfigure(access.Rules{limited})
	out, err := e.Execute(by(t, alice), &executor.TaskSpec{Script: "ulimit -Hn; df -k /tmp | tail -1 | awk '{print $2}'; sleep 1000"})
	must(t, err)
	if got := strings.Join(strings.Fields(string(out.Stdout.Inline)), " "); out.Cause != executor.CauseTimedOut || got != "128 1028" { // with a page for the script
		t.Errorf("%s, %q, %s", out.Cause, got, out.Stderr.Inline)
	}
	if m := out.Applied.Limits; m["memory.max"] != "67108864" && m["memory.limit_in_bytes"] != "67108864" || m["pids.max"] == "1024" {
		t.Errorf("applied %v", m)
	}
	out, err = e.Execute(by(t, alice), &executor.TaskSpec{Script: "yes"})
	must(t, err)
	if out.Cause != executor.CauseOutputLimit || out.Stdout.Digest.Size != 1<<20 {
		t.Errorf("%s, %+v", out.Cause, out.Stdout.Digest)
	}
	loop := &executor.TaskSpec{Script: "true", Network: executor.NetworkLoopback}
	if _, err := e.Execute(by(t, alice), loop); executor.KindOf(err) != executor.Denied || executor.AsError(err).Field != "network" {
		t.Errorf("loopback: %v", err)
	}
	if _, err := e.Execute(by(t, bob), loop); err != nil {
		t.Errorf("bob: %v", err)
	}
	e.Reconfigure(nil)
	if _, err := e.Execute(by(t, alice), loop); err != nil {
		t.Errorf("alice, without the rule: %v", err)
	}
	full := &executor.TaskSpec{Script: "true", Network: executor.NetworkFull}
	if _, err := e.Execute(by(t, bob), full); executor.KindOf(err) != executor.Denied {
		t.Errorf("bob: %v", err)
	}
	if _, err := e.Execute(t.Context(), full); err != nil {
		t.Errorf("root: %v", err)
	}
	for _, c := range []executor.Caller{{UID: 65534, GID: 4001}, {UID: 4001, GID: 65534}, {UID: 0x70000005, GID: 4001}} {
		if _, err := e.Execute(by(t, c), &executor.TaskSpec{Script: "true"}); executor.KindOf(err) != executor.Denied {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// A user's tasks that wait keep no other's from being opened, looked up and run; and
// concurrent tasks are as many as the rule says.
func TestWaitingTasksHoldUpNobodyElse(t *testing.T) {
	e := newExecutor(t)
	e.Reconfigure(access.Rules{{Name: "alice", User: &alice.UID, Tasks: 1}})
	p := pooled(t, e)
	dir := openDir(t)
	must(t, unix.Mkfifo(filepath.Join(dir, "go"), 0o666))
	own(t, alice, dir, "", "go")
	release, err := os.OpenFile(filepath.Join(dir, "go"), os.O_RDWR, 0)
	must(t, err)
	defer release.Close()
	const n = 100
	var all sync.WaitGroup
	started := make(chan struct{}, n)
	ctx := executor.WithEvents(by(t, alice), func(ev executor.TaskEvent) {
		if ev.Kind == executor.EventStarted {
			started <- struct{}{}
		}
	})
	waiting, cancel := context.WithCancel(ctx)
	defer all.Wait()
	defer cancel()
	for i := range n {
		all.Go(func() {
			out, err := p.Execute(waiting, &executor.TaskSpec{Name: fmt.Sprint(i), Script: "read x <go", Workdir: dir, WorkdirMode: executor.WorkdirDirect})
			if err == nil && out.Cause != executor.CauseCanceled || err != nil && executor.KindOf(err) != executor.Canceled {
				t.Errorf("%+v, %v", out, err)
			}
		})
	}
	<-started
	for end := time.Now().Add(10 * time.Second); p.AggregateStats().Queued < n-1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d wait; want all but one", p.AggregateStats().Queued)
		}
	}
	if st, err := e.Status(t.Context()); err != nil || st.Active != 1+int64(e.cfg.MaxParallel)+16 {
		t.Errorf("%d are opened, %v", st.Active, err)
	}
	for range 5 {
		out, err := p.Execute(by(t, bob), &executor.TaskSpec{Script: "echo bob"})
		if err != nil || !out.Success() {
			t.Errorf("bob: %+v, %v", out, err)
		}
	}
	if len(started) > 0 {
		t.Error("more than one of alice's tasks runs")
	}
	cancel()
	all.Wait()
	if s := p.AggregateStats(); s.Queued+s.Active != 0 {
		t.Error("some that were canceled wait still")
	}
	// Without a pool there is nobody to see to it.
	if _, err := e.Execute(by(t, alice), &executor.TaskSpec{Script: "true"}); executor.KindOf(err) != executor.Unsupported {
		t.Errorf("without a pool: %v", err)
	}
}

// pooled is a pool of these.
func pooled(t *testing.T, es ...*Executor) *pool.Pool {
	t.Helper()
	var cfg pool.Config
	all := map[string]*Executor{}
	for i, e := range es {
		name := fmt.Sprint(i)
		all[name], cfg.Executors = e, append(cfg.Executors, pool.ExecutorConfig{Name: name})
	}
	cfg.Open = func(_ context.Context, c pool.ExecutorConfig) (executor.Executor, error) { return all[c.Name], nil }
	p, err := pool.New(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { must(t, p.Close(context.Background())) })
	return p
}
