package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// opener returns blobs, as the function blobs made them.
func opener(t testing.TB) func(Entry) (*os.File, error) {
	dir := t.TempDir()
	n := 0
	return func(e Entry) (*os.File, error) {
		n++
		p := filepath.Join(dir, fmt.Sprint(n))
		if err := os.WriteFile(p, []byte(e.Blob), 0o600); err != nil {
			return nil, err
		}
		return os.Open(p)
	}
}

func file(p, content string, mode uint32) Entry {
	return Entry{Path: p, Kind: 'f', Mode: mode, Size: int64(len(content)), Blob: content}
}

// snapshot tells all of a tree but its times.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Lstat(p)
		must(t, err)
		content := ""
		switch {
		case d.Type() == fs.ModeSymlink:
			content, err = os.Readlink(p)
		case d.Type().IsRegular():
			var b []byte
			b, err = os.ReadFile(p)
			content = string(b)
		}
		must(t, err)
		rel, err := filepath.Rel(dir, p)
		must(t, err)
		if rel != "." {
			all[rel] = fmt.Sprintf("%v %.100s", st.Mode(), content)
		}
		return nil
	}))
	return all
}

func wantTree(t testing.TB, dir string, want map[string]string) {
	t.Helper()
	if got := snapshot(t, dir); !maps.Equal(got, want) {
		t.Errorf("tree is %q\nwant    %q", got, want)
	}
}

func TestPlace(t *testing.T) {
	testutil.CheckLeaks(t)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	dir := tree(t, "out/old", "out/sub/old", "one", "keep", "bin -> keep")
	must(t, os.Chmod(dir+"/out/sub", 0o500))
	before, err := os.Stat(dir + "/one")
	must(t, err)
	large := strings.Repeat("0123456789abcdef", 1<<16)
	entries := []Entry{
		file("out/sub/x", "new x", 0o4755),
		{Path: "out", Kind: 'd', Mode: 0o555},
		{Path: "out/sub", Kind: 'd', Mode: 0},
		{Path: "out/l", Kind: 'l', Target: "/etc/passwd"},
		file("out/empty", "", 0o600),
		file("one", "new one", 0o755),
		file("new/deep/file", large, 0o444),
		file("bin", "no link", 0o644),
	}
	err = Place(t.Context(), open(t, dir), []string{"out", "one", "new/deep/file", "bin", "absent"}, entries, opener(t), nil, nil)
	must(t, err)
	sub, err := os.Stat(dir + "/out/sub")
	must(t, err)
	if sub.Mode() != os.ModeDir {
		t.Errorf("out/sub is %v", sub.Mode())
	}
	must(t, os.Chmod(dir+"/out/sub", 0o755))
	wantTree(t, dir, map[string]string{
		"out": "dr-xr-xr-x ", "out/sub": "drwxr-xr-x ", "out/sub/x": "-rwxr-xr-x new x", "out/l": "Lrwxrwxrwx /etc/passwd", "out/empty": "-rw------- ",
		"one": "-rwxr-xr-x new one", "new": "drwxr-xr-x ", "new/deep": "drwxr-xr-x ", "new/deep/file": "-r--r--r-- " + large[:100],
		"bin": "-rw-r--r-- no link", "keep": "-rw------- keep",
	})
	after, err := os.Stat(dir + "/one")
	must(t, err)
	if os.SameFile(before, after) {
		t.Error("the old file was written to, not replaced: who has it open or linked sees the new content")
	}
	must(t, os.Chmod(dir+"/out", 0o755))
}

