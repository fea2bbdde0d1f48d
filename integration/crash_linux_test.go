package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// How often TestCrash kills, and the seed of its choices: for soaks.
const (
	crashRoundsEnv = "SANDBOXD_CRASH_ROUNDS"
	crashSeedEnv   = "SANDBOXD_CRASH_SEED"
)

const crashTasks = 16

// TestCrash kills the daemon while 16 tasks run: at random moments, and at those where
// something has just been made or moved. After each restart nothing is left, all that a client was
// told of is in the cache, and every output in a work directory is whole, the old or the new.
func TestCrash(t *testing.T) {
	rootAndClean(t)
	rounds, seed := number(t, crashRoundsEnv, 26), number(t, crashSeedEnv, 1)
	switch {
	case os.Getenv(crashRoundsEnv) != "":
	case inVM():
		rounds = 3
	case testing.Short():
		rounds = 8
	}
	t.Logf("seed %d, %d rounds; %s and %s choose others", seed, rounds, crashSeedEnv, crashRoundsEnv)
	adoptOrphans(t)
	c := &crash{d: startDaemon(t, "warm = 2\n"), r: rand.New(rand.NewPCG(uint64(seed), 0)), left: map[string]int{}, hit: map[string]int{}}
	c.d.stop()
	c.d.reconfigure("max_parallel = 4", fmt.Sprintf("max_parallel = %d", crashTasks))
	c.d.start()
	for i := range crashTasks {
		c.workers = append(c.workers, newCrashWorker(t, i))
	}
	// By the time of the signal a moment may be over. Those in which outputs are put in place are the shortest: they get more rounds until one has been met.
	again := func(n int) bool { return rounds >= 20 && n < 4*rounds && c.hit["outputs"] == 0 }
	for n := 0; n < rounds || again(n); n++ {
		if n >= rounds {
			c.only = "outputs "
		}
		if c.round(t, n); t.Failed() {
			t.Fatalf("in round %d, where the daemon was killed %s", n, c.when)
		}
		if n%10 == 9 { // else to verify it would take ever longer
			c.d.stop()
			if err := os.RemoveAll(filepath.Join(c.d.dir, "cache")); err != nil {
				t.Fatal(err)
			}
			c.d.start()
		}
	}
	t.Logf("%d results that clients were told of were found again; removed at restarts: %v, in so many rounds: %v", c.found, c.left, c.hit)
	if rounds >= 20 {
		for _, k := range []string{"groups", "layers", "temporary_files", "outputs"} {
			if c.hit[k] == 0 {
				t.Errorf("no round had %s to remove: the moments are not what they should be", k)
			}
		}
	}
}

func number(t *testing.T, env string, or int) int {
	t.Helper()
	s := os.Getenv(env)
	if s == "" {
		return or
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("%s: %q is no positive number", env, s)
	}
	return n
}

// adoptOrphans makes what a killed daemon leaves running our children, so that we see all of it.
func adoptOrphans(t *testing.T) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	})
}

// orphans reaps our children that are dead but for those of known, and returns the living.
func orphans(t *testing.T, known ...int) (alive []string) {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lists {
		b, err := os.ReadFile(l)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, f := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil || slices.Contains(known, pid) {
				continue
			}
			if n, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); n == pid || err == unix.ECHILD {
				continue
			}
			cmdline, _ := os.ReadFile("/proc/" + f + "/cmdline")
			alive = append(alive, fmt.Sprintf("%d %q", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte(" "))))
		}
	}
	return alive
}

// crash is a daemon that is killed again and again.
type crash struct {
	d       *daemon
	r       *rand.Rand
	workers []*crashWorker
	when    string
	only    string // what the names of moments have that are chosen
	found   int
	left    map[string]int // what restarts removed
	hit     map[string]int // in how many rounds
}

// round lets the tasks run, kills the daemon, starts it again and checks.
func (c *crash) round(t *testing.T, n int) {
	t.Helper()
	var running sync.WaitGroup
	moment, wait := c.moment(t, n)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, w := range c.workers {
		running.Go(func() { w.work(ctx, t, c.d) })
	}
	wait()
	c.when = moment
	old := c.d.cmd.Process.Pid
	said, _ := c.d.end(syscall.SIGKILL)
	if strings.Contains(said, "not cached") || strings.Contains(said, `"level":"error"`) {
		t.Errorf("before it was killed the daemon said %s", said)
	}
	running.Wait()
	if n%5 == 4 {
		c.killStarting(t)
		c.when += ", and again while it started"
	}
	c.d.start()
	c.count(t)
	c.checkClean(t, old)
	for _, w := range c.workers {
		w.checkOutputs(t)
	}
	for _, w := range c.workers {
		c.found += w.askAgain(t, c.d)
	}
	c.verify(t)
}

