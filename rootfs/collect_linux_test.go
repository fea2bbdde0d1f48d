package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// blobs is a Store whose ids are the content.
func blobs(_ context.Context, _ string, f *os.File, size int64) (string, error) {
	b, err := io.ReadAll(io.LimitReader(f, size))
	if err == nil && int64(len(b)) < size {
		err = io.ErrUnexpectedEOF
	}
	return string(b), err
}

// discard is a Store that reads nothing.
func discard(context.Context, string, *os.File, int64) (string, error) { return "", nil }

func open(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func collect(t testing.TB, dir string, outputs ...string) ([]Entry, []string, error) {
	t.Helper()
	return Collect(t.Context(), open(t, dir), nil, outputs, Limits{}, blobs)
}

func TestCollect(t *testing.T) {
	testutil.CheckLeaks(t)
	dir := tree(t, "out/b", "out/a/x", "out/a/deep/y", "out/a-b", "out/abs -> /etc/passwd", "out/up -> ../../x", "out/gone -> nowhere",
		"one", "undeclared", "link -> out", "out/new\nline", "out/ü")
	must(t, os.Chmod(filepath.Join(dir, "one"), 0o754|os.ModeSetuid|os.ModeSetgid))
	must(t, os.Chmod(filepath.Join(dir, "out/a"), 0o750|os.ModeSticky|os.ModeSetgid))
	must(t, os.Link(filepath.Join(dir, "one"), filepath.Join(dir, "out/hard")))
	got, missing, err := collect(t, dir, "one", "out", "link", "absent", "undeclared/below", "no/such")
	must(t, err)
	if want := []string{"absent", "no/such", "undeclared/below"}; !slices.Equal(missing, want) {
		t.Errorf("missing are %q, want %q", missing, want)
	}
	file := func(p string, mode uint32, content string) Entry {
		return Entry{Path: p, Kind: 'f', Mode: mode, Size: int64(len(content)), Blob: content}
	}
	want := []Entry{
		{Path: "link", Kind: 'l', Target: "out"},
		file("one", 0o754, "one"),
		{Path: "out", Kind: 'd', Mode: 0o755},
		{Path: "out/a", Kind: 'd', Mode: 0o750},
		{Path: "out/a/deep", Kind: 'd', Mode: 0o755},
		file("out/a/deep/y", 0o644, "out/a/deep/y"),
		file("out/a/x", 0o644, "out/a/x"),
		file("out/a-b", 0o644, "out/a-b"),
		{Path: "out/abs", Kind: 'l', Target: "/etc/passwd"},
		file("out/b", 0o644, "out/b"),
		{Path: "out/gone", Kind: 'l', Target: "nowhere"},
		file("out/hard", 0o754, "one"),
		file("out/new\nline", 0o644, "out/new\nline"),
		{Path: "out/up", Kind: 'l', Target: "../../x"},
		file("out/ü", 0o644, "out/ü"),
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestCollectBadOutputs(t *testing.T) {
	dir := tree(t, "a/b")
	for _, outputs := range [][]string{
		{""}, {"."}, {".."}, {"../a"}, {"/a"}, {"a/"}, {"a//b"}, {"a/../b"}, {"./a"}, {"a\x00"}, {"a\xff"},
		{strings.Repeat("a/", 2048) + "a"}, {"a", "a"}, {"a", "a/b"}, {"a/b/c", "a"},
	} {
		_, _, err := collect(t, dir, outputs...)
		var entry *EntryError
		if !errors.As(err, &entry) {
			t.Errorf("%.40q: error is %v", outputs, err)
		}
	}
	f, err := os.Open(filepath.Join(dir, "a/b"))
	must(t, err)
	defer f.Close()
	_, _, err = Collect(t.Context(), f, nil, []string{"a"}, Limits{}, blobs)
	wantErr(t, err, "not a directory")
}

func TestCollectHostile(t *testing.T) {
	testutil.CheckLeaks(t)
	socket := func(p string) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Bind(fd, &unix.SockaddrUnix{Name: p})
	}
	for name, c := range map[string]struct {
		make func(dir string) error
		text string
	}{
		"FIFO":      {func(d string) error { return unix.Mkfifo(d+"/out/f", 0o666) }, `out/f: is a FIFO`},
		"socket":    {func(d string) error { return socket(d + "/out/s") }, `out/s: is a socket`},
		"not UTF-8": {func(d string) error { return os.WriteFile(d+"/out/\xff\n", nil, 0o644) }, `"out/\xff\n": is not UTF-8`},
		"not UTF-8 target": {func(d string) error { return os.Symlink("\xff", d+"/out/l") },
			"out/l: is a symbolic link to a name that is not UTF-8"},
		"terabyte": {func(d string) error {
			if err := os.WriteFile(d+"/out/t", nil, 0o644); err != nil {
				return err
			}
			return os.Truncate(d+"/out/t", 1<<40)
		}, "out/t: the outputs exceed 68719476736 bytes"},
		"parent is a link": {func(d string) error {
			if err := os.Remove(d + "/out"); err != nil {
				return err
			}
			return os.Symlink("/etc", d+"/out")
		}, "symbolic link, which is not followed"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, "out/")
			must(t, c.make(dir))
			outputs := []string{"out"}
			if name == "parent is a link" {
				outputs = []string{"out/passwd"}
			}
			entries, _, err := collect(t, dir, outputs...)
			wantErr(t, err, c.text)
			if entries != nil {
				t.Errorf("entries are %+v", entries)
			}
		})
	}
}

