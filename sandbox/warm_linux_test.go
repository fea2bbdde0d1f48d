package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// await waits for what comes on its own.
func (f *fixture) await(what string, there func() bool) {
	f.Helper()
	for end := time.Now().Add(time.Minute); !there(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.Fatalf("it does not come: %s", what)
		}
	}
}

func (f *fixture) awaitWaiting(n int) {
	f.Helper()
	f.await(fmt.Sprintf("%d sandboxes wait", n), func() bool { return f.host.Waiting() == n })
}

// newByHand is a fixture whose keeper is the test: fill and trim are called by it alone.
func newByHand(t *testing.T, n int) *fixture {
	t.Helper()
	f := newFixture(t)
	f.host.cfg.Warm = n
	return f
}

// waiting are the boxes that wait for a task with an isolated network.
func (f *fixture) waiting() []*box {
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	if k := f.host.kinds[kindOf{root: f.root, network: netpolicy.Isolated}]; k != nil {
		return append([]*box(nil), k.boxes...)
	}
	return nil
}

func (f *fixture) check(spec Spec) result {
	f.Helper()
	r := f.run(spec)
	if r.Code != 0 || r.Lost {
		f.Fatalf("%+v %s %s", r.Exit, r.out, r.err)
	}
	must(f.T, r.box.Close())
	return r
}

func TestWarmIsTakenAndMadeAgain(t *testing.T) {
	f := newByHand(t, 2)
	task := Spec{Shared: true, Argv: []string{"true"}}
	f.host.fill()
	if n := f.host.Waiting(); n != 0 {
		t.Fatalf("%d wait before any task", n)
	}
	f.check(task)
	f.host.fill()
	before := f.waiting()
	if len(before) != 2 {
		t.Fatalf("%d wait", len(before))
	}
	r := f.check(task)
	if r.box.box != before[0] && r.box.box != before[1] {
		t.Error("none that waited was taken")
	}
	// Others are none of this kind.
	for name, spec := range map[string]Spec{
		"not shared": {Argv: task.Argv}, "another network": {Shared: true, Argv: task.Argv, Network: netpolicy.Loopback},
		"an input": {Shared: true, Argv: task.Argv, Inputs: []Bind{{File: makeTree(t, 0, 0, nil), Target: "/in"}}},
	} {
		f.check(spec)
		if left := f.waiting(); len(left) != 1 || left[0] == r.box.box {
			t.Fatalf("%s: %d wait", name, len(left))
		}
	}
	f.host.fill()
	if n := f.host.Waiting(); n != 4 { // of the loopback network, too
		t.Errorf("%d wait", n)
	}
	f.host.fill()
	if n := f.host.Waiting(); n != 4 {
		t.Errorf("%d wait after another look", n)
	}
}

// TestWarmGivesWay: while a task starts, and while as many commands run as there are processors, none is made.
func TestWarmGivesWay(t *testing.T) {
	f := newByHand(t, 1)
	f.check(Spec{Shared: true, Argv: []string{"true"}})
	must(t, f.host.starts())
	if f.host.fill(); f.host.Waiting() != 0 {
		t.Error("one was made while a task started")
	}
	f.host.started()
	f.host.gone()
	var all []*Sandbox
	for range runtime.NumCPU() {
		b, _, _ := f.start(Spec{Shared: true, Argv: []string{"sleep", "1000"}})
		all = append(all, b)
	}
	if f.host.fill(); f.host.Waiting() != 0 {
		t.Error("one was made while all processors were in use")
	}
	must(t, all[0].Kill())
	if _, err := all[0].Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	f.await("the command is counted out", func() bool {
		f.host.mu.Lock()
		defer f.host.mu.Unlock()
		return f.host.running < runtime.NumCPU()
	})
	if f.host.fill(); f.host.Waiting() != 1 {
		t.Error("none was made while a processor was idle")
	}
}