// moment chooses when to kill; wait returns then.
func (c *crash) moment(t *testing.T, n int) (name string, wait func()) {
	t.Helper()
	scale := time.Duration(1)
	if inVM() {
		scale = 20
	}
	var works []string
	for _, w := range c.workers {
		works = append(works, w.dir)
	}
	sandboxes := filepath.Join(c.d.state, "sandboxes")
	owner, err := filepath.Glob("/sys/fs/cgroup/freezer" + testutil.CgroupParent() + "/s-*")
	if len(owner) == 0 {
		owner, err = filepath.Glob("/sys/fs/cgroup" + testutil.CgroupParent() + "/s-*")
	}
	tmp, err2 := filepath.Glob(filepath.Join(c.d.dir, "cache/tmp/*"))
	if err != nil || err2 != nil || len(owner) != 1 || len(tmp) != 2 {
		t.Fatalf("%v, %v, %q, %q", err, err2, owner, tmp)
	}
	tmp = slices.DeleteFunc(tmp, func(p string) bool { return strings.HasSuffix(p, ".lock") })
	type moment struct {
		name   string
		dirs   []string
		events uint32
		prefix string
	}
	moments := []moment{
		{name: "at a random moment"},
		{"when outputs were being staged", works, unix.IN_CREATE, ".sandboxd-"},
		{"when a layer had been made", []string{sandboxes + "/layers"}, unix.IN_CREATE, ""},
		{"when a blob or a result had got its name", tmp, unix.IN_MOVED_FROM, ""},
		{name: "at a random moment"},
		{"when outputs were being swapped in", works, unix.IN_MOVED_TO, ""},
		{"when a control group had been made", owner, unix.IN_CREATE, ""},
		{"when a blob was begun", tmp, unix.IN_CREATE, ""},
		{name: "at a random moment"},
		{"when an old version was being removed", works, unix.IN_DELETE, ".sandboxd-"},
		{"when a layer had been removed", []string{sandboxes + "/layers"}, unix.IN_DELETE, ""},
		{"when the journal was written to", []string{filepath.Join(c.d.state, "placing")}, unix.IN_MODIFY | unix.IN_CREATE, ""},
	}
	chosen := slices.DeleteFunc(moments, func(m moment) bool { return !strings.Contains(m.name, c.only) })
	m := chosen[n%len(chosen)]
	late := time.Duration(c.r.IntN(2000)) * time.Microsecond * scale
	if m.dirs == nil {
		late = time.Duration(c.r.IntN(1500)) * time.Millisecond * scale
		return fmt.Sprintf("%s: %v", m.name, late), func() { time.Sleep(late) }
	}
	if c.r.IntN(2) == 0 {
		late = 0
	}
	nth := 1 + c.r.IntN(40)
	if inVM() {
		nth = 1 + c.r.IntN(4)
	}
	seen := await(t, m.dirs, m.events, m.prefix, nth)
	return fmt.Sprintf("%s, for the %dth time, and %v after", m.name, nth, late), func() {
		if err := seen(); err != nil {
			t.Error(err)
		}
		time.Sleep(late)
	}
}

// await returns what waits until events with names of a prefix came nth times in dirs.
func await(t *testing.T, dirs []string, events uint32, prefix string, nth int) func() error {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	for _, d := range dirs {
		if _, err := unix.InotifyAddWatch(fd, d, events); err != nil {
			t.Fatal(errors.Join(err, f.Close()))
		}
	}
	return func() error {
		defer f.Close()
		if err := f.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			return err
		}
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return fmt.Errorf("wait for %d events with %q in %s: %w", nth, prefix, dirs[0], err)
			}
			for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
				length := int(uint32(b[12]) | uint32(b[13])<<8)
				name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+length], "\x00"))
				b = b[unix.SizeofInotifyEvent+length:]
				if strings.HasPrefix(name, prefix) {
					nth--
				}
			}
			if nth <= 0 {
				return nil
			}
		}
	}
}

// killStarting starts the daemon and kills it at some moment of its start.
func (c *crash) killStarting(t *testing.T) {
	t.Helper()
	cmd := c.d.as(0, c.d.dir, "serve", "--config", c.d.config)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := 150 * time.Millisecond
	if inVM() {
		late *= 10
	}
	time.Sleep(time.Duration(c.r.Int64N(int64(late))))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
}