// TestCollectLease: who holds a lease on a file can make others wait to open it.
func TestCollectLease(t *testing.T) {
	dir := tree(t, "out")
	f, err := os.Open(dir + "/out")
	must(t, err)
	defer f.Close()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	testutil.Require(t, err == nil, "the file system of the temporary directory has no leases")
	_, _, err = collect(t, dir, "out")
	wantErr(t, err, "changes all the time")
}

func TestCollectDevice(t *testing.T) {
	testutil.RequireRoot(t)
	for _, kind := range []uint32{unix.S_IFCHR, unix.S_IFBLK} {
		dir := tree(t, "out/")
		must(t, unix.Mknod(dir+"/out/d", kind|0o666, int(unix.Mkdev(1, 3))))
		_, _, err := collect(t, dir, "out")
		wantErr(t, err, "out/d: is a device")
	}
}

// TestCollectUnreadable: root reads what has no permissions, others are told.
func TestCollectUnreadable(t *testing.T) {
	dir := tree(t, "out/d/x")
	must(t, os.Chmod(dir+"/out/d/x", 0))
	must(t, os.Chmod(dir+"/out/d", 0))
	t.Cleanup(func() { must(t, os.Chmod(dir+"/out/d", 0o755)) })
	entries, _, err := collect(t, dir, "out")
	if os.Geteuid() != 0 {
		wantErr(t, err, "may not be used")
		return
	}
	must(t, err)
	if len(entries) != 3 || entries[1].Mode != 0 || entries[2].Mode != 0 || entries[2].Blob != "out/d/x" {
		t.Errorf("entries are %+v", entries)
	}
}

func TestCollectLimits(t *testing.T) {
	testutil.CheckLeaks(t)
	dir := t.TempDir()
	for i := range 40 {
		addTree(t, dir, fmt.Sprintf("out/%d/a", i))
	}
	for name, c := range map[string]struct {
		lim Limits
		ok  bool
	}{
		"entries": {Limits{MaxEntries: 80}, false}, "entries enough": {Limits{MaxEntries: 81}, true},
		"few entries": {Limits{MaxEntries: 1}, false},
		"bytes":       {Limits{MaxBytes: 10*7 + 30*8 - 1}, false}, "bytes enough": {Limits{MaxBytes: 10*7 + 30*8}, true},
		"levels": {Limits{MaxDepth: 1}, false}, "levels enough": {Limits{MaxDepth: 2}, true},
	} {
		entries, _, err := Collect(t.Context(), open(t, dir), nil, []string{"out"}, c.lim, blobs)
		var limit *LimitError
		if c.ok && (err != nil || len(entries) != 81) || !c.ok && (!errors.As(err, &limit) || !strings.HasPrefix(name, strings.Fields(limit.Limit)[0]) && name != "few entries") {
			t.Errorf("%s: %d entries, error %v", name, len(entries), err)
		}
	}
}

func TestCollectManyFiles(t *testing.T) {
	dir := t.TempDir()
	const n = 20_000
	addTree(t, dir, "out/0")
	for i := 1; i < n; i++ {
		must(t, os.Link(dir+"/out/0", fmt.Sprintf("%s/out/%d", dir, i)))
	}
	entries, _, err := Collect(t.Context(), open(t, dir), nil, []string{"out"}, Limits{}, discard)
	must(t, err)
	if len(entries) != n+1 {
		t.Errorf("%d entries", len(entries))
	}
	calls := 0
	_, _, err = Collect(t.Context(), open(t, dir), nil, []string{"out"}, Limits{MaxEntries: 1000}, func(context.Context, string, *os.File, int64) (string, error) {
		calls++
		return "", nil
	})
	wantErr(t, err, "the outputs exceed 1000 entries")
	if calls != 0 {
		t.Errorf("%d files were stored of a directory that is too large", calls)
	}
}

