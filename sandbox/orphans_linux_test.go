package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestKillOrphans: it kills who has the directory as its root, and nobody else.
func TestKillOrphans(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	program, err := os.ReadFile("/bin/busybox")
	testutil.Require(t, err == nil, "busybox-static is not installed")
	rooted := func() (string, *exec.Cmd) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "busybox"), program, 0o755))
		c := &exec.Cmd{Path: "/busybox", Args: []string{"busybox", "sleep", "1000"}, SysProcAttr: &syscall.SysProcAttr{Chroot: dir}}
		must(t, c.Start())
		t.Cleanup(func() {
			c.Process.Kill() //nolint:errcheck // it may have been
			c.Wait()         //nolint:errcheck // it was killed
		})
		return dir, c
	}
	dir, ours := rooted()
	_, other := rooted()
	if n, err := killOrphans(filepath.Join(dir, "none")); n != 0 || err != nil {
		t.Errorf("of a directory that is not there: %d, %v", n, err)
	}
	if n, err := killOrphans(dir); n != 1 || err != nil {
		t.Fatalf("killed %d, %v; want one", n, err)
	}
	if err := ours.Wait(); err == nil || ours.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", err)
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("another has ended: %v", err)
	}
}
