//go:build unix

package tree

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/tetratelabs/wazero/experimental/sys"
)

// TestSpecialFiles: what is neither file nor directory is seen, and not opened; the opening of a FIFO waits
// for nobody.
func TestSpecialFiles(t *testing.T) {
	work := t.TempDir()
	must(t, syscall.Mkfifo(filepath.Join(work, "fifo"), 0o600))
	l, err := net.Listen("unix", filepath.Join(work, "s"))
	must(t, err)
	defer l.Close()
	f := newTree(t, work, nil)
	for _, p := range []string{"build/fifo", "build/s"} {
		for _, flag := range []sys.Oflag{sys.O_RDONLY, sys.O_RDWR, sys.O_WRONLY | sys.O_TRUNC, sys.O_WRONLY | sys.O_CREAT} {
			if _, e := f.OpenFile(p, flag, 0); e != sys.EPERM {
				t.Errorf("open %s with %d: %v", p, flag, e)
			}
		}
		if e := f.Link(p, "build/hard"); e != sys.EPERM {
			t.Errorf("link %s: %v", p, e)
		}
		if e := f.Unlink(p); e != 0 {
			t.Errorf("unlink %s: %v", p, e)
		}
	}
	if _, err := os.Lstat(filepath.Join(work, "fifo")); err != nil {
		t.Error(err)
	}
}

// TestChangedBehind: what takes a file's place after it was looked at is not followed out, nor waited for.
func TestChangedBehind(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, map[string]string{"secret": "secret", "work/a": "a", "work/b": "b", "work/d/x": "x", "out/x": "secret"})
	f := newTree(t, filepath.Join(dir, "work"), nil)
	for _, p := range []string{"build/a", "build/b", "build/d"} {
		if _, e := f.Stat(p); e != 0 {
			t.Fatal(e)
		}
	}
	at := func(p string) string { return filepath.Join(dir, "work", p) }
	must(t, os.RemoveAll(at("a")))
	must(t, os.RemoveAll(at("b")))
	must(t, os.RemoveAll(at("d")))
	must(t, os.Symlink("../secret", at("a")))
	must(t, syscall.Mkfifo(at("b"), 0o600))
	must(t, os.Symlink("../out", at("d")))
	for _, p := range []string{"build/a", "build/b", "build/d/x"} {
		if s, e := read(t, f, p); e == 0 {
			t.Errorf("%s: %q", p, s)
		}
		if e := write(f, p, "x", 0); e == 0 {
			t.Errorf("wrote %s", p)
		}
	}
	if _, err := f.Outputs([]string{"a"}, func(Entry) error { return nil }); err == nil {
		t.Error("collected what lies elsewhere")
	}
}

// TestModesOfTheMachine: of them is seen whether a file can be run.
func TestModesOfTheMachine(t *testing.T) {
	work := t.TempDir()
	for mode, want := range map[os.FileMode]os.FileMode{0o600: 0o644, 0o666: 0o644, 0o640: 0o644, 0o700: 0o755, 0o777: 0o755, 0o611: 0o644} {
		name := filepath.Join(work, mode.String())
		must(t, os.WriteFile(name, nil, 0o600))
		must(t, os.Chmod(name, mode))
		if st, e := newTree(t, work, nil).Stat("build/" + mode.String()); e != 0 || st.Mode != want {
			t.Errorf("%v is %v, %v; want %v", mode, st.Mode, e, want)
		}
	}
	must(t, os.Mkdir(filepath.Join(work, "d"), 0o700))
	if st, e := newTree(t, work, nil).Stat("build/d"); e != 0 || st.Mode != os.ModeDir|0o755 {
		t.Errorf("a directory is %v, %v", st.Mode, e)
	}
}
