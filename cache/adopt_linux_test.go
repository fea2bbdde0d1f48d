package cache

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// adoption is a cache, and beside it a directory with the file sub/f, of somebody else, for it to adopt.
type adoption struct {
	*Cache
	t    *testing.T
	at   string // of the cache
	dir  *os.File
	file string
}

func newAdoption(t *testing.T, beside, text string) *adoption {
	t.Helper()
	a := &adoption{t: t}
	a.Cache, a.at = openTest(t, Config{Grace: -1})
	a.below(beside, text)
	return a
}

func (a *adoption) below(dir, text string) {
	a.t.Helper()
	a.file = filepath.Join(dir, "sub/f")
	err := errors.Join(os.MkdirAll(filepath.Dir(a.file), 0o755), os.WriteFile(a.file, []byte(text), 0o666), os.Chmod(a.file, unix.S_ISUID|0o777))
	if os.Geteuid() == 0 {
		err = errors.Join(err, os.Chown(a.file, 1234, 1235))
	}
	d, err2 := os.Open(dir)
	if err := errors.Join(err, err2); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = d.Close() })
	a.dir = d
}

// adopt has the cache take the file, and reports whether it took that very file. Either way the blob is as all are.
func (a *adoption) adopt() (d Digest, adopted bool) {
	a.t.Helper()
	text, err := os.ReadFile(a.file)
	if err != nil {
		a.t.Fatal(err)
	}
	before, err := os.Stat(a.file)
	if err != nil {
		a.t.Fatal(err)
	}
	f, err := os.Open(a.file)
	if err != nil {
		a.t.Fatal(err)
	}
	defer f.Close()
	d, err = a.Adopt(a.t.Context(), a.dir, "sub/f", f)
	if err != nil {
		a.t.Fatal(err)
	}
	if d != DigestOf(text) {
		a.t.Fatalf("%v, not %v", d, DigestOf(text))
	}
	blob := filepath.Join(a.at, blobPath(d))
	fi, err := os.Lstat(blob)
	if err != nil {
		a.t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	if fi.Mode() != 0o400 || int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid() || st.Nlink != 1 {
		a.t.Errorf("the blob has mode %v, owner %d:%d, %d names", fi.Mode(), st.Uid, st.Gid, st.Nlink)
	}
	if n, err := unix.Llistxattr(blob, nil); n > 0 || err != nil && err != unix.EOPNOTSUPP {
		a.t.Errorf("the blob's attributes: %d bytes, %v", n, err)
	}
	if !a.trusted(d, fi) {
		a.t.Error("the blob was put, and would be read once more to know it")
	}
	b, err := a.Bytes(d, 1<<20)
	if err != nil || string(b) != string(text) {
		a.t.Errorf("the blob holds %d bytes of %d, %v", len(b), len(text), err)
	}
	noTempFiles(a.t, a.at)
	_, err = os.Lstat(a.file)
	if gone := errors.Is(err, os.ErrNotExist); gone != os.SameFile(before, fi) {
		a.t.Errorf("the file is the blob: %v, and gone: %v", !gone, gone)
	}
	return d, os.SameFile(before, fi)
}

// TestAdopt: a file becomes a blob, which counts once, can be stored with a result, and goes with the next collection.
func TestAdopt(t *testing.T) {
	testutil.CheckLeaks(t)
	a := newAdoption(t, t.TempDir(), strings.Repeat("text", 100_000))
	d, adopted := a.adopt()
	if !adopted {
		t.Fatal("the file was copied")
	}
	if err := a.PutResult("u0", DigestOf([]byte("action")), nil, []Digest{d}); err != nil {
		t.Fatal(err)
	}
	s, err := a.Stats()
	if err != nil || s.Blobs != 1 || s.Bytes < d.Size || s.Bytes > d.Size+4096 {
		t.Errorf("%+v, %v", s, err)
	}
	// The same content once more: the blob is there, and the file is left.
	a.below(t.TempDir(), strings.Repeat("text", 100_000))
	if _, adopted := a.adopt(); adopted {
		t.Error("a blob that was there was replaced")
	}
	a.SetMaxBytes(1)
	if r, err := a.GC(t.Context()); err != nil || r.Blobs != 1 || r.Left != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := a.Open(d); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after its eviction: %v", err)
	}
}

// TestAdoptEmpty: no content is content, too.
func TestAdoptEmpty(t *testing.T) {
	a := newAdoption(t, t.TempDir(), "")
	a.adopt()
}

// TestAdoptHoles: a file of holes keeps them.
func TestAdoptHoles(t *testing.T) {
	a := newAdoption(t, t.TempDir(), "text")
	check(t, os.Truncate(a.file, 1<<20))
	if _, adopted := a.adopt(); !adopted {
		t.Error("the file was copied")
	}
}