// TestWarmIsDropped: those that nobody asks for in a while, and all when memory is short.
func TestWarmIsDropped(t *testing.T) {
	f := newByHand(t, 2)
	task := Spec{Shared: true, Argv: []string{"true"}}
	loop := Spec{Shared: true, Argv: []string{"true"}, Network: netpolicy.Loopback}
	f.check(task)
	f.check(loop)
	f.host.fill()
	f.host.trim(false)
	if n := f.host.Waiting(); n != 4 {
		t.Fatalf("%d wait", n)
	}
	f.host.mu.Lock()
	f.host.kinds[kindOf{root: f.root, network: netpolicy.Loopback}].used = time.Now().Add(-warmFor)
	f.host.mu.Unlock()
	f.host.trim(false)
	f.host.fill()
	if n := f.host.Waiting(); n != 2 || len(f.waiting()) != 2 {
		t.Errorf("%d wait when one kind is idle", n)
	}
	ended := f.waiting()
	f.host.trim(true)
	f.host.fill()
	if n := f.host.Waiting(); n != 0 {
		t.Errorf("%d wait when memory is short", n)
	}
	for _, b := range ended {
		f.gone(b)
	}
	f.check(task) // all the same
	f.host.trim(false)
	f.check(loop)
	f.host.fill()
	if n := f.host.Waiting(); n != 4 {
		t.Errorf("%d wait afterwards", n)
	}
}

func TestMemoryIsShort(t *testing.T) {
	for text, want := range map[string]bool{
		"MemTotal: 20000 kB\nMemFree: 1 kB\nMemAvailable: 1000 kB\n": false,
		"MemTotal: 20000 kB\nMemAvailable: 999 kB\n":                 true,
	} {
		if short, err := tellsShort(text); short != want || err != nil {
			t.Errorf("%q: %t, %v", text, short, err)
		}
	}
	for _, text := range []string{"", "MemTotal: 1 kB\n", "MemTotal:\nMemAvailable: x kB\n"} {
		if _, err := tellsShort(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	if _, err := memoryIsShort(); err != nil {
		t.Error(err)
	}
}

// gone sees that nothing is left of a box.
func (f *fixture) gone(b *box) {
	f.Helper()
	if !b.ended() {
		f.Errorf("the first process of %s lives", b.id)
	}
	if _, err := os.Stat(b.dir()); err == nil {
		f.Errorf("%s is there", b.dir())
	}
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		if found, _ := filepath.Glob(pattern + b.group.Path()); len(found) > 0 {
			f.Errorf("its groups are there: %s", found)
		}
	}
}

// TestBoxIsUsedOnce: after a task nothing of its sandbox is left, and no other task gets it.
func TestBoxIsUsedOnce(t *testing.T) {
	f := newWarm(t, 3)
	var mu sync.Mutex
	seen := map[string]bool{}
	once := func(t *testing.T, b *box) {
		mu.Lock()
		defer mu.Unlock()
		if seen[b.id] {
			t.Errorf("%s was used twice", b.id)
		}
		seen[b.id] = true
	}
	for range 10 {
		b, _, _ := f.start(Spec{Shared: true, Argv: []string{"true"}})
		once(t, b.box)
		if in, err := b.group.Procs(); err != nil || len(in) > 2 {
			t.Errorf("in its group: %v, %v", in, err)
		}
		_, err := b.Wait(t.Context())
		must(t, err)
		must(t, b.Close())
		f.gone(b.box)
	}
	f.awaitWaiting(3)
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() {
			b, _, _, err := f.try(Spec{Shared: true, Argv: []string{"true"}})
			if err != nil {
				t.Error(err)
				return
			}
			once(t, b.box)
			if _, err := b.Wait(context.Background()); err != nil {
				t.Error(err)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			f.gone(b.box)
		})
	}
	all.Wait()
	for _, b := range f.waiting() {
		once(t, b)
	}
}

// TestWarmThatDiedIsNotUsed: a task gets one that lives.
func TestWarmThatDiedIsNotUsed(t *testing.T) {
	f := newByHand(t, 3)
	f.check(Spec{Shared: true, Argv: []string{"true"}})
	f.host.fill()
	boxes := f.waiting()
	for _, b := range boxes[1:] {
		must(t, b.Kill())
		must(t, b.await())
	}
	if r := f.check(Spec{Shared: true, Argv: []string{"true"}}); r.box.box != boxes[0] {
		t.Error("it was not the one that lives")
	}
	f.await("what died is unmade", func() bool { _, err := os.Stat(boxes[1].dir()); return err != nil })
	if n := f.host.Waiting(); n != 0 {
		t.Errorf("%d wait", n)
	}
}

// TestForgetDropsWhatWaits: of a root nothing is left, also what was being made, and others keep theirs.
func TestForgetDropsWhatWaits(t *testing.T) {
	f := newWarm(t, 2)
	f.check(Spec{Shared: true, Argv: []string{"true"}})
	f.awaitWaiting(2)
	boxes := f.waiting()
	must(t, f.host.Forget(f.root))
	if n := f.host.Waiting(); n != 0 {
		t.Errorf("%d wait", n)
	}
	for _, b := range boxes {
		f.gone(b)
	}
	for range 5 {
		f.check(Spec{Shared: true, Argv: []string{"true"}})
		f.awaitMaking()
		must(t, f.host.Forget(f.root))
	}
	must(t, f.host.Close()) // finds none open
}