// count adds up what the daemon says to have removed, in one line at most.
func (c *crash) count(t *testing.T) {
	t.Helper()
	lines := 0
	for l := range strings.Lines(c.d.began) {
		var said map[string]any
		if err := json.Unmarshal([]byte(l), &said); err != nil {
			t.Errorf("%v: %s", err, l)
		}
		switch said["level"] {
		case "warning", "error":
			if !strings.Contains(l, "only this user can reach the socket") {
				t.Errorf("at its start the daemon said %s", l)
			}
		}
		if !strings.Contains(l, "removed what a killed daemon had left") {
			continue
		}
		lines++
		for _, k := range []string{"processes", "groups", "layers", "roots", "temporary_files", "outputs"} {
			n, ok := said[k].(float64)
			if !ok {
				t.Errorf("%s is not in %s", k, l)
			}
			if c.left[k] += int(n); n > 0 {
				c.hit[k]++
			}
		}
	}
	if lines > 1 {
		t.Errorf("%d lines tell of it: %s", lines, c.d.began)
	}
}

// checkClean: a daemon that is ready and has no task holds what any such holds. old is the one that was killed.
func (c *crash) checkClean(t *testing.T, old int) {
	t.Helper()
	if alive := orphans(t, c.d.cmd.Process.Pid); len(alive) > 0 {
		t.Errorf("processes are left: %q", alive)
	}
	roots, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range append(roots, "/sys/fs/cgroup") {
		groups, err := filepath.Glob(r + testutil.CgroupParent() + "/*/*/cgroup.procs")
		more, err2 := filepath.Glob(r + testutil.CgroupParent() + "/*/cgroup.procs")
		if err != nil || err2 != nil || len(groups) > 0 || len(more) > 1 {
			t.Errorf("control groups are left: %q, %q, %v, %v", groups, more, err, err2)
		}
	}
	for _, d := range []string{"sandboxes/layers", "roots", "placing"} {
		if left, err := os.ReadDir(filepath.Join(c.d.state, d)); err != nil || len(left) > 0 {
			t.Errorf("%s holds %v, %v", d, left, err)
		}
	}
	tmp, err := filepath.Glob(filepath.Join(c.d.dir, "cache/tmp/*"))
	in, err2 := filepath.Glob(filepath.Join(c.d.dir, "cache/tmp/*/*"))
	if err != nil || err2 != nil || len(tmp) != 2 || len(in) > 0 {
		t.Errorf("cache/tmp holds %q, and they %q: %v, %v", tmp, in, err, err2)
	}
	if _, err := os.Lstat(c.d.socket + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what the socket was made in is left: %v", err)
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(locks)) {
		if f := strings.Fields(l); len(f) > 4 && f[4] == strconv.Itoa(old) {
			t.Errorf("the killed daemon has a lock: %s", l)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), c.d.dir) {
		t.Errorf("mounts are left, %v: %s", err, mounts)
	}
}

