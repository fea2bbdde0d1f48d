package cache

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestTreeRefuses: what has no digest is refused by name, unless it is excluded.
func TestTreeRefuses(t *testing.T) {
	c := trusting(t)
	for _, bad := range []struct {
		path, why string
		make      func(file string) error
	}{
		{"sub/fifo", "is a FIFO", func(p string) error { return unix.Mkfifo(p, 0o644) }},
		{"sub/socket", "is a socket", func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o644, 0) }},
		{"sub/bad\xff", "not UTF-8", func(p string) error { return os.WriteFile(p, nil, 0o644) }},
		{"sub/link", "not UTF-8", func(p string) error { return os.Symlink("bad\xff", p) }},
	} {
		dir := t.TempDir()
		grow(t, dir, "sub/okay", "other")
		if err := bad.make(filepath.Join(dir, bad.path)); err != nil {
			t.Fatal(err)
		}
		err := refused(t, c, dir, TreeOptions{}, bad.path, bad.why)
		if err != nil && strings.Contains(err.Error(), "\xff") {
			t.Errorf("the error is not quoted: %q", err)
		}
		if strings.Contains(bad.path, "\xff") {
			continue // an excluded path is UTF-8
		}
		if got := hashTree(t, c, dir, TreeOptions{Exclude: []string{bad.path}}); got.Files != 2 {
			t.Errorf("%s excluded: %+v", bad.path, got)
		}
	}
}

func TestTreeRefusesDevice(t *testing.T) {
	testutil.RequireRoot(t)
	dir := t.TempDir()
	if err := unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		testutil.Require(t, !errors.Is(err, unix.EPERM), "no devices may be made here")
		t.Fatal(err)
	}
	refused(t, trusting(t), dir, TreeOptions{}, "null", "is a device")
}

// asUser is a Credential that reads as another user.
func asUser(uid int) func(func() error) error {
	return func(work func() error) error {
		runtime.LockOSThread() // and let it end with the goroutine
		if err := unix.Setfsuid(uid); err != nil {
			return err
		}
		return work()
	}
}

// TestTreeUnreadable: what the caller may not read is refused by name, also if this
// process may or another did.
func TestTreeUnreadable(t *testing.T) {
	testutil.RequireRoot(t)
	c := trusting(t)
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	grow(t, dir, "a/file", "a/dir/")
	opt := TreeOptions{Credential: asUser(65534), Reader: 65534}
	hashTree(t, c, dir, opt)
	if err := os.Chmod(filepath.Join(dir, "a/file"), 0); err != nil {
		t.Fatal(err)
	}
	hashTree(t, c, dir, TreeOptions{})
	if err := refused(t, c, dir, opt, "a/file", "permission denied"); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v, want fs.ErrPermission", err)
	}
	if err := os.Chmod(filepath.Join(dir, "a/file"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "a/dir"), 0); err != nil {
		t.Fatal(err)
	}
	refused(t, c, dir, opt, "a/dir", "permission denied")
	if err := os.Chmod(dir, 0); err != nil {
		t.Fatal(err)
	}
	refused(t, c, dir, opt, ".", "permission denied")
}

// inNewMounts runs a test again, in a process with mounts of its own.
func inNewMounts(t *testing.T) bool {
	t.Helper()
	testutil.RequireRoot(t)
	if os.Getenv("CACHE_TEST_MOUNTS") == t.Name() {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "CACHE_TEST_MOUNTS="+t.Name())
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		testutil.Require(t, false, "no mount namespace may be made here")
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// TestTreeOtherMount: what is mounted in a tree is refused, a directory and a file.
func TestTreeOtherMount(t *testing.T) {
	if !inNewMounts(t) {
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	c := trusting(t)
	for _, path := range []string{"sub/dir", "sub/file"} {
		dir := t.TempDir()
		grow(t, dir, "sub/dir/", "sub/file")
		place := filepath.Join(dir, path)
		if err := unix.Mount(place, place, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		refused(t, c, dir, TreeOptions{}, path, "another mount")
		hashTree(t, c, dir, TreeOptions{Exclude: []string{path}})
		if err := unix.Unmount(place, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFull: a full disk is an error that says what to do, leaves nothing behind, and
// what was stored before stays.
func TestFull(t *testing.T) {
	if !inNewMounts(t) {
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1M,mode=0700"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	}()
	dir := filepath.Join(disk, "cache")
	c, err := Open(dir, Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	action := DigestOf([]byte("action"))
	blob := put(t, c, "before")
	if err := c.PutResult("u0", action, []byte("record"), []Digest{blob}); err != nil {
		t.Fatal(err)
	}
	full := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "free space") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = c.Put(t.Context(), strings.NewReader(strings.Repeat("x", 2<<20)))
	full("put", err)
	noTempFiles(t, dir)
	if err := os.WriteFile(filepath.Join(disk, "fill"), make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	full("result", c.PutResult("u0", DigestOf([]byte("other")), make([]byte, 64<<10), nil))
	full("replacing a result", c.PutResult("u0", action, make([]byte, 64<<10), nil))
	noTempFiles(t, dir)
	if record, _, err := c.Result("u0", action); err != nil || string(record) != "record" {
		t.Errorf("the result from before: %q, %v", record, err)
	}
	c.index.add(fileID{inode: inode{1, 1}}, fileState{}, time.Now())
	full("index", c.index.save())
	if err := os.Remove(filepath.Join(disk, "fill")); err != nil {
		t.Fatal(err)
	}
	put(t, c, "after")
}

// What stands at a blob's name and is no file is dropped, and never waited for.
func TestBlobIsNoFile(t *testing.T) {
	c, dir := openTest(t, Config{})
	for name, put := range map[string]func(string) error{
		"FIFO": func(p string) error { return unix.Mkfifo(p, 0o600) },
		"link": func(p string) error { return os.Symlink("/etc/passwd", p) },
	} {
		d, err := c.PutBytes(t.Context(), []byte(name))
		if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, blobPath(d))
		if err := errors.Join(os.Remove(p), put(p)); err != nil {
			t.Fatal(err)
		}
		if b, err := c.Open(d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, %v", name, b, err)
		}
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: is still there: %v", name, err)
		}
	}
}