// awaitMaking waits until the keeper makes one.
func (f *fixture) awaitMaking() {
	f.Helper()
	f.await("one is made", func() bool {
		f.host.mu.Lock()
		defer f.host.mu.Unlock()
		for _, k := range f.host.kinds {
			if k.making > 0 || len(k.boxes) > 0 {
				return true
			}
		}
		return false
	})
}

// TestCloseWhileWarming: what waits and what is being made is unmade, and the leak check finds nothing.
func TestCloseWhileWarming(t *testing.T) {
	newFixture(t)
	for range 5 {
		f := openWarm(t, 2)
		f.check(Spec{Shared: true, Argv: []string{"true"}})
		f.awaitMaking()
		must(t, f.host.Close())
		left, err := names(filepath.Join(f.host.cfg.Dir, "layers"))
		if err != nil || len(left) > 0 {
			t.Errorf("left: %s, %v", left, err)
		}
	}
	f := openWarm(t, 2)
	b, _, _ := f.start(Spec{Shared: true, Argv: []string{"sleep", "1000"}})
	f.awaitMaking()
	if err := f.host.Close(); err == nil {
		t.Error("it closes while a sandbox is open")
	}
	must(t, b.Close())
	f.check(Spec{Shared: true, Argv: []string{"true"}}) // it goes on
	must(t, f.host.Close())
	if _, _, _, err := f.try(Spec{Shared: true, Argv: []string{"true"}}); err == nil {
		t.Error("a closed host starts a task")
	}
}

// zygotePid is the process that makes the others.
func (f *fixture) zygotePid() int {
	f.Helper()
	f.host.zygote.mu.Lock()
	defer f.host.zygote.mu.Unlock()
	pid, err := f.host.zygote.now.process.Pid()
	must(f.T, err)
	return pid
}

// TestZygoteDies: its sandboxes end with it, as lost, and the next task finds another.
func TestZygoteDies(t *testing.T) {
	f := newByHand(t, 2)
	task := Spec{Shared: true, Argv: []string{"true"}}
	f.check(task)
	first := f.zygotePid()
	must(t, unix.Kill(first, unix.SIGKILL))
	f.await("it is reaped", func() bool { return unix.Kill(first, 0) == unix.ESRCH })
	f.check(task) // one dead between tasks
	if f.zygotePid() == first {
		t.Error("it is the same")
	}
	f.host.fill()
	boxes := f.waiting()
	running, _, _ := f.start(Spec{Argv: []string{"sleep", "1000"}})
	must(t, unix.Kill(f.zygotePid(), unix.SIGKILL))
	exit, err := running.Wait(t.Context())
	if err != nil || !exit.Lost || running.Work() != nil {
		t.Errorf("a running task: %+v, %v", exit, err)
	}
	must(t, running.Close())
	f.gone(running.box)
	for _, b := range boxes {
		must(t, b.await())
	}
	f.check(task) // with neither
	f.await("what waited is unmade", func() bool { _, err := os.Stat(boxes[0].dir()); return err != nil })
}

// TestZygoteDiesAsATaskStarts: the task runs, unless it ran when all of the dead one's sandboxes ended. No task is told of a
// sandbox that died while it waited.
func TestZygoteDiesAsATaskStarts(t *testing.T) {
	f := newByHand(t, 2)
	task := Spec{Shared: true, Argv: []string{"true"}}
	f.check(task)
	for range 20 {
		f.host.fill()
		must(t, unix.Kill(f.zygotePid(), unix.SIGKILL))
		b, _, _ := f.start(task)
		if exit, err := b.Wait(t.Context()); err != nil || exit.Code != 0 && !exit.Lost {
			t.Errorf("%+v, %v", exit, err)
		}
		must(t, b.Close())
	}
	f.check(task)
}

// hang has the zygote hang, and a task find that out.
func (f *fixture) hang() (stopped int) {
	f.Helper()
	stopped = f.zygotePid()
	must(f.T, unix.Kill(stopped, unix.SIGSTOP))
	f.host.zygote.mu.Lock()
	f.host.zygote.timeout = 100 * time.Millisecond
	_, err := f.host.zygote.ask(first.Request{})
	// The next one may be slower than that, under load.
	f.host.zygote.timeout = zygoteTime
	f.host.zygote.mu.Unlock()
	if !silent(err) {
		f.Errorf("the zygote says: %v", err)
	}
	return stopped
}