// TestDeep: a tree deeper than any path can name ends in an error or in its removal.
func TestDeep(t *testing.T) {
	testutil.CheckLeaks(t)
	const depth = 10_000
	dir := tree(t, "out/")
	at, err := unix.Open(dir+"/out", unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	for range depth {
		must(t, unix.Mkdirat(at, "d", 0o755))
		sub, err := unix.Openat(at, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(at)
		at = sub
	}
	unix.Close(at)
	_, _, err = collect(t, dir, "out")
	var limit *LimitError
	if !errors.As(err, &limit) || limit.Limit != "levels of directories" {
		t.Errorf("error is %v", err)
	}
	// Where depth is not what stops it, the length of a path is.
	_, _, err = Collect(t.Context(), open(t, dir), nil, []string{"out"}, Limits{MaxDepth: depth}, blobs)
	wantErr(t, err, "is longer than 4095 bytes")
	got, n, err := Undeclared(t.Context(), open(t, dir), nil, 100)
	must(t, err)
	if n != 1 || !strings.HasSuffix(got[0], "/d/ (not searched)") {
		t.Errorf("%d: %q", n, got)
	}
	must(t, RemoveTree(open(t, dir), "out"))
	wantGone(t, dir+"/out")
}

func TestCollectStoreFails(t *testing.T) {
	testutil.CheckLeaks(t)
	dir := tree(t, "out/a")
	_, _, err := Collect(t.Context(), open(t, dir), nil, []string{"out"}, Limits{}, func(context.Context, string, *os.File, int64) (string, error) {
		return "", unix.ENOSPC
	})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "store out/a") {
		t.Errorf("error is %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err = Collect(ctx, open(t, dir), nil, []string{"out"}, Limits{}, blobs); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	_, _, err = Collect(t.Context(), open(t, dir), nil, []string{"out"}, Limits{}, func(_ context.Context, _ string, f *os.File, size int64) (string, error) {
		return "", os.WriteFile(dir+"/out/a", []byte("something else"), 0o644)
	})
	wantErr(t, err, "changed while it was read")
}

// TestCollectMount: what is mounted in the work directory is not taken.
func TestCollectMount(t *testing.T) {
	inMountNamespace(t, func() {
		dir := tree(t, "out/m/")
		must(t, unix.Mount("test", dir+"/out/m", "tmpfs", 0, ""))
		_, _, err := collect(t, dir, "out")
		wantErr(t, err, "another mount")
		err = RemoveTree(open(t, dir), "out")
		wantErr(t, err, "device or resource busy")
		must(t, os.WriteFile(dir+"/out/m/x", nil, 0o644))
		err = RemoveTree(open(t, dir), "out")
		if err == nil {
			t.Error("a mount was crossed")
		}
		if _, err := os.Stat(dir + "/out/m/x"); err != nil {
			t.Error(err)
		}
		must(t, unix.Unmount(dir+"/out/m", 0))
	})
}

// flips is how many rounds a race gets.
const flips = 600

// flip makes what is at path a file, then a link to target, over and over until the end of f.
func flip(t *testing.T, path, target string, f func(round int)) {
	t.Helper()
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		aside := path + ".aside"
		if err := os.Symlink(target, aside); err != nil {
			t.Error(err)
			return
		}
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, aside, unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer func() {
		close(stop)
		done.Wait()
	}()
	for i := range flips {
		f(i)
	}
}

// TestCollectRace: whatever the moment at which a link takes a file's or a
// directory's place, nothing from outside is read.
func TestCollectRace(t *testing.T) {
	testutil.CheckLeaks(t)
	outside := tree(t, "secret", "sub/secret")
	for _, c := range []struct{ name, flipped, target, output string }{
		{"file", "out/secret", outside + "/secret", "out"},
		{"directory", "out/sub", outside + "/sub", "out"},
		{"output", "out", outside, "out"},
		{"parent", "out", outside, "out/sub/secret"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tree(t, "w/out/secret", "w/out/sub/secret")
			w := open(t, dir+"/w")
			ok := 0
			flip(t, dir+"/w/"+c.flipped, c.target, func(int) {
				entries, _, err := Collect(t.Context(), w, nil, []string{c.output}, Limits{}, blobs)
				if err == nil {
					ok++
				}
				for _, e := range entries {
					if e.Kind == 'f' && !strings.HasPrefix(e.Blob, "w/out/") {
						t.Fatalf("%s is from outside: %q", e.Path, e.Blob)
					}
				}
			})
			t.Logf("%d of %d rounds gave entries", ok, flips)
		})
	}
}