func TestPlaceBadEntries(t *testing.T) {
	dir := tree(t, "out/old")
	before := snapshot(t, dir)
	for name, entries := range map[string][]Entry{
		"escape":          {file("../x", "", 0o644)},
		"absolute":        {file("/x", "", 0o644)},
		"undeclared":      {file("other", "", 0o644)},
		"no parent":       {file("out/x", "", 0o644)},
		"below a file":    {file("out", "", 0o644), file("out/x", "", 0o644)},
		"below a link":    {{Path: "out", Kind: 'l', Target: "/etc"}, file("out/x", "", 0o644)},
		"twice":           {{Path: "out", Kind: 'd'}, {Path: "out", Kind: 'l', Target: "/etc"}},
		"kind":            {{Path: "out", Kind: 'c'}},
		"size":            {{Path: "out", Kind: 'f', Size: -1}},
		"empty target":    {{Path: "out", Kind: 'l'}},
		"NUL in target":   {{Path: "out", Kind: 'l', Target: "a\x00b"}},
		"target too long": {{Path: "out", Kind: 'l', Target: strings.Repeat("a", 5000)}},
		"not UTF-8":       {{Path: "out", Kind: 'd'}, file("out/\xff", "", 0o644)},
	} {
		err := Place(t.Context(), open(t, dir), []string{"out"}, entries, opener(t), nil, nil)
		var entry *EntryError
		if !errors.As(err, &entry) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	wantErr(t, Place(t.Context(), open(t, dir), []string{".."}, nil, opener(t), nil, nil), "not a clean path")
	wantTree(t, dir, before)
}

// TestPlaceParentIsLink: a link on the way is refused, wherever it leads.
func TestPlaceParentIsLink(t *testing.T) {
	outside := t.TempDir()
	for _, entry := range []string{"a -> " + outside, "a/b -> ../c", "a/b -> .", "a", "a/b"} {
		dir := tree(t, entry, "c/")
		before := snapshot(t, dir)
		err := Place(t.Context(), open(t, dir), []string{"a/b/file", "z"}, []Entry{file("a/b/file", "x", 0o644), file("z", "z", 0o644)}, opener(t), nil, nil)
		var bad *EntryError
		if !errors.As(err, &bad) {
			t.Errorf("%s: error is %v", entry, err)
		}
		wantTree(t, dir, before)
	}
	if len(snapshot(t, outside)) != 0 {
		t.Error("something was placed outside")
	}
}

// TestPlaceFails: whenever an error comes, the tree stays as it was.
func TestPlaceFails(t *testing.T) {
	testutil.CheckLeaks(t)
	outputs := []string{"a", "new/b", "out"}
	entries := []Entry{file("a", "new a", 0o644), file("new/b", "b", 0o644), {Path: "out", Kind: 'd', Mode: 0o755}, file("out/x", "x", 0o644), file("out/y", "y", 0o644)}
	for fail := range 4 {
		dir := tree(t, "a", "out/old")
		before := snapshot(t, dir)
		get, n := opener(t), 0
		err := Place(t.Context(), open(t, dir), outputs, entries, func(e Entry) (*os.File, error) {
			if n++; n > fail {
				return nil, unix.ENOSPC
			}
			return get(e)
		}, nil, nil)
		wantErr(t, err, "is full, nothing was placed")
		wantTree(t, dir, before)
	}
	dir := tree(t, "a", "out/old")
	before := snapshot(t, dir)
	err := Place(t.Context(), open(t, dir), outputs, entries, func(e Entry) (*os.File, error) {
		e.Blob += "more than was recorded"
		return opener(t)(e)
	}, nil, nil)
	wantErr(t, err, "where 5 were recorded")
	wantTree(t, dir, before)
	ctx, cancel := context.WithCancel(t.Context())
	get := opener(t)
	err = Place(ctx, open(t, dir), outputs, entries, func(e Entry) (*os.File, error) {
		if e.Path == "out/y" {
			cancel()
		}
		return get(e)
	}, nil, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	wantTree(t, dir, before)
}

// TestPlaceCommitFails: what is already in place is taken back when a later output
// cannot be put there.
func TestPlaceCommitFails(t *testing.T) {
	inMountNamespace(t, func() {
		dir := tree(t, "a", "m/", "d/old")
		must(t, unix.Mount("test", dir+"/m", "tmpfs", 0, "mode=755"))
		defer func() { must(t, unix.Unmount(dir+"/m", 0)) }()
		before := snapshot(t, dir)
		outputs := []string{"a", "b", "d", "m"}
		entries := []Entry{file("a", "new a", 0o644), file("b", "b", 0o644), {Path: "d", Kind: 'd', Mode: 0o755}, {Path: "m", Kind: 'd', Mode: 0o755}}
		wantErr(t, Place(t.Context(), open(t, dir), outputs, entries, opener(t), nil, nil), "is a mount point")
		wantTree(t, dir, before)
	})
}

// TestPlaceFullDisk: a disk without space is told, and stays as it was.
func TestPlaceFullDisk(t *testing.T) {
	inMountNamespace(t, func() {
		dir := t.TempDir()
		must(t, unix.Mount("test", dir, "tmpfs", 0, "size=256k"))
		defer func() { must(t, unix.Unmount(dir, 0)) }()
		addTree(t, dir, "out/old")
		before := snapshot(t, dir)
		w, err := os.OpenFile(dir, unix.O_PATH, 0)
		must(t, err)
		defer w.Close()
		wantErr(t, Place(t.Context(), w, []string{"out"}, []Entry{file("out", strings.Repeat("x", 1<<20), 0o644)}, opener(t), nil, nil), "is full")
		wantTree(t, dir, before)
	})
}

// TestPlaceOverlay: a directory of an overlay's lower layer can neither be swapped nor moved.
func TestPlaceOverlay(t *testing.T) {
	inMountNamespace(t, func() {
		dir := overlay(t, "out/old", "out/sub/old", "one")
		w, err := os.OpenFile(dir, unix.O_PATH, 0)
		must(t, err)
		defer w.Close()
		entries := []Entry{{Path: "out", Kind: 'd', Mode: 0o755}, file("out/new", "new", 0o644), file("one", "new", 0o644)}
		must(t, Place(t.Context(), w, []string{"out", "one"}, entries, opener(t), nil, nil))
		wantTree(t, dir, map[string]string{"out": "drwxr-xr-x ", "out/new": "-rw-r--r-- new", "one": "-rw-r--r-- new"})
	})
}

// TestPlaceAsCaller: with the caller's fsuid, what is placed is the caller's, and
// what the caller may not write to is not written to.
func TestPlaceAsCaller(t *testing.T) {
	testutil.RequireRoot(t)
	const uid = 54321
	dir := tree(t, "mine/old", "theirs/old")
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o711))
	}
	for _, p := range []string{"mine", "mine/old"} {
		must(t, os.Lchown(filepath.Join(dir, p), uid, uid))
	}
	w, get := open(t, dir), opener(t)
	entries := func(top string) []Entry {
		return []Entry{{Path: top, Kind: 'd', Mode: 0o750}, file(top+"/f", "x", 0o640), {Path: top + "/l", Kind: 'l', Target: "f"}}
	}
	files := map[string]*os.File{}
	for _, p := range []string{"mine/new", "mine/other", "theirs/new"} {
		f, err := get(file("", "x", 0))
		must(t, err)
		files[p+"/f"] = f
	}
	place := func(top string) (err error) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // for good: the thread is spoilt
			if err = unix.Setgroups(nil); err != nil {
				return
			}
			unix.SetfsgidRetGid(uid) //nolint:errcheck // it has no way to tell
			unix.SetfsuidRetUid(uid) //nolint:errcheck
			err = Place(context.Background(), w, []string{top}, entries(top), func(e Entry) (*os.File, error) { return files[e.Path], nil }, nil, nil)
		}()
		<-done
		return err
	}
	must(t, place("mine/new"))
	for _, p := range []string{"mine/new", "mine/new/f", "mine/new/l"} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(dir, p), &st))
		if st.Uid != uid || st.Gid != uid {
			t.Errorf("%s belongs to %d:%d", p, st.Uid, st.Gid)
		}
	}
	wantErr(t, place("theirs/new"), "permission denied")
	// Whose the old version is does not count, if the directory is the caller's; but
	// of a directory that is another's, nothing is removed.
	must(t, os.MkdirAll(dir+"/mine/other/full", 0o755))
	wantErr(t, place("mine/other"), "its old version stays")
}

