package rootfs

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// asCaller runs f on a thread with the rights of a user that nothing on this machine belongs to.
func asCaller(t *testing.T, uid, gid int, groups []uint32, f func() error) (err error) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread is spoilt
		_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
		if err = e; e != 0 {
			return
		}
		unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
		unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
		err = f()
	}()
	<-done
	return err
}

// passable lets every user come to dir.
func passable(t *testing.T, dir string) {
	t.Helper()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o755))
	}
}

// TestPlaceable: what Place could not do is known before, and told as Place would.
func TestPlaceable(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	const uid, group = 54321, 54322
	dir := tree(t, "mine/sub/f", "theirs/f", "closed/in/f", "shared/f", "link -> mine", "file")
	passable(t, dir)
	for p, ids := range map[string][2]int{"mine": {uid, uid}, "mine/sub": {uid, uid}, "shared": {0, group}} {
		must(t, os.Lchown(filepath.Join(dir, p), ids[0], ids[1]))
	}
	must(t, os.Chmod(dir+"/shared", 0o775))
	must(t, os.Chmod(dir+"/closed", 0o700))
	w := open(t, dir)
	for _, c := range []struct{ output, refused string }{
		{"mine/new", ""},
		{"mine/sub/f", ""},
		{"mine/new/deeper/f", ""},
		{"shared/new", ""}, // by a group
		{"theirs/f", "theirs: is a directory that you may not write to"},
		{"theirs/new/deeper", "theirs: is a directory that you may not write to"},
		{"new", ".: is a directory that you may not write to"},
		{"closed/in/f", "closed: may not be used"},
		{"link/new", "link: is, or lies beyond, a symbolic link"},
		{"file/new", "file: is, or lies beyond, what is no directory"},
		{"../new", "is not a clean path"},
	} {
		err := asCaller(t, uid, uid, []uint32{group}, func() error { return Placeable(w, []string{"mine/first", c.output}) })
		if c.refused == "" && err != nil {
			t.Errorf("%s: %v", c.output, err)
		} else if c.refused != "" {
			wantErr(t, err, c.refused)
		}
		if c.refused == "" || c.output == "link/new" {
			continue
		}
		// It is right: Place fails as well.
		e := file(c.output, "", 0o644)
		f, err := opener(t)(e)
		must(t, err)
		if asCaller(t, uid, uid, []uint32{group}, func() error {
			return Place(t.Context(), w, []string{c.output}, []Entry{e}, func(Entry) (*os.File, error) { return f, nil }, nil, nil)
		}) == nil {
			t.Errorf("%s was placed", c.output)
		}
		_ = f.Close() // perhaps already
	}
	if err := asCaller(t, uid, uid, nil, func() error { return Placeable(w, []string{"shared/new"}) }); err == nil {
		t.Error("shared: without the group it may be written to")
	}
	must(t, Placeable(w, []string{"theirs/f", "closed/in/f"})) // by root
}

// TestPlaceInASetgidDirectory: what is made there has the directory's group, and directories pass it on, as those do
// that the caller makes.
func TestPlaceInASetgidDirectory(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	const uid, group = 54321, 54322
	dir := tree(t, "shared/plain/", "shared/old")
	passable(t, dir)
	for _, p := range []string{"shared", "shared/plain"} {
		must(t, os.Lchown(filepath.Join(dir, p), uid, group))
	}
	must(t, os.Chmod(dir+"/shared", os.ModeSetgid|0o775))
	w := open(t, dir+"/shared")
	get := opener(t)
	files := map[string]*os.File{}
	for _, p := range []string{"f", "d/f", "d/e/f", "made/f", "plain/f"} {
		f, err := get(file("", "x", 0))
		must(t, err)
		files[p] = f
	}
	entries := []Entry{
		file("f", "x", 0o640), {Path: "d", Kind: 'd', Mode: 0o750}, file("d/f", "x", 0o640), {Path: "d/e", Kind: 'd', Mode: 0o755},
		file("d/e/f", "x", 0o644), file("made/f", "x", 0o644), file("plain/f", "x", 0o644),
	}
	must(t, asCaller(t, uid, uid, []uint32{group}, func() error {
		return Place(t.Context(), w, []string{"f", "d", "made/f", "plain/f"}, entries, func(e Entry) (*os.File, error) { return files[e.Path], nil }, nil, nil)
	}))
	const setgid = unix.S_ISGID
	for p, want := range map[string]struct{ gid, mode uint32 }{
		"f": {group, 0o640}, "d": {group, setgid | 0o750}, "d/f": {group, 0o640}, "d/e": {group, setgid | 0o755}, "d/e/f": {group, 0o644},
		"made": {group, setgid | 0o755}, "made/f": {group, 0o644}, "plain/f": {uid, 0o644},
	} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(dir, "shared", p), &st))
		if st.Uid != uid || st.Gid != want.gid || st.Mode&0o7777 != want.mode {
			t.Errorf("%s is of %d:%d, mode %o; want %d:%d, %o", p, st.Uid, st.Gid, st.Mode&0o7777, uid, want.gid, want.mode)
		}
	}
}

// TestIdentityTellsNothingOfClosedDirectories: who may name a root need not have the right to see all of it.
func TestIdentityTellsNothingOfClosedDirectories(t *testing.T) {
	testutil.CheckLeaks(t)
	src := tree(t, "usr/bin/sh", "usr/closed/f", "usr/closed/deep/f", "usr/open/f")
	must(t, os.Chmod(src+"/usr/closed", 0o750))
	id := openTest(t, Spec{Root: src}).Identity()
	must(t, os.WriteFile(src+"/usr/closed/deep/f", []byte("changed"), 0o644))
	must(t, os.WriteFile(src+"/usr/closed/deep/g", nil, 0o644))
	if openTest(t, Spec{Root: src}).Identity() != id {
		t.Error("what is in a closed directory shows in the identity")
	}
	must(t, os.WriteFile(src+"/usr/open/g", nil, 0o644))
	if openTest(t, Spec{Root: src}).Identity() == id {
		t.Error("what is in an open directory does not show in the identity")
	}
}
