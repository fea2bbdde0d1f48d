package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestUndeclared: over a real overlay, each kind of change.
func TestUndeclared(t *testing.T) {
	inMountNamespace(t, func() {
		merged := overlay(t, "src/a", "src/b", "src/sub/c", "gone", "gonedir/x", "gonedir/y", "remade/x", "same", "out/old", "above/x")
		in := func(p string) string { return filepath.Join(merged, p) }
		for _, f := range []func() error{
			func() error { return os.WriteFile(in("src/a"), []byte("other"), 0o644) },
			func() error { return os.Remove(in("src/sub/c")) },
			func() error { return os.Remove(in("gone")) },
			func() error { return os.RemoveAll(in("gonedir")) },
			func() error { return os.RemoveAll(in("remade")) },
			func() error { return os.Mkdir(in("remade"), 0o755) },
			func() error { return os.WriteFile(in("remade/y"), nil, 0o644) },
			func() error { return os.Mkdir(in("empty"), 0) },
			func() error { return os.WriteFile(in("new\nline"), nil, 0) },
			func() error { return os.WriteFile(in("raw\xff"), nil, 0o644) },
			func() error { return os.Symlink("/etc/passwd", in("link")) },
			func() error { return unix.Mkfifo(in("fifo"), 0o644) },
			func() error { return os.MkdirAll(in("above/deep"), 0o755) },
			func() error { return os.WriteFile(in("above/deep/out"), nil, 0o644) },
			func() error { return os.WriteFile(in("above/deep/log"), nil, 0o644) },
			func() error { return os.WriteFile(in("out/new"), nil, 0o644) },
			func() error { return os.Remove(in("out/old")) },
		} {
			must(t, f())
		}
		upper, err := os.Open(filepath.Join(merged, "../upper"))
		must(t, err)
		defer upper.Close()
		outputs := []string{"out", "above/deep/out", "absent"}
		got, n, err := Undeclared(t.Context(), upper, outputs, 100)
		must(t, err)
		want := []string{
			`"new\nline"`, `"raw\xff"`, "above/deep/log", "empty/", "fifo", "gone (deleted)", "gonedir (deleted)",
			"link", "remade/", "remade/y", "src/a", "src/sub/c (deleted)",
		}
		if !slices.Equal(got, want) || n != int64(len(want)) {
			t.Errorf("%d: %q\nwant   %q", n, got, want)
		}
		few, m, err := Undeclared(t.Context(), upper, outputs, 3)
		must(t, err)
		if len(few) != 3 || m != n {
			t.Errorf("%d of %d: %q", len(few), m, few)
		}
	})
}

func TestUndeclaredBounds(t *testing.T) {
	testutil.CheckLeaks(t)
	many := t.TempDir()
	for i := range 1200 {
		addTree(t, many, fmt.Sprint(i))
	}
	got, n, err := Undeclared(t.Context(), open(t, many), nil, 0)
	must(t, err)
	if n != 1200 || len(got) != 0 {
		t.Errorf("%d: %q", n, got)
	}
	_, _, err = Undeclared(t.Context(), open(t, many), []string{".."}, 0)
	wantErr(t, err, "not a clean path")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err = Undeclared(ctx, open(t, many), nil, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

// TestUndeclaredXattrWhiteout: newer kernels may mark a deletion by an attribute.
func TestUndeclaredXattrWhiteout(t *testing.T) {
	dir := tree(t, "full")
	must(t, os.WriteFile(dir+"/gone", nil, 0o644))
	for _, name := range []string{"gone", "full"} {
		err := unix.Setxattr(dir+"/"+name, "user.overlay.whiteout", []byte("y"), 0)
		testutil.Require(t, err != unix.EOPNOTSUPP, "the file system of the temporary directory has no user attributes")
		must(t, err)
	}
	got, _, err := Undeclared(t.Context(), open(t, dir), nil, 10)
	must(t, err)
	if !slices.Equal(got, []string{"full", "gone (deleted)"}) {
		t.Errorf("%q", got)
	}
}