// TestPlaceRace: whatever the moment at which a link takes a directory's place,
// nothing is made outside.
func TestPlaceRace(t *testing.T) {
	testutil.CheckLeaks(t)
	for _, c := range []struct{ flipped, output string }{{"a", "a/f"}, {"a/b", "a/b/c/f"}, {"f", "f"}} {
		t.Run(c.output, func(t *testing.T) {
			outside := t.TempDir()
			dir := tree(t, "w/a/b/x", "w/f")
			w, get := open(t, dir+"/w"), opener(t)
			ok := 0
			flip(t, dir+"/w/"+c.flipped, outside, func(int) {
				if Place(t.Context(), w, []string{c.output}, []Entry{file(c.output, "x", 0o644)}, get, nil, nil) == nil {
					ok++
				}
			})
			t.Logf("%d of %d rounds placed it", ok, flips)
			for p := range snapshot(t, dir) {
				if strings.Contains(p, ".sandboxd-") {
					t.Errorf("%s was left", p)
				}
			}
			if got := snapshot(t, outside); len(got) != 0 {
				t.Errorf("outside are %q", got)
			}
		})
	}
}

// TestReplace: where a file system cannot swap, what is moved aside comes back.
func TestReplace(t *testing.T) {
	for _, old := range []string{"out", "out/old", "out -> x", ""} {
		entries := []string{"temp/new", old}
		if old == "" {
			entries = entries[:1]
		}
		dir := tree(t, entries...)
		before := snapshot(t, dir)
		s := &staged{path: "out", dir: open(t, dir), temp: "temp"}
		must(t, s.replace("out"))
		if b, err := os.ReadFile(dir + "/out/new"); err != nil || string(b) != "temp/new" {
			t.Errorf("%q: out is %q (%v)", old, b, err)
		}
		must(t, s.revert())
		delete(before, "temp")
		delete(before, "temp/new")
		wantTree(t, dir, before)
	}
	dir := tree(t, "temp/new", "out/old")
	s := &staged{path: "out", dir: open(t, dir), temp: "temp"}
	must(t, s.replace("out"))
	must(t, s.discard())
	wantTree(t, dir, map[string]string{"out": "drwxr-xr-x ", "out/new": "-rw-r--r-- temp/new"})
}

