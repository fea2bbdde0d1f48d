package vmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What the privileged tests rely on in the guest, so that a fault of the harness
// shows here and not in every one of them.
func TestGuest(t *testing.T) {
	if os.Getenv("SANDBOXD_VM") != "1" {
		t.Skip("only in the test VM: make test-vm")
	}
	t.Run("one cgroup tree with every controller", func(t *testing.T) {
		const root = "/sys/fs/cgroup"
		b, err := os.ReadFile(root + "/cgroup.subtree_control")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
			if !strings.Contains(" "+strings.TrimSpace(string(b))+" ", " "+c+" ") {
				t.Errorf("controller %s is not given to children: %q", c, b)
			}
		}
	})
	t.Run("ext4 below TMPDIR", func(t *testing.T) {
		var st unix.Statfs_t
		if err := unix.Statfs(t.TempDir(), &st); err != nil {
			t.Fatal(err)
		}
		if st.Type != unix.EXT4_SUPER_MAGIC {
			t.Errorf("file system type %#x, want ext4's", st.Type)
		}
	})
	t.Run("overlay", func(t *testing.T) {
		dir := t.TempDir()
		for _, d := range []string{"lower", "upper", "work", "at"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		at := filepath.Join(dir, "at")
		opts := "lowerdir=" + dir + "/lower,upperdir=" + dir + "/upper,workdir=" + dir + "/work"
		if err := unix.Mount("overlay", at, "overlay", 0, opts); err != nil {
			t.Fatal(err)
		}
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	t.Run("a shell", func(t *testing.T) {
		if fi, err := os.Stat("/bin/sh"); err != nil || fi.Mode()&0o111 == 0 {
			t.Errorf("/bin/sh: %v, %v", fi, err)
		}
	})
}