// TestZygoteHangs: one that does not answer is replaced, its tasks go on, and it ends with the last of them.
func TestZygoteHangs(t *testing.T) {
	f := newFixture(t)
	task := Spec{Argv: []string{"true"}}
	f.check(task)
	one, _, _ := f.start(Spec{Argv: []string{"sleep", "1000"}})
	two, _, _ := f.start(Spec{Argv: []string{"sleep", "1000"}})
	stopped := f.hang()
	f.check(task)
	if f.zygotePid() == stopped {
		t.Error("it is the same")
	}
	must(t, unix.Kill(stopped, 0))
	must(t, one.Terminate())
	if exit, err := one.Wait(t.Context()); err != nil || exit.Lost || exit.Signal != int(unix.SIGTERM) {
		t.Errorf("a running task: %+v, %v", exit, err)
	}
	must(t, one.Close())
	f.gone(one.box)
	must(t, unix.Kill(stopped, 0))
	must(t, two.Kill())
	must(t, two.Close())
	f.await("it ends", func() bool { return unix.Kill(stopped, 0) == unix.ESRCH })
	f.check(task)
}

// TestZygotesAreFew: those that do not answer are replaced until there are too many.
func TestZygotesAreFew(t *testing.T) {
	f := newFixture(t)
	task := Spec{Argv: []string{"true"}}
	var all []*Sandbox
	var stopped []int
	for range maxZygotes {
		s, _, _ := f.start(Spec{Argv: []string{"sleep", "1000"}})
		all = append(all, s)
		stopped = append(stopped, f.hang())
	}
	if _, _, _, err := f.try(task); err == nil || !strings.Contains(err.Error(), "did not answer") {
		t.Errorf("with %d that do not answer: %v", maxZygotes, err)
	}
	must(t, all[1].Close())
	f.await("there is room for another", func() bool { return f.host.zygote.running.Load() < maxZygotes })
	if unix.Kill(stopped[1], 0) != unix.ESRCH {
		t.Error("one without tasks is there")
	}
	f.check(task)
}

// TestProtectionIsNotInherited: a zygote is as safe from the OOM killer as this program, and tasks are as they were.
func TestProtectionIsNotInherited(t *testing.T) {
	f := newByHand(t, 1)
	const ours = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(ours)
	must(t, err)
	if err := os.WriteFile(ours, []byte("-500"), 0); errors.Is(err, unix.EACCES) {
		t.Skip("that takes CAP_SYS_RESOURCE, which root has in the test VM, if not everywhere")
	} else {
		must(t, err)
	}
	defer func() { must(t, os.WriteFile(ours, before, 0)) }()
	task := Spec{Shared: true, Script: "cat /proc/self/oom_score_adj; echo -1 >/proc/self/oom_score_adj || cat /proc/self/oom_score_adj"}
	for _, how := range []string{"cold", "warm"} {
		if r := f.check(task); r.out != "0\n0\n" {
			t.Errorf("%s: a task has %q", how, r.out)
		}
		f.host.fill()
		for _, b := range f.waiting() {
			if got, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", b.pid)); err != nil || string(got) != "0\n" {
				t.Errorf("a first process has %q, %v", got, err)
			}
		}
	}
	if got, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", f.zygotePid())); err != nil || string(got) != "-500\n" {
		t.Errorf("the zygote has %q, %v", got, err)
	}
}

// TestWarmCommandKilled: the process that would have been the command may die while it waits, in all that wait; the task does
// not notice.
func TestWarmCommandKilled(t *testing.T) {
	f := newByHand(t, 2)
	f.check(Spec{Shared: true, Argv: []string{"true"}})
	f.host.fill()
	all := f.waiting()
	for _, b := range all {
		f.killCommand(b)
	}
	r := f.check(Spec{Shared: true, Argv: []string{"true"}})
	for _, b := range all {
		if r.box.id == b.id {
			t.Error("a dead one was taken")
		}
	}
	f.host.trim(true)
	for _, b := range all {
		f.gone(b)
	}
}