// TestCopyPiece: the ways of copying give the same.
func TestCopyPiece(t *testing.T) {
	src, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	defer src.Close()
	_, err = src.WriteString("0123456789")
	must(t, err)
	dst, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	defer dst.Close()
	must(t, (&placer{ctx: t.Context()}).copy(dst, src, Entry{Size: 10}))
	if b, err := os.ReadFile(dst.Name()); err != nil || string(b) != "0123456789" {
		t.Errorf("copy is %q (%v)", b, err)
	}
	if n, err := copyPiece(dst, src, 10, 5); err == nil {
		t.Errorf("%d bytes were copied from beyond the end", n)
	}
	// From a kernel's own file, which copy_file_range refuses.
	version, err := os.Open("/proc/version")
	must(t, err)
	defer version.Close()
	want, err := os.ReadFile("/proc/version")
	must(t, err)
	if n, err := copyPiece(dst, version, 0, int64(len(want))); err != nil || n != int64(len(want)) {
		t.Errorf("%d bytes of %d, %v", n, len(want), err)
	}
}

// FuzzPlan: whatever entries a cache holds, the groups that come of them can be
// written in order, each below its output.
func FuzzPlan(f *testing.F) {
	f.Add("out", "dout\nfout/a\ndout/b\nlout/b/c")
	f.Add("a\nb", "fb\nla")
	f.Add("a", "la\nfa/b")
	f.Fuzz(func(t *testing.T, out, list string) {
		outputs := strings.Split(out, "\n")
		var entries []Entry
		for e := range strings.SplitSeq(list, "\n") {
			if e != "" {
				entries = append(entries, Entry{Kind: e[0], Path: e[1:], Target: "t"})
			}
		}
		groups, err := plan(outputs, entries)
		if err != nil {
			return
		}
		n := 0
		for _, g := range groups {
			if !slices.Contains(outputs, g[0].Path) {
				t.Errorf("%q is no output", g[0].Path)
			}
			dirs := map[string]bool{}
			for i, e := range g {
				n++
				if i > 0 && !dirs[filepath.Dir(e.Path)] {
					t.Errorf("%q comes before its directory, or has none", e.Path)
				}
				dirs[e.Path] = e.Kind == 'd'
			}
		}
		if n != len(entries) {
			t.Errorf("%d of %d entries", n, len(entries))
		}
	})
}
