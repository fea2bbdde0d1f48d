package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// eventually waits for what ends on its own: until wrong returns nothing.
func eventually(t *testing.T, wrong func() string) {
	t.Helper()
	bound := 10 * time.Second
	if inVM() {
		bound *= 10
	}
	for end := time.Now().Add(bound); ; time.Sleep(10 * time.Millisecond) {
		w := wrong()
		if w == "" {
			return
		}
		if time.Now().After(end) {
			t.Errorf("still after %v: %s", bound, w)
			return
		}
	}
}

// leftInState is what a daemon holds for tasks.
func (d *daemon) leftInState() string {
	var left []string
	for _, p := range []string{
		d.state + "/sandboxes/layers/*", d.dir + "/cache/tmp/*/*",
		"/sys/fs/cgroup/*" + testutil.CgroupParent() + "/*/*/cgroup.procs", "/sys/fs/cgroup" + testutil.CgroupParent() + "/*/*/cgroup.procs",
	} {
		found, err := filepath.Glob(p)
		if err != nil {
			d.t.Fatal(err)
		}
		left = append(left, found...)
	}
	return strings.Join(left, " ")
}

// TestStoryClientGone interrupts and kills a client in every phase of its task. Nothing is left of the task, its output is
// the old or the new, and who else waits is served.
func TestStoryClientGone(t *testing.T) {
	rootAndClean(t)
	const size = 4 << 20
	d := startDaemon(t, "")
	tmp, err := filepath.Glob(d.dir + "/cache/tmp/*[^k]") // but the lock
	if err != nil || len(tmp) != 1 {
		t.Fatal(tmp, err)
	}
	for _, p := range []struct {
		phase  string
		dir    string // where an event tells that the phase has come; empty is the work directory
		events uint32
		prefix string
		slots  bool // all others are taken
	}{
		{"waiting for a slot", "", 0, "", true},
		{"being made", d.state + "/sandboxes/layers", unix.IN_CREATE, "", false},
		{"having its log or outputs stored", tmp[0], unix.IN_CREATE, "", false},
		{"being stored", tmp[0], unix.IN_MOVED_FROM, "", false},
		{"having its outputs staged", "", unix.IN_CREATE, ".sandboxd-", false},
		{"having its outputs swapped in", "", unix.IN_MOVED_TO, "", false},
		{"being unmade", d.state + "/sandboxes/layers", unix.IN_DELETE, "", false},
	} {
		signals := []syscall.Signal{syscall.SIGINT, syscall.SIGKILL}
		if inVM() {
			signals = signals[1:]
		}
		for _, sig := range signals {
			t.Run(fmt.Sprintf("%v %s", sig, p.phase), func(t *testing.T) {
				d.t = t
				work := newDir(t)
				writeFile(t, work+"/o", "old")
				var others []*clientProcess
				var alive []*os.File
				if p.slots {
					for range 4 {
						c, a := d.living(0, "sleep 1000")
						others, alive = append(others, c), append(alive, a)
					}
				}
				var come func() error
				if p.events != 0 {
					dir := p.dir
					if dir == "" {
						dir = work
					}
					come = await(t, []string{dir}, p.events, p.prefix, 1)
				}
				// The signature is of this run alone.
				cmd := d.as(0, work, "run", "--output", "o", "--output", "big", "-c",
					fmt.Sprintf(": %v %q; head -c 100000 /dev/urandom; yes new | head -c %d >big; echo new >o", sig, p.phase, size))
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				if come != nil {
					if err := come(); err != nil {
						t.Error(err)
					}
				} else {
					eventually(t, func() string {
						if s := d.status(); s.Active != 4 || s.Queued != 1 {
							return fmt.Sprintf("%d tasks run and %d wait, not 4 and 1", s.Active, s.Queued)
						}
						return ""
					})
				}
				if err := cmd.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait() // it was ended, or was faster
				for i, c := range others {
					if err := c.p.Kill(); err != nil {
						t.Fatal(err)
					}
					c.ended()
					gone(t, alive[i])
				}
				eventually(t, func() string {
					if s := d.status(); s.Active+s.Queued != 0 {
						return fmt.Sprintf("%d tasks", s.Active+s.Queued)
					}
					return d.leftInState()
				})
				o, err := os.ReadFile(work + "/o")
				if err != nil || string(o) != "old" && string(o) != "new\n" {
					t.Errorf("o is %q, %v", o, err)
				}
				if st, err := os.Stat(work + "/big"); err == nil && st.Size() != size || err == nil && string(o) == "old" {
					t.Errorf("big is of %d bytes, and o %q", st.Size(), o)
				}
				entries, err := os.ReadDir(work)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range entries {
					if e.Name() != "o" && e.Name() != "big" {
						t.Errorf("%s was left", e.Name())
					}
				}
			})
		}
	}
	d.t = t
	if r := d.runJSON(newDir(t), "--output", "o", "-c", "echo fine >o; echo fine"); r.Stdout != "fine\n" {
		t.Errorf("after all that: %+v", r)
	}
}

// TestStoryKilledLocal: what a killed run --local leaves is removed at the start of a daemon with the
// same state directory, and by the next run --local.
func TestStoryKilledLocal(t *testing.T) {
	rootAndClean(t)
	adoptOrphans(t)
	t.Cleanup(func() { orphans(t) })
	d := startDaemon(t, "")
	d.stop()
	state := d.state + "/local/0"
	starts := []string{"a daemon", "run --local"}
	if inVM() {
		starts = starts[:1]
	}
	for _, by := range starts {
		work := newDir(t)
		alive, hold := fifo(t, work, 0)
		cmd := d.as(0, work, "run", "--local", "--config", d.config, "--workdir-mode", "direct", "-c", "exec 9>alive; echo up >&9; "+deaf)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		said := make([]byte, 3)
		if _, err := alive.Read(said); err != nil || string(said) != "up\n" {
			t.Fatalf("%q, %v", said, err)
		}
		hold.Close()
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
		gone(t, alive)
		if left, err := os.ReadDir(state + "/sandboxes/layers"); err != nil || len(left) != 1 {
			t.Errorf("the layers of a killed one: %v, %v", left, err)
		}
		if by == "a daemon" {
			d.start()
			if !strings.Contains(d.began, `"layers":1`) {
				t.Errorf("it said %s", d.began)
			}
			d.stop()
		} else if o := finish(t, d.as(0, work, "run", "--local", "--config", d.config, "--workdir", "none", "-c", "echo hello")); o.code != 0 || o.stdout != "hello\n" || strings.Contains(o.stderr, "killed") {
			t.Errorf("%+v", o)
		}
		for _, p := range []string{"/sandboxes/layers/*", "/roots", "/placing/*", "/cgroups"} {
			if left, err := filepath.Glob(state + p); err != nil || len(left) != 0 {
				t.Errorf("after %s: %q, %v", by, left, err)
			}
		}
	}
}
