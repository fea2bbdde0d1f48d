package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs"
)

// TestHide: what is hidden is gone for the command, and can be made again; what is beside it is as it was.
func TestHide(t *testing.T) {
	f := newFixture(t)
	dir := makeTree(t, 1000, 100, map[string]string{"out": "old", "a/b/out/x": "old", "a/b/out/y/z": "old", "a/b/stays": "b", "a/stays": "a", "gone": "", "o/1": "", "o/2": ""})
	acl := []byte("\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\x20\x00\x01\x00\xff\xff\xff\xff")
	a, b := filepath.Join(dir.Name(), "a"), filepath.Join(dir.Name(), "a/b")
	must(t, unix.Setxattr(a, "user.note", []byte("kept"), 0))
	must(t, unix.Setxattr(a, "system.posix_acl_default", acl, 0))
	must(t, os.Chmod(a, 0o751|os.ModeSetgid))
	must(t, os.Chmod(b, 0o500))
	when := time.Unix(1e9, 5)
	for _, d := range []string{b, a} {
		must(t, os.Chtimes(d, when, when))
	}
	r := f.run(Spec{
		Work: Work{Dir: dir, UID: 1000, GID: 100, Hide: []string{"out", "a/b/out", "a/b/out/y", "o/1", "o/2", "none", "gone/x", "a/none/x"}},
		Script: "find . | sort | tr '\\n' ' '; stat -c '%n %a %u:%g %Y' a a/b; cat a/b/stays; chmod 700 a/b; " +
			"mkdir out a/b/out; echo new >a/b/out/x; cat a/b/out/*; ls o; rm -r a/b out; ls a",
	})
	want := ". ./a ./a/b ./a/b/stays ./a/stays ./gone ./o a 2751 1000:1000 1000000000\na/b 500 1000:1000 1000000000\nbnew\nstays\n"
	if r.Code != 0 || r.out != want {
		t.Errorf("%+v\n%s\n%s", r.Exit, r.out, r.err)
	}
	upper, err := r.box.Upper()
	must(t, err)
	defer upper.Close()
	at := r.box.dir() + "/upper/a"
	note := make([]byte, 10)
	if n, err := unix.Getxattr(at, "user.note", note); err != nil || string(note[:n]) != "kept" {
		t.Errorf("an attribute is %q, %v", note[:max(n, 0)], err)
	}
	got := make([]byte, 100)
	if n, err := unix.Getxattr(at, "system.posix_acl_default", got); err != nil || !slices.Equal(got[:n], acl) {
		t.Errorf("the access control list is %q, %v", got[:max(n, 0)], err)
	}
	paths, _, err := rootfs.Undeclared(t.Context(), upper, []string{"out", "o/1", "o/2"}, 100)
	if err != nil || strings.Join(paths, " ") != "a/b (deleted)" {
		t.Errorf("undeclared: %s, %v", paths, err)
	}
	old, err := os.ReadFile(filepath.Join(b, "out/y/z"))
	if err != nil || string(old) != "old" {
		t.Errorf("the caller's own is %q, %v", old, err)
	}
}

// TestHideLooksAtNothingBelow: however much there is, and how deep, it is not the daemon's work.
func TestHideLooksAtNothingBelow(t *testing.T) {
	f := newFixture(t)
	dir := makeTree(t, 1000, 1000, map[string]string{"out/" + strings.Repeat("d/", 700) + "file": "x", "keep": ""})
	r := f.run(Spec{Argv: []string{"test", "!", "-e", "out"}, Work: Work{Dir: dir, UID: 1000, GID: 1000, Hide: []string{"out"}}})
	if r.Code != 0 {
		t.Errorf("out is there: %s", r.err)
	}
	made, err := os.ReadDir(r.box.dir() + "/upper")
	if err != nil || len(made) != 1 || made[0].Type() != os.ModeDevice|os.ModeCharDevice {
		t.Errorf("the layer has %v, %v", made, err)
	}
}

// TestHideRefuses: the error is of who can do something about it.
func TestHideRefuses(t *testing.T) {
	f := newFixture(t)
	dir := makeTree(t, 1000, 1000, map[string]string{"other/out": "x", "real/out": "x"})
	must(t, os.Chown(filepath.Join(dir.Name(), "other"), 1001, 1001))
	must(t, os.Symlink("real", filepath.Join(dir.Name(), "link")))
	for p, why := range map[string]string{"other/out": "another user", "link/out": "symbolic link"} {
		_, _, _, err := f.try(Spec{Argv: []string{"true"}, Work: Work{Dir: dir, UID: 1000, GID: 1000, Hide: []string{p}}})
		if bad := (*OutputError)(nil); !errors.As(err, &bad) || bad.Output != p || !strings.Contains(bad.Reason, why) {
			t.Errorf("%s: %v", p, err)
		}
	}
	s, _, _ := f.start(Spec{Argv: []string{"true"}, Work: Work{Dir: dir, UID: 1000, GID: 1000}})
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := s.hide(ctx, &Work{Dir: dir, UID: 1000, GID: 1000, Hide: []string{"real/out"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}
