package sandbox

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// subtrees are the controllers that the roots of hierarchies turn on below them.
func subtrees(t *testing.T, f *fixture) (all []string) {
	t.Helper()
	for _, m := range f.host.cfg.Limits.Mounts() {
		b, err := os.ReadFile(m + "/cgroup.subtree_control")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		all = append(all, m+": "+string(b))
	}
	return all
}

// TestNoGroupsButOurs: a first process is in the group that was made for it, and libcontainer makes no
// others, nor does it turn on controllers where that is not ours to do.
func TestNoGroupsButOurs(t *testing.T) {
	f := newFixture(t)
	before := subtrees(t, f)
	box, _, _ := f.start(Spec{Argv: []string{"sleep", "1000"}})
	if in, err := box.Group().Holds(box.pid); err != nil || !in {
		t.Errorf("the first process is not in the group: %v", err)
	}
	if after := subtrees(t, f); !slices.Equal(after, before) {
		t.Errorf("controllers were\n%s\nand are\n%s", before, after)
	}
	for _, m := range f.host.cfg.Limits.Mounts() {
		must(t, filepath.WalkDir(m, func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil // another's, and gone
			}
			if err == nil && d.IsDir() && strings.Contains(p, noGroup) {
				t.Errorf("group %s was made", p)
			}
			return err
		}))
	}
}

// TestSpace: what it shows is what it must, groups are read-only, and no other mount is kept busy.
func TestSpace(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	other := t.TempDir()
	must(t, unix.Mount("test", other, "tmpfs", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(other, 0)) })
	f := openFixture(t)
	must(t, f.host.inSpace(func() error {
		mounts, err := mountPoints()
		if slices.Contains(mounts, other) {
			t.Errorf("%s is kept", other)
		}
		for _, g := range f.host.cfg.Limits.Mounts() {
			if err := os.Mkdir(g+"/"+noGroup, 0o755); !errors.Is(err, unix.EROFS) {
				t.Errorf("make a group in %s: %v", g, err)
			}
		}
		_, bad := os.Stat(f.host.cfg.Dir + "/base")
		return errors.Join(err, bad)
	}))
	if mounts, err := mountPoints(); err != nil || !slices.Contains(mounts, other) {
		t.Errorf("%s is gone from the machine's own mounts: %v", other, err)
	}
}

func TestBeneath(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{
		{"/a/b", "/", true}, {"/a/b", "/a", true}, {"/a/b", "/a/b", true}, {"/", "/", true},
		{"/ab", "/a", false}, {"/a", "/a/b", false}, {"/", "/a", false},
	} {
		if got := beneath(c.path, c.dir); got != c.want {
			t.Errorf("%s beneath %s: %v", c.path, c.dir, got)
		}
	}
}