// killCommand kills what would be the command.
func (f *fixture) killCommand(b *box) {
	f.Helper()
	t := f.T
	in, err := b.group.Procs()
	must(t, err)
	if len(in) != 2 {
		t.Fatalf("of a sandbox that waits there are %v", in)
	}
	for _, pid := range in {
		if pid == b.pid {
			continue
		}
		fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
		must(t, err)
		hand := os.NewFile(uintptr(fd), "command")
		defer hand.Close()
		must(t, unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
		must(t, awaitExit(hand))
	}
}

// TestWarmLimitsAhead: what waits has the limits of the last task in force, unless they are too small to be made with.
func TestWarmLimitsAhead(t *testing.T) {
	f := newByHand(t, 1)
	usual := limits.Limits{MemoryBytes: 256 << 20, PidsMax: 50}
	for _, c := range []struct {
		last, want limits.Limits
	}{{usual, usual}, {limits.Limits{MemoryBytes: 32 << 20}, limits.Limits{}}, {limits.Limits{PidsMax: 4}, limits.Limits{}}} {
		f.host.trim(true)
		f.host.trim(false)
		before := f.check(Spec{Shared: true, Argv: []string{"true"}, Limits: c.last}).box.Group().Applied()
		f.host.fill()
		b := f.waiting()[0]
		if c.want != (limits.Limits{}) && !maps.Equal(b.group.Applied(), before) || c.want == (limits.Limits{}) && len(b.group.Applied()) > 2 {
			t.Errorf("after %+v there waits one with %v", c.last, b.group.Applied())
		}
		// The task gets its own, those of before or others.
		for _, l := range []limits.Limits{c.last, {MemoryBytes: 128 << 20}, {}} {
			f.host.fill()
			r := f.check(Spec{Shared: true, Argv: []string{"true"}, Limits: l})
			fresh := f.check(Spec{Argv: []string{"true"}, Limits: l})
			if got, want := r.box.Group().Applied(), fresh.box.Group().Applied(); !maps.Equal(got, want) {
				t.Errorf("with %+v it has %v, and %v if made for it", l, got, want)
			}
		}
	}
}

// TestStartIsCanceled: also where the first process does nothing.
func TestStartIsCanceled(t *testing.T) {
	f := newByHand(t, 1)
	f.check(Spec{Shared: true, Argv: []string{"true"}})
	f.host.fill()
	b := f.waiting()[0]
	must(t, unix.Kill(b.pid, unix.SIGSTOP))
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must(t, err)
	defer null.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = f.host.Start(ctx, Spec{Root: f.root, Shared: true, Argv: []string{"true"}, Stdio: [3]*os.File{null, null, null}})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	f.gone(b)
}

// TestPreparedIsUnreadable: neither the first process nor what will be the command can be looked into by their own user (proc(5):
// what is not dumpable is not its user's).
func TestPreparedIsUnreadable(t *testing.T) {
	f := newByHand(t, 1)
	f.check(Spec{Shared: true, Argv: []string{"true"}})
	f.host.fill()
	b := f.waiting()[0]
	in, err := b.group.Procs()
	must(t, err)
	for _, pid := range in {
		var st unix.Stat_t
		must(t, unix.Stat(fmt.Sprintf("/proc/%d/environ", pid), &st))
		if st.Uid >= b.ids.base && st.Uid < b.ids.base+rangeSize {
			t.Errorf("process %d of %v is its user's: %d", pid, in, st.Uid-b.ids.base)
		}
	}
}

// TestRootIsReadOnly: the file system that is shared, and not just each sandbox's mount of it.
func TestRootIsReadOnly(t *testing.T) {
	f := newFixture(t)
	r := f.check(Spec{Shared: true, Argv: []string{"cat", "/proc/self/mountinfo"}, Env: []string{"PATH=" + DefaultPath}})
	for line := range strings.Lines(r.out) {
		mount, fs, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(mount); fields[4] == "/" {
			if options := strings.Fields(fs); !strings.HasPrefix(fields[5], "ro,") || !strings.HasPrefix(options[2], "ro") {
				t.Error(line)
			}
			return
		}
	}
	t.Errorf("there is no root: %s", r.out)
}

// TestUsageIsTheCommands: the time of the first process is not the task's.
func TestUsageIsTheCommands(t *testing.T) {
	f := newFixture(t)
	// Long enough to be seen where the kernel counts in ticks.
	b, _, _ := f.start(Spec{Script: "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"})
	_, err := b.Wait(t.Context())
	must(t, err)
	its, err := b.Usage()
	must(t, err)
	all, err := b.group.Usage()
	must(t, err)
	if b.own.user+b.own.system <= 0 || its.CPUUser > all.CPUUser-b.own.user || its.CPUSystem > max(0, all.CPUSystem-b.own.system) {
		t.Errorf("the task's %+v, all %+v, the first process's %+v", its, all, b.own)
	}
}