// TestAdoptedCannotBeWritten: neither by who holds the file open, nor by its owner.
func TestAdoptedCannotBeWritten(t *testing.T) {
	testutil.RequireRoot(t)
	a := newAdoption(t, t.TempDir(), "text")
	if err := os.Chmod(a.dir.Name(), 0o777); err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(a.file)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	d, adopted := a.adopt()
	if !adopted {
		t.Fatal("the file was copied")
	}
	tried := make(chan error)
	go func() {
		tried <- asUser(1234)(func() error {
			again := "/proc/thread-self/fd/" + strconv.Itoa(int(held.Fd()))
			if f, err := os.OpenFile(again, os.O_RDWR, 0); err == nil {
				f.Close()
				t.Error("its owner could open it again for writing")
			}
			if err := held.Chmod(0o666); err == nil {
				t.Error("its owner could change its mode")
			}
			return nil
		})
	}()
	check(t, <-tried)
	if b, err := a.Bytes(d, 100); err != nil || string(b) != "text" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestAdoptCopies: what is unusual in any way is copied, and what can still be done to the file does not reach the blob.
func TestAdoptCopies(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T, file string)
	}{
		{"open for writing", func(t *testing.T, file string) { held(t, file, false) }},
		{"mapped for writing", func(t *testing.T, file string) { held(t, file, true) }},
		{"another name", func(t *testing.T, file string) { check(t, os.Link(file, file+"2")) }},
		{"extended attribute", func(t *testing.T, file string) {
			if err := unix.Setxattr(file, "user.x", []byte("y"), 0); err == unix.EOPNOTSUPP {
				testutil.Require(t, false, "the file system has no user attributes")
			} else {
				check(t, err)
			}
		}},
		{"flag", func(t *testing.T, file string) {
			const noDump = 0x40
			f, err := os.Open(file)
			check(t, err)
			defer f.Close()
			flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
			if err == nil {
				err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|noDump))
			}
			testutil.Require(t, err == nil, "the file system has no inode flags")
		}},
		{"blocks beyond its end", func(t *testing.T, file string) {
			f, err := os.OpenFile(file, os.O_RDWR, 0)
			check(t, err)
			defer f.Close()
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, 1<<20); err == unix.EOPNOTSUPP {
				testutil.Require(t, false, "the file system allocates nothing ahead")
			} else {
				check(t, err)
			}
		}},
		{"zeros", func(t *testing.T, file string) { check(t, os.WriteFile(file, make([]byte, 1<<20), 0)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			testutil.CheckLeaks(t)
			a := newAdoption(t, t.TempDir(), "text")
			c.make(t, a.file)
			want, err := os.ReadFile(a.file)
			check(t, err)
			d, adopted := a.adopt()
			if adopted {
				t.Error("the file was adopted")
			}
			check(t, os.Chmod(a.file, 0o600))
			check(t, os.WriteFile(a.file, []byte("evil"), 0))
			if b, err := a.Bytes(d, 1<<20); err != nil || !bytes.Equal(b, want) {
				t.Errorf("%d bytes of %d, %v", len(b), len(want), err)
			}
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// held has a file open for writing, or only mapped, until the end of the test.
func held(t *testing.T, file string, mapped bool) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	check(t, err)
	if !mapped {
		t.Cleanup(func() { f.Close() })
		return
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 4, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(t, errors.Join(err, f.Close()))
	t.Cleanup(func() { check(t, unix.Munmap(m)) })
}

// TestAdoptElsewhere: a file of another file system is copied, and so is what lies on another mount of the cache's own.
func TestAdoptElsewhere(t *testing.T) {
	if !inNewMounts(t) {
		return
	}
	check(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	for _, kind := range []string{"tmpfs", "bind"} {
		dir := t.TempDir()
		if kind == "bind" {
			check(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
		} else {
			check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1M"))
		}
		a := newAdoption(t, dir, "text of "+kind)
		if _, adopted := a.adopt(); adopted {
			t.Errorf("%s: adopted", kind)
		}
		check(t, os.WriteFile(a.file, []byte("more"), 0))
		if _, adopted := a.adopt(); adopted {
			t.Errorf("%s, once more: adopted", kind)
		}
		check(t, a.dir.Close())
		check(t, unix.Unmount(dir, 0))
	}
}

// TestAdoptFails: nothing is stored of a file that is too large, or whose taker is gone, or that is not what has the name.
func TestAdoptFails(t *testing.T) {
	testutil.CheckLeaks(t)
	a := newAdoption(t, t.TempDir(), "text")
	f, err := os.Open(a.file)
	check(t, err)
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Adopt(ctx, a.dir, "sub/f", f); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	a.SetMaxBytes(3)
	if _, err := a.Adopt(t.Context(), a.dir, "sub/f", f); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	a.SetMaxBytes(100)
	check(t, os.WriteFile(filepath.Dir(a.file)+"/g", []byte("text"), 0o600))
	if _, err := a.Adopt(t.Context(), a.dir, "sub/g", f); !errors.Is(err, ErrChanged) {
		t.Errorf("another file: %v", err)
	}
	if s, err := a.Stats(); err != nil || s.Blobs != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}
