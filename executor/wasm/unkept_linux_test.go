package wasm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// warned is how often it was said that code is not kept in dir.
func warned(logged *logtest.Hook, dir string) (n int) {
	for _, e := range logged.AllEntries() {
		if e.Level == logrus.WarnLevel && e.Data["dir"] == dir && e.Data["reason"] != "" {
			n++
		}
	}
	return n
}

// runUnkept runs a task in each of two workers, and tells how often it was said that code is not kept in dir.
func runUnkept(t *testing.T, dir string) int {
	t.Helper()
	log, logged := logtest.NewNullLogger()
	t.Run("run", func(t *testing.T) { // its end closes the executor
		e := openShell(t, Config{Module: []byte(nothing), CodeDir: dir, MaxParallel: 2, Logger: log})
		for range 2 {
			if out := run(t, e, uncached("x")); !out.Success() {
				t.Errorf("%+v", out)
			}
		}
	})
	return warned(logged, dir)
}

// TestUnkept: tasks run where compiled code cannot be kept, which is said once.
func TestUnkept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "code")
	if n := runUnkept(t, dir); n != 0 {
		t.Errorf("%d warnings where all is well", n)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*", "wazero-*", "*"))
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("there are %q", files)
	}
	// A directory that is not empty can neither be read nor replaced.
	must(t, os.Remove(files[0]))
	must(t, os.MkdirAll(filepath.Join(files[0], "x"), 0o700))
	if n := runUnkept(t, dir); n != 1 {
		t.Errorf("%d warnings where the file cannot be written", n)
	}
	sub := filepath.Dir(files[0])
	must(t, os.RemoveAll(sub))
	must(t, os.WriteFile(sub, nil, 0o600))
	if n := runUnkept(t, dir); n != 1 {
		t.Errorf("%d warnings where there is no directory", n)
	}
	must(t, os.Remove(sub))
	if n := runUnkept(t, dir); n != 0 {
		t.Errorf("%d warnings when all is well again", n)
	}
}

// TestNoRoom: the same where a disk is full, or may not be written to.
func TestNoRoom(t *testing.T) {
	const inside = "SANDBOXD_TEST_NO_ROOM"
	if os.Getenv(inside) == "" {
		testutil.RequireRoot(t)
		self, err := os.Executable()
		must(t, err)
		worker, err := builtWorker()
		must(t, err)
		cmd := exec.Command(self, "-test.run=^TestNoRoom$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1", "SANDBOXD_TEST_WORKER="+worker)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	disk := t.TempDir()
	mount := func(options string) {
		t.Helper()
		must(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "mode=0700,"+options))
	}
	dir := filepath.Join(disk, "code")
	for options, want := range map[string]int{
		"size=64k":    1,
		"nr_inodes=1": 1, // not even for the directory
		"nr_inodes=2": 1,
		"nr_inodes=3": 1,
		"nr_inodes=4": 1,
		"nr_inodes=5": 1, // not for the checksum
		"size=1M":     0,
	} {
		mount(options)
		if strings.HasPrefix(options, "size=64k") {
			must(t, os.WriteFile(filepath.Join(disk, "all"), make([]byte, 64<<10), 0o600))
		}
		if n := runUnkept(t, dir); n != want {
			t.Errorf("%s: %d warnings, want %d", options, n, want)
		}
		must(t, unix.Unmount(disk, 0))
	}
	mount("size=1M")
	defer func() { must(t, unix.Unmount(disk, 0)) }()
	readonly := func(flags uintptr) { must(t, unix.Mount("", disk, "", unix.MS_REMOUNT|flags, "")) }
	readonly(unix.MS_RDONLY)
	if n := runUnkept(t, dir); n != 1 {
		t.Errorf("%d warnings where nothing may be written", n)
	}
	readonly(0)
	for _, want := range []int{0, 0} { // the second time with what is there
		if n := runUnkept(t, dir); n != want {
			t.Errorf("%d warnings, want %d", n, want)
		}
		readonly(unix.MS_RDONLY)
	}
}

// TestCodeCannotBeReplaced: a directory that others can put another in the place of is not used, which is said.
func TestCodeCannotBeReplaced(t *testing.T) {
	top := t.TempDir()
	above := filepath.Join(top, "above")
	must(t, os.MkdirAll(filepath.Join(above, "below"), 0o755))
	must(t, os.Symlink(filepath.Join(above, "below"), filepath.Join(top, "link")))
	for _, dir := range []string{filepath.Join(above, "below", "code"), filepath.Join(top, "link", "code")} {
		for mode, want := range map[os.FileMode]int{0o755: 0, 0o777: 1, 0o777 | os.ModeSticky: 0, 0o775: 0} {
			must(t, os.Chmod(above, mode))
			if n := runUnkept(t, dir); n != want {
				t.Errorf("%s, mode %v: %d warnings; want %d", dir, mode, n, want)
			}
		}
		must(t, os.Chmod(above, 0o755))
		t.Run("owner", func(t *testing.T) {
			testutil.RequireRoot(t)
			must(t, os.Chown(above, 1234, -1))
			if n := runUnkept(t, dir); n != 1 {
				t.Errorf("%s, another's: %d warnings; want one", dir, n)
			}
			must(t, os.Chown(above, 0, 1234))
			must(t, os.Chmod(above, 0o775))
			if n := runUnkept(t, dir); n != 1 {
				t.Errorf("%s, another group's: %d warnings; want one", dir, n)
			}
			must(t, os.Chown(above, 0, 0))
		})
	}
}

// TestNothingIsMadeForOthers: nothing is made in a directory whose owner could have it made elsewhere.
func TestNothingIsMadeForOthers(t *testing.T) {
	testutil.RequireRoot(t)
	above := t.TempDir()
	must(t, os.Chown(above, 1234, -1))
	code := filepath.Join(above, "code")
	made := func(dir string) {
		t.Helper()
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("%s holds %v, %v", dir, entries, err)
		}
	}
	if n := runUnkept(t, code); n != 1 {
		t.Errorf("%d warnings", n)
	}
	made(above)
	must(t, os.Chown(above, 0, -1))
	must(t, os.Mkdir(code, 0o700))
	must(t, os.Chown(code, 1234, -1))
	if e, err := New(Config{Cache: openCache(t), CodeDir: code, Module: guestModule(t)}); err == nil {
		t.Errorf("%v", e)
	}
	made(code)
}

// TestCodeByAnyName: the name of a directory is no pattern.
func TestCodeByAnyName(t *testing.T) {
	top := t.TempDir()
	for _, name := range []string{"x1", "x[1]"} {
		dir := filepath.Join(top, name)
		if n := runUnkept(t, dir); n != 0 {
			t.Errorf("%d warnings", n)
		}
	}
	for _, name := range []string{"x1", "x[1]"} {
		sums := 0
		must(t, filepath.WalkDir(filepath.Join(top, name), func(p string, _ os.DirEntry, err error) error {
			if strings.HasSuffix(p, ".sum") {
				sums++
			}
			return err
		}))
		if sums != 1 {
			t.Errorf("%s has %d checksums; want one", name, sums)
		}
	}
}