// verify reads the whole cache.
func (c *crash) verify(t *testing.T) {
	t.Helper()
	store, err := cache.Open(filepath.Join(c.d.dir, "cache"), cache.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { closed(t, store.Close()) }()
	r, err := store.Verify(t.Context())
	if err != nil || r.CorruptBlobs > 0 || r.DroppedResults > 0 || store.Left() > 0 {
		t.Errorf("the cache: %+v, %v, %d temporary files", r, err, store.Left())
	}
}

// crashWorker has the daemon run one task after another: the same, of ever new inputs.
type crashWorker struct {
	dir  string
	spec executor.TaskSpec
	uid  int // not 0: by the command line, as that user
	// gen is what the input says. The last result that was told is of told, in this round if fresh.
	gen, told int
	fresh     bool
}

const crashUID = 4711

func newCrashWorker(t *testing.T, i int) *crashWorker {
	w := &crashWorker{dir: newDir(t)}
	w.spec = executor.TaskSpec{Name: fmt.Sprint("crash ", i), Workdir: w.dir, Outputs: []string{"o"}, Script: "cat in >o"}
	switch i % 8 {
	case 2, 3:
		w.spec.Outputs = []string{"o", "out", "deep/er/big"}
		w.spec.Script += "; mkdir -p out/sub deep/er; for i in 0 1 2 3 4 5 6 7 8 9; do for j in 0 1 2 3 4 5; do cat in >out/sub/$i$j; done; done; yes \"$(cat in)\" | head -c 3000000 >deep/er/big"
	case 4:
		w.spec.Script += "; setsid sleep 1000 & (setsid sleep 1000 &); sleep 0.1"
	case 5:
		w.spec.WorkdirMode = executor.WorkdirDirect
		w.spec.Script += "; trap '' TERM; setsid sleep 1000 & sleep 0.2"
	case 6:
		w.spec.Script += "; yes \"$(cat in)\" | head -c 2000000"
	case 7:
		w.uid = crashUID
		w.spec.Outputs = []string{"o", "out"}
		w.spec.Script += "; mkdir -p out/sub; for i in 0 1 2 3 4 5 6 7 8 9; do for j in 0 1 2 3 4 5; do cat in >out/sub/$i$j; done; done"
	}
	if w.uid != 0 {
		if err := os.Chown(w.dir, w.uid, w.uid); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *crashWorker) text(gen int) string {
	return fmt.Sprintf("generation %d of %s\n", gen, w.spec.Name)
}

// work runs tasks until the daemon is gone.
func (w *crashWorker) work(ctx context.Context, t *testing.T, d *daemon) {
	w.fresh = false
	var c *rpc.Client
	if w.uid == 0 {
		var err error
		if c, err = rpc.Dial(ctx, d.socket); err != nil {
			return // it is gone
		}
		defer c.Close(context.WithoutCancel(ctx)) //nolint:errcheck // so is the far end
	}
	for {
		w.gen++
		writeFile(t, w.dir+"/in", w.text(w.gen))
		ok, _, err := w.run(ctx, c, d)
		if ctx.Err() != nil {
			t.Errorf("%s was not answered, nor was its daemon's end noticed: %v", w.spec.Name, err)
		}
		if !ok {
			return
		}
		w.told, w.fresh = w.gen, true
	}
}

// run runs the task once. It reports whether there is a result, a success.
func (w *crashWorker) run(ctx context.Context, c *rpc.Client, d *daemon) (ok, cached bool, err error) {
	if c != nil {
		out, err := c.Execute(ctx, &w.spec)
		return err == nil && out.Success(), err == nil && out.Cached, err
	}
	args := []string{"run", "--json", "--name", w.spec.Name}
	for _, o := range w.spec.Outputs {
		args = append(args, "--output", o)
	}
	cmd := d.as(w.uid, w.dir, append(args, "-c", w.spec.Script)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return false, false, fmt.Errorf("%w: %s", err, &stderr)
	}
	var r result
	err = json.Unmarshal(stdout.Bytes(), &r)
	return err == nil && r.ExitCode == 0, r.Cached, err
}

// checkOutputs: each output is of the last generation that was told, or of one that was under way since, and
// there is nothing else.
func (w *crashWorker) checkOutputs(t *testing.T) {
	t.Helper()
	if w.spec.WorkdirMode == executor.WorkdirDirect {
		return // the task's own doing
	}
	for _, o := range w.spec.Outputs {
		whole := false
		for gen := w.told; gen <= w.gen; gen++ {
			whole = whole || w.isOf(t, o, gen)
		}
		if !whole {
			t.Errorf("%s: output %s is of no generation from %d to %d", w.spec.Name, o, w.told, w.gen)
		}
	}
	err := filepath.WalkDir(w.dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(e.Name(), ".sandboxd-") {
			t.Errorf("%s was left", p)
		}
		// Its work directory is, before its first task.
		if sub, err := os.ReadDir(p); e.IsDir() && p != w.dir && (err != nil || len(sub) == 0) {
			t.Errorf("the directory %s is empty, %v", p, err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil || int(st.Uid) != w.uid && e.Name() != "in" {
			t.Errorf("%s belongs to user %d, %v", p, st.Uid, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// isOf tells whether an output is whole and of a generation; of 0 it is absent.
func (w *crashWorker) isOf(t *testing.T, output string, gen int) bool {
	t.Helper()
	at := filepath.Join(w.dir, output)
	if gen == 0 {
		_, err := os.Lstat(at)
		return errors.Is(err, fs.ErrNotExist)
	}
	want := []byte(w.text(gen))
	if output != "out" {
		b, err := os.ReadFile(at)
		if filepath.Base(output) == "big" {
			want = bytes.Repeat(want, 3000000/len(want)+1)[:3000000]
		}
		return err == nil && bytes.Equal(b, want)
	}
	files, err := filepath.Glob(at + "/sub/*")
	if err != nil || len(files) != 60 {
		return false
	}
	return !slices.ContainsFunc(files, func(f string) bool {
		b, err := os.ReadFile(f)
		return err != nil || !bytes.Equal(b, want)
	})
}

// askAgain asks for the last result that was told, which the cache must have.
func (w *crashWorker) askAgain(t *testing.T, d *daemon) int {
	t.Helper()
	if w.spec.WorkdirMode == executor.WorkdirDirect || !w.fresh {
		return 0
	}
	var c *rpc.Client
	if w.uid == 0 {
		var err error
		if c, err = rpc.Dial(t.Context(), d.socket); err != nil {
			t.Fatal(err)
		}
		defer func() { closed(t, c.Close(context.Background())) }()
	}
	writeFile(t, w.dir+"/in", w.text(w.told))
	ok, cached, err := w.run(t.Context(), c, d)
	if !ok || !cached {
		t.Errorf("%s: the result of generation %d, which a client was told of, is not there: %v, %v, %v", w.spec.Name, w.told, ok, cached, err)
	}
	for _, o := range w.spec.Outputs {
		if !w.isOf(t, o, w.told) {
			t.Errorf("%s: output %s from the cache is not of generation %d", w.spec.Name, o, w.told)
		}
	}
	return 1
}
