package rootfs

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

func wantGone(t *testing.T, p string) {
	t.Helper()
	if _, err := os.Lstat(p); !os.IsNotExist(err) {
		t.Errorf("%s: %v", p, err)
	}
}

func TestRemoveTree(t *testing.T) {
	testutil.CheckLeaks(t)
	outside := tree(t, "kept/x")
	dir := tree(t, "out/a/b/c/x", "out/a/y", "out/full/z", "out/link -> "+outside, "out/empty/", "out/new\nline/\xff", "file", "link -> "+outside, "empty/", "beside")
	must(t, unix.Mkfifo(dir+"/out/fifo", 0))
	for _, p := range []string{"out/a/b/c/x", "out/a/b/c", "out/a/b", "out/a", "out/full", "out"} {
		must(t, os.Chmod(dir+"/"+p, 0))
	}
	for _, name := range []string{"out", "file", "link", "empty", "not there"} {
		must(t, RemoveTree(open(t, dir), name))
		wantGone(t, dir+"/"+name)
	}
	wantTree(t, dir, map[string]string{"beside": "-rw-r--r-- beside"})
	wantTree(t, outside, map[string]string{"kept": "drwxr-xr-x ", "kept/x": "-rw-r--r-- kept/x"})
	for _, name := range []string{"", ".", "..", "a/b", "/", "a\x00"} {
		wantErr(t, RemoveTree(open(t, dir), name), "is not the name of one entry")
	}
}

// TestRemoveTreeAsUser: permissions that the owner can change are no obstacle.
func TestRemoveTreeAsUser(t *testing.T) {
	testutil.RequireRoot(t)
	const uid = 54321
	dir := t.TempDir()
	must(t, os.Chown(dir, uid, uid))
	d := open(t, dir)
	asUser := func(f func() error) (err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()   // for good: the thread is spoilt
			unix.SetfsuidRetUid(uid) //nolint:errcheck // it has no way to tell
			err = f()
		}()
		<-done
		return err
	}
	must(t, asUser(func() error {
		at := int(d.Fd())
		for range 5 {
			if err := unix.Mkdirat(at, "d", 0o700); err != nil {
				return err
			}
			sub, err := unix.Openat(at, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(sub)
			defer unix.Fchmodat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", sub), 0, 0) //nolint:errcheck // the removal shows it
			at = sub
		}
		return nil
	}))
	must(t, asUser(func() error { return RemoveTree(d, "d") }))
	wantGone(t, dir+"/d")
	addTree(t, dir, "root/d/x")
	wantErr(t, asUser(func() error { return RemoveTree(d, "root") }), "permission denied")
}

// TestRemoveTreeGrows: a directory that never becomes empty does not keep it for ever.
func TestRemoveTreeGrows(t *testing.T) {
	dir := tree(t, "a/x", "b/x", "c/x", "d/x")
	top, err := os.Open(dir)
	must(t, err)
	defer top.Close()
	r := &remover{top: top, prefix: "moved-", looks: 5}
	wantErr(t, r.all(), "does not become empty")
	r.looks = 5
	must(t, r.all())
	wantTree(t, dir, map[string]string{})
}

func TestRemoveTreeImmutable(t *testing.T) {
	testutil.RequireRoot(t)
	dir := tree(t, "out/d/x", "out/d/y", "f")
	for _, c := range []struct {
		path string
		flag uint32
	}{
		{"out/d/x", unix.STATX_ATTR_IMMUTABLE}, {"out/d/y", unix.STATX_ATTR_APPEND}, {"out/d", unix.STATX_ATTR_IMMUTABLE},
		{"out", unix.STATX_ATTR_APPEND}, {"f", unix.STATX_ATTR_IMMUTABLE},
	} {
		f, err := os.Open(dir + "/" + c.path)
		must(t, err)
		was, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err == nil {
			err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(was|c.flag))
		}
		t.Cleanup(func() {
			unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(was)) //nolint:errcheck // gone, or reported
			f.Close()
		})
		testutil.Require(t, err != unix.ENOTTY && err != unix.EOPNOTSUPP, "the file system of the temporary directory has no immutable files")
		must(t, err)
	}
	must(t, RemoveTree(open(t, dir), "out"))
	must(t, RemoveTree(open(t, dir), "f"))
	wantTree(t, dir, map[string]string{})
}

// TestRemoveTreeRace: a directory whose place a link takes is not left by it.
func TestRemoveTreeRace(t *testing.T) {
	outside := tree(t, "kept")
	for round := range 200 {
		dir := tree(t, "out/a/b", "out/c/d")
		d := open(t, dir)
		done := make(chan struct{})
		go func() {
			defer close(done)
			// Until the removal has taken the place away.
			if os.Symlink(outside, dir+"/link") == nil {
				for unix.Renameat2(unix.AT_FDCWD, dir+"/out/a", unix.AT_FDCWD, dir+"/link", unix.RENAME_EXCHANGE) == nil {
				}
			}
		}()
		err := RemoveTree(d, "out")
		for err != nil { // what came back while it was emptied
			err = RemoveTree(d, "out")
		}
		<-done
		if _, err := os.Lstat(outside + "/kept"); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		d.Close()
	}
}
