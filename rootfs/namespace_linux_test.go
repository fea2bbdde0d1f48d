package rootfs

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// inMountNamespace runs f on a thread with mounts of its own, which end with it.
func inMountNamespace(t *testing.T, f func()) {
	t.Helper()
	testutil.RequireRoot(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread is spoilt
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

// overlay mounts one over a tree of entries, in a mount namespace that will end. Its
// upper directory is "../upper" of what it returns.
func overlay(t *testing.T, entries ...string) (merged string) {
	t.Helper()
	base := tree(t, "lower/", "upper/", "work/", "merged/")
	addTree(t, base+"/lower", entries...)
	options := "lowerdir=" + base + "/lower,upperdir=" + base + "/upper,workdir=" + base + "/work,userxattr"
	err := unix.Mount("test", base+"/merged", "overlay", 0, options)
	testutil.Require(t, err != unix.EINVAL && err != unix.ENODEV, "no overlay can be mounted in the temporary directory")
	must(t, err)
	return base + "/merged"
}
