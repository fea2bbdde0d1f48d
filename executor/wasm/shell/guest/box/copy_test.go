package box

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// TestMoveByCopy: where a rename cannot, mv leaves the same tree at its new place and
// nothing at the old one.
func TestMoveByCopy(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "d", "sub"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "d", "sub", "f"), []byte("x"), 0o750))
	must(os.Chmod(filepath.Join(dir, "d", "sub", "f"), 0o750))
	must(os.Link(filepath.Join(dir, "d", "sub", "f"), filepath.Join(dir, "d", "hard")))
	must(os.Symlink("sub/f", filepath.Join(dir, "d", "soft")))
	var errs strings.Builder
	k := copier{c: &tool.Call{Args: []string{"mv"}, Dir: dir, Stderr: &errs, Proc: tool.NewProcess()}}
	from, err := k.c.Lstat("d")
	must(err)
	if !k.moveByCopy("d", "e", from) || errs.Len() > 0 {
		t.Fatal(errs.String())
	}
	if _, err := os.Lstat(filepath.Join(dir, "d")); err == nil {
		t.Error("the old place is still there")
	}
	f, err := os.Stat(filepath.Join(dir, "e", "sub", "f"))
	must(err)
	hard, err := os.Stat(filepath.Join(dir, "e", "hard"))
	must(err)
	to, err := os.Readlink(filepath.Join(dir, "e", "soft"))
	must(err)
	if f.Mode() != 0o750 || !os.SameFile(f, hard) || to != "sub/f" {
		t.Errorf("mode %v, the same file %v, link to %s", f.Mode(), os.SameFile(f, hard), to)
	}
	// What is in the way is replaced, not written through nor into.
	must(os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o644))
	from, err = k.c.Lstat("new")
	must(err)
	must(os.Symlink("e/sub/f", filepath.Join(dir, "l")))
	if !k.moveByCopy("new", "l", from) || errs.Len() > 0 {
		t.Error(errs.String())
	}
	if b, err := os.ReadFile(filepath.Join(dir, "e", "sub", "f")); err != nil || string(b) != "x" {
		t.Errorf("where the link led: %q, %v", b, err)
	}
	if k.moveByCopy("l", "e", from) || !strings.Contains(errs.String(), "Directory not empty") {
		t.Errorf("onto a full directory: %q", &errs)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "l")); err != nil || string(b) != "new" {
		t.Errorf("what was to be moved: %q, %v", b, err)
	}
}
