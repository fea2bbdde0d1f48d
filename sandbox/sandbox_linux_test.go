package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/rootfs"
)

var warm bool

// fixture is a host with the default root.
type fixture struct {
	*testing.T
	host *Host
	root *rootfs.Rootfs
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	return newWarm(t, 0)
}

// newWarm is newFixture with so many sandboxes kept prepared.
func newWarm(t *testing.T, n int) *fixture {
	t.Helper()
	testutil.RequireRoot(t)
	if !warm {
		// libcontainer keeps descriptors of / and /sys/fs/cgroup from the first time on.
		warm = true
		t.Run("warm up", func(t *testing.T) { openFixture(t).run(Spec{Argv: []string{"true"}}) })
	}
	testutil.CheckLeaks(t)
	return openWarm(t, n)
}

func openFixture(t *testing.T) *fixture {
	t.Helper()
	return openWarm(t, 0)
}

// openWarm is openFixture with so many sandboxes kept prepared.
func openWarm(t *testing.T, n int) *fixture {
	t.Helper()
	host, root := openHost(t, n)
	return &fixture{T: t, host: host, root: root}
}

func openHost(t testing.TB, n int) (*Host, *rootfs.Rootfs) {
	t.Helper()
	dir := t.TempDir()
	// A sandbox's root passes through on its way to the base.
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o711))
	}
	m, err := limits.Open(limits.Config{Parent: testutil.CgroupParent()})
	must(t, err)
	t.Cleanup(func() { must(t, m.Close()) })
	h, err := Open(Config{Dir: filepath.Join(dir, "host"), RangesDir: filepath.Join(dir, "ids"), Limits: m, Warm: n})
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	root, err := rootfs.Open(filepath.Join(dir, "root"), rootfs.Spec{})
	must(t, err)
	t.Cleanup(func() { must(t, errors.Join(h.Forget(root), root.Close())) })
	return h, root
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// result is what a command did.
type result struct {
	Exit
	out, err string
	box      *Sandbox
}

// run runs spec, with what it lacks filled in, to its end.
func (f *fixture) run(spec Spec) result {
	f.Helper()
	box, out, errs := f.start(spec)
	exit, err := box.Wait(context.Background())
	must(f.T, err)
	return result{exit, <-out, <-errs, box}
}

func (f *fixture) start(spec Spec) (*Sandbox, <-chan string, <-chan string) {
	f.Helper()
	box, out, errs, err := f.try(spec)
	must(f.T, err)
	f.Cleanup(func() { must(f.T, box.Close()) })
	return box, out, errs
}

// try is start for what may fail, and leaves it to the caller to close the sandbox.
func (f *fixture) try(spec Spec) (*Sandbox, <-chan string, <-chan string, error) {
	f.Helper()
	spec.Root = f.root
	if spec.Env == nil {
		spec.Env = []string{"PATH=" + DefaultPath}
	}
	null, err := os.Open(os.DevNull)
	must(f.T, err)
	defer null.Close()
	outR, outW, err := os.Pipe()
	must(f.T, err)
	errR, errW, err := os.Pipe()
	must(f.T, err)
	spec.Stdio = [3]*os.File{null, outW, errW}
	box, err := f.host.Start(context.Background(), spec)
	outW.Close()
	errW.Close()
	return box, drain(outR), drain(errR), err
}

func drain(r *os.File) <-chan string {
	c := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(r)
		r.Close()
		c <- string(b)
	}()
	return c
}

func TestSandboxRuns(t *testing.T) {
	f := newFixture(t)
	r := f.run(Spec{Script: "echo hello; echo oops >&2; exit 7"})
	if r.Code != 7 || r.out != "hello\n" || r.err != "oops\n" || r.Signal != 0 || r.Lost {
		t.Errorf("%+v\n%s\n%s", r.Exit, r.out, r.err)
	}
}

// tree makes files, by path, of the owner uid:gid.
func makeTree(t *testing.T, uid, gid int, files map[string]string) *os.File {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		must(t, os.WriteFile(p, []byte(content), 0o644))
	}
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, uid, gid))
	}))
	f, err := os.Open(dir)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestWorkOverlayKeepsTheTreeAsItIs(t *testing.T) {
	f := newFixture(t)
	for _, o := range []struct{ uid, gid int }{{0, 0}, {1000, 1000}, {54321, 100}} {
		dir := makeTree(t, o.uid, o.gid, map[string]string{"a": "old", "d/b": "b", "gone": "x"})
		r := f.run(Spec{
			Work:   Work{Dir: dir, UID: uint32(o.uid), GID: uint32(o.gid)},
			Script: "stat -c %u:%g . a d/b; echo new >>a; rm gone; mkdir e; echo e >e/f; mv d/b d/c; stat -c %u:%g a e/f; cat a",
		})
		if want := "1000:1000\n1000:1000\n1000:1000\n1000:1000\n1000:1000\noldnew\n"; r.Code != 0 || r.out != want {
			t.Fatalf("as %d: %+v\n%s\n%s", o.uid, r.Exit, r.out, r.err)
		}
		b, err := os.ReadFile(filepath.Join(dir.Name(), "a"))
		must(t, err)
		if _, err := os.Stat(filepath.Join(dir.Name(), "gone")); err != nil || string(b) != "old" {
			t.Errorf("the caller's tree has changed: a is %q, gone: %v", b, err)
		}
		merged, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/e/f", r.box.Work().Fd()))
		if err != nil || string(merged) != "e\n" {
			t.Errorf("merged e/f is %q: %v", merged, err)
		}
		upper, err := r.box.Upper()
		must(t, err)
		paths, n, err := rootfs.Undeclared(context.Background(), upper, []string{"a"}, 100)
		must(t, errors.Join(err, upper.Close()))
		if got := strings.Join(paths, " "); got != "d/b (deleted) d/c e/f gone (deleted)" || n != 4 {
			t.Errorf("undeclared: %s", got)
		}
	}
}

func TestWorkDirectIsTheCallersOwn(t *testing.T) {
	f := newFixture(t)
	dir := makeTree(t, 4321, 4322, map[string]string{"a": "old"})
	r := f.run(Spec{Work: Work{Dir: dir, Mode: WorkDirect, UID: 4321, GID: 4322}, Script: "echo new >a; echo b >b"})
	if r.Code != 0 {
		t.Fatal(r.err)
	}
	for _, n := range []string{"a", "b"} {
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(dir.Name(), n), &st))
		if st.Uid != 4321 || st.Gid != 4322 {
			t.Errorf("%s is of %d:%d", n, st.Uid, st.Gid)
		}
	}
}

func TestWorkReadonlyRefusesWrites(t *testing.T) {
	f := newFixture(t)
	dir := makeTree(t, 1, 1, map[string]string{"a": "old"})
	r := f.run(Spec{Work: Work{Dir: dir, Mode: WorkReadonly, UID: 1, GID: 1}, Script: "cat a; echo new >a || touch b || rm a"})
	if r.Code == 0 || r.out != "old" || strings.Count(r.err, "Read-only file system") != 3 {
		t.Errorf("%+v %s %s", r.Exit, r.out, r.err)
	}
}

// TestScriptLargerThanTmp: the script takes nothing from the command's own room.
func TestScriptLargerThanTmp(t *testing.T) {
	f := newFixture(t)
	r := f.run(Spec{TmpBytes: 64 << 10, Script: "head -c 65536 /dev/zero >/tmp/a && ! echo x >/tmp/b\n#" + strings.Repeat("x", 300<<10)})
	if r.Code != 0 {
		t.Errorf("%+v %s", r.Exit, r.err)
	}
}
