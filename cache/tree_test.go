package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	rex "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/protobuf/proto"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// grow makes a tree: a path that ends with a slash is a directory, "path -> target" a
// link, "path*" an executable, and others files, which hold their paths.
func grow(t testing.TB, dir string, paths ...string) {
	t.Helper()
	for _, p := range paths {
		p, target, link := strings.Cut(p, " -> ")
		name, executable := strings.CutSuffix(p, "*")
		file := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		switch {
		case err != nil:
		case link:
			err = os.Symlink(target, file)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(file, 0o755)
		case executable:
			err = os.WriteFile(file, []byte(name), 0o755)
		default:
			err = os.WriteFile(file, []byte(name), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func openDir(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func hashTree(t testing.TB, c *Cache, dir string, opt TreeOptions) Tree {
	t.Helper()
	tree, err := c.HashTree(t.Context(), openDir(t, dir), opt)
	if err != nil {
		t.Fatal(err)
	}
	if c.index.settle < 0 {
		tick(t)
	}
	return tree
}

// tick waits until the file systems' clock has gone on: what changes later is told from what was before.
func tick(t testing.TB) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "clock")
	touch := func() time.Time {
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		return fi.ModTime()
	}
	for first := touch(); !touch().After(first); {
		runtime.Gosched()
	}
}

// trusting opens a cache in which a file counts as settled at once.
func trusting(t testing.TB) *Cache {
	c, _ := openTest(t, Config{})
	c.index.settle = -time.Hour
	return c
}

func rexDigest(t testing.TB, m proto.Message) Digest {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return DigestOf(b)
}

func rexFile(t testing.TB, name, content string, executable bool) *rex.FileNode {
	return &rex.FileNode{Name: name, Digest: digestProto(DigestOf([]byte(content))), IsExecutable: executable}
}

func rexDir(t testing.TB, name string, d *rex.Directory) *rex.DirectoryNode {
	return &rex.DirectoryNode{Name: name, Digest: digestProto(rexDigest(t, d))}
}

// TestTreeIsREAPI: the digest is that of the messages of the Remote Execution API, as
// built by hand.
func TestTreeIsREAPI(t *testing.T) {
	testutil.CheckLeaks(t)
	c, _ := openTest(t, Config{})
	dir := t.TempDir()
	if got := hashTree(t, c, dir, TreeOptions{}); got.Digest != rexDigest(t, &rex.Directory{}) {
		t.Errorf("empty tree: %v", got)
	}
	grow(t, dir, "z", "run*", "empty", "src/a.c", "src-x", "src/deep/b.c", "src/new\nline", "void/", "link -> /etc/passwd", "src/up -> ../nowhere")
	if err := os.Truncate(filepath.Join(dir, "empty"), 0); err != nil {
		t.Fatal(err)
	}
	deep := &rex.Directory{Files: []*rex.FileNode{rexFile(t, "b.c", "src/deep/b.c", false)}}
	src := &rex.Directory{
		Files:       []*rex.FileNode{rexFile(t, "a.c", "src/a.c", false), rexFile(t, "new\nline", "src/new\nline", false)},
		Directories: []*rex.DirectoryNode{rexDir(t, "deep", deep)},
		Symlinks:    []*rex.SymlinkNode{{Name: "up", Target: "../nowhere"}},
	}
	want := rexDigest(t, &rex.Directory{
		Files:       []*rex.FileNode{rexFile(t, "empty", "", false), rexFile(t, "run", "run", true), rexFile(t, "src-x", "src-x", false), rexFile(t, "z", "z", false)},
		Directories: []*rex.DirectoryNode{rexDir(t, "src", src), rexDir(t, "void", &rex.Directory{})},
		Symlinks:    []*rex.SymlinkNode{{Name: "link", Target: "/etc/passwd"}},
	})
	got := hashTree(t, c, dir, TreeOptions{})
	if got.Digest != want {
		t.Errorf("digest %v, want %v", got.Digest, want)
	}
	bytes := int64(len("run") + len("src-x") + len("z") + len("src/a.c") + len("src/new\nline") + len("src/deep/b.c"))
	if got.Files != 7 || got.Bytes != bytes || got.Read != 7 {
		t.Errorf("%+v, want 7 files of %d bytes, all read", got, bytes)
	}
}

// FuzzDirectory: our encoding of a Directory is protobuf's.
func FuzzDirectory(f *testing.F) {
	f.Add("file", "link", "target", int64(0), true)
	f.Add("f", "", strings.Repeat("x", 200), int64(300), false)
	f.Fuzz(func(t *testing.T, file, link, target string, size int64, executable bool) {
		if !utf8.ValidString(file) || !utf8.ValidString(link) || !utf8.ValidString(target) || file == "" || link == "" || size < 0 {
			return
		}
		d := Digest{Hash: DigestOf([]byte(file)).Hash, Size: size}
		m := &rex.Directory{
			Files:       []*rex.FileNode{{Name: file, Digest: digestProto(d), IsExecutable: executable}},
			Directories: []*rex.DirectoryNode{{Name: link, Digest: digestProto(d)}},
			Symlinks:    []*rex.SymlinkNode{{Name: link, Target: target}, {Name: file}},
		}
		got := appendDirectory(nil, []dirent{
			{name: link, kind: kindLink, target: target},
			{name: link, kind: kindDir, sum: d.sum(), size: size},
			{name: file, kind: kindFile, sum: d.sum(), size: size, executable: executable},
			{name: file, kind: kindLink},
			{name: file, kind: kindAbsent},
		})
		if DigestOf(got) != rexDigest(t, m) {
			t.Errorf("%q is not the message %v", got, m)
		}
	})
}

// TestTreeMatchesDirectory: however many workers hash a tree, the digest is that of
// its files named one by one.
func TestTreeMatchesDirectory(t *testing.T) {
	testutil.CheckLeaks(t)
	c := trusting(t)
	dir := t.TempDir()
	nodes := map[string]Node{}
	for i := range 600 {
		p := fmt.Sprintf("d%d/e%d/f%d/%d", i%7, i%11, i%3, i)
		grow(t, dir, p)
		nodes[p] = Node{Digest: DigestOf([]byte(p))}
	}
	want, err := Directory(nodes)
	if err != nil {
		t.Fatal(err)
	}
	for _, procs := range []int{1, 4, 64} {
		before := runtime.GOMAXPROCS(procs)
		got := hashTree(t, c, dir, TreeOptions{})
		runtime.GOMAXPROCS(before)
		if got.Digest != want || got.Files != 600 {
			t.Errorf("with %d processors: %+v, want %v", procs, got, want)
		}
	}
}

// TestTreeKnowsFiles: what is unchanged is not read again, by the next process neither,
// and what is changed is.
func TestTreeKnowsFiles(t *testing.T) {
	testutil.Require(t, runtime.GOOS == "linux", "no inodes to know files by")
	dir := t.TempDir()
	store := filepath.Join(t.TempDir(), "cache")
	c := reopen(t, store, Config{})
	c.index.settle = -time.Hour
	grow(t, dir, "a", "b/c", "b/d")
	first := hashTree(t, c, dir, TreeOptions{})
	if again := hashTree(t, c, dir, TreeOptions{}); again.Read != 0 || again.Digest != first.Digest || again.Bytes != first.Bytes {
		t.Errorf("again: %+v, first %+v", again, first)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = reopen(t, store, Config{})
	if again := hashTree(t, c, dir, TreeOptions{}); again.Read != 0 || again.Digest != first.Digest {
		t.Errorf("in the next process: %+v, first %+v", again, first)
	}
	// The same size, and the time put back.
	file := filepath.Join(dir, "b/c")
	fi, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("B/C"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	changed := hashTree(t, c, dir, TreeOptions{})
	if changed.Read != 1 || changed.Digest == first.Digest {
		t.Errorf("one changed: %+v, first %+v", changed, first)
	}
}

// TestTreeRacy: what was written just now is read again, for it could be written once
// more and look the same.
func TestTreeRacy(t *testing.T) {
	c, _ := openTest(t, Config{})
	dir := t.TempDir()
	grow(t, dir, "a", "b")
	future := time.Now().Add(time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "a"), future, future); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := hashTree(t, c, dir, TreeOptions{}); got.Read != 2 {
			t.Errorf("%+v, want 2 files read", got)
		}
	}
}

// TestTreeExclude: excluded paths are as if they had never been.
func TestTreeExclude(t *testing.T) {
	c := trusting(t)
	opt := TreeOptions{Exclude: []string{"out", "bin/x/tool", "bin/x/other", "src/gen.c", "src/gen.c/below", "lib"}}
	dir := t.TempDir()
	grow(t, dir, "src/main.c")
	want := hashTree(t, c, dir, TreeOptions{})
	same := func(when string) {
		t.Helper()
		if got := hashTree(t, c, dir, opt); got.Digest != want.Digest || got.Files != 1 {
			t.Errorf("%s: %+v, want %+v", when, got, want)
		}
	}
	same("nothing is there")
	grow(t, dir, "bin/x/")
	same("a parent is there")
	grow(t, dir, "bin/x/tool", "src/gen.c", "out/a/b", "out/c", "lib -> nowhere")
	same("outputs are there")
	grow(t, dir, "bin/x/third")
	if got := hashTree(t, c, dir, opt); got.Digest == want.Digest {
		t.Error("a file beside an excluded one was left out")
	}
	if err := os.RemoveAll(filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	grow(t, dir, "empty/")
	if got := hashTree(t, c, dir, opt); got.Digest == want.Digest {
		t.Error("an empty directory above no excluded one was left out")
	}
	if got := hashTree(t, c, t.TempDir(), opt); got.Digest != DigestOf(nil) {
		t.Errorf("empty root: %v", got)
	}
	for _, bad := range []string{"", ".", "..", "../x", "/x", "a//b", "a/", "a/./b", "a\xff", "a\x00", strings.Repeat("a/", maxDepth) + "a"} {
		if _, err := c.HashTree(t.Context(), openDir(t, dir), TreeOptions{Exclude: []string{bad}}); err == nil || !strings.Contains(err.Error(), "excluded path") {
			t.Errorf("exclude %q: %v", bad, err)
		}
	}
}

// refused is the error for a tree, which must name a path.
func refused(t *testing.T, c *Cache, dir string, opt TreeOptions, path, why string) error {
	t.Helper()
	testutil.CheckLeaks(t)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = c.HashTree(t.Context(), f, opt)
	var te *TreeError
	if !errors.As(err, &te) || te.Path != path || !strings.Contains(err.Error(), why) {
		t.Errorf("error %v; want one that says of %q that it %s", err, path, why)
	}
	return err
}

func TestTreeBounds(t *testing.T) {
	c := trusting(t)
	dir := t.TempDir()
	grow(t, dir, "a/b/c/d", "e")
	if err := os.Truncate(filepath.Join(dir, "e"), 1<<40); err != nil {
		t.Fatal(err)
	}
	refused(t, c, dir, TreeOptions{}, "e", "above 68719476736 bytes")
	if err := os.Truncate(filepath.Join(dir, "e"), 10); err != nil {
		t.Fatal(err)
	}
	hashTree(t, c, dir, TreeOptions{MaxDepth: 4, MaxEntries: 5, MaxBytes: 17})
	refused(t, c, dir, TreeOptions{MaxDepth: 3}, "a/b/c/d", "deeper than 3 names")
	refused(t, c, dir, TreeOptions{MaxEntries: 4}, "a/b/c", "more entries than the bound")
	if _, err := c.HashTree(t.Context(), openDir(t, dir), TreeOptions{MaxBytes: 16}); err == nil || !strings.Contains(err.Error(), "above 16 bytes") {
		t.Errorf("17 bytes of 16: %v", err)
	}
	for _, bad := range []TreeOptions{{MaxDepth: -1}, {MaxDepth: maxDepth + 1}, {MaxEntries: -1}, {MaxBytes: -1}} {
		if _, err := c.HashTree(t.Context(), openDir(t, dir), bad); err == nil || !strings.Contains(err.Error(), "bounds") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// TestTreeDeep: the deepest tree that is allowed, and one deeper.
func TestTreeDeep(t *testing.T) {
	c := trusting(t)
	dir := t.TempDir()
	grow(t, dir, strings.Repeat("d/", maxDepth-1)+"f")
	hashTree(t, c, dir, TreeOptions{})
	grow(t, dir, strings.Repeat("d/", maxDepth)+"f")
	refused(t, c, dir, TreeOptions{}, strings.Repeat("d/", maxDepth)+"f", "deeper")
}

func TestTreeNotADirectory(t *testing.T) {
	c := trusting(t)
	dir := t.TempDir()
	grow(t, dir, "f")
	if _, err := c.HashTree(t.Context(), openDir(t, filepath.Join(dir, "f")), TreeOptions{}); err == nil || !strings.Contains(err.Error(), "not an open directory") {
		t.Errorf("a file: %v", err)
	}
	f := openDir(t, dir)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.HashTree(t.Context(), f, TreeOptions{}); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a closed one: %v", err)
	}
}

func TestTreeCanceled(t *testing.T) {
	testutil.CheckLeaks(t)
	c := trusting(t)
	dir := t.TempDir()
	grow(t, dir, "a/b/c")
	ctx, cancel := context.WithCancel(t.Context())
	f := openDir(t, dir)
	defer f.Close()
	_, err := c.HashTree(ctx, f, TreeOptions{Credential: func(work func() error) error {
		cancel()
		return work()
	}})
	var te *TreeError
	if !errors.Is(err, context.Canceled) || errors.As(err, &te) {
		t.Errorf("%v, want canceled, and not the tree's fault", err)
	}
}

// TestTreeCredential: each goroutine that reads does so in Credential, and what one
// reader's rights showed is not known to another.
func TestTreeCredential(t *testing.T) {
	c := trusting(t)
	dir := t.TempDir()
	for i := range 100 {
		grow(t, dir, fmt.Sprint(i%10, "/", i))
	}
	var mu sync.Mutex
	ran, ended := 0, 0
	count := func(work func() error) error {
		mu.Lock()
		ran++
		mu.Unlock()
		err := work()
		mu.Lock()
		ended++
		mu.Unlock()
		return err
	}
	hashTree(t, c, dir, TreeOptions{Credential: count})
	if ran == 0 || ran != ended || ran > max(runtime.GOMAXPROCS(0), 2) {
		t.Errorf("%d called, %d ended", ran, ended)
	}
	if got := hashTree(t, c, dir, TreeOptions{Reader: 1000}); got.Read != 100 {
		t.Errorf("another reader got %+v, want 100 read", got)
	}
	want := errors.New("no such user")
	for _, credential := range []func(func() error) error{
		func(func() error) error { return want },
		func(work func() error) error { return errors.Join(work(), want) },
	} {
		if _, err := c.HashTree(t.Context(), openDir(t, dir), TreeOptions{Credential: credential}); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	if _, err := c.HashTree(t.Context(), openDir(t, dir), TreeOptions{Credential: func(func() error) error { return nil }}); err == nil {
		t.Error("a credential that did nothing was taken for one that reads")
	}
}

// TestTreeChangedMeanwhile: a file that is not at the end what it was at the
// beginning has no digest, and is not known.
func TestTreeChangedMeanwhile(t *testing.T) {
	c := trusting(t)
	was := info{inode: inode{1, 1}, size: 3, mtime: 5}
	for name, change := range map[string]func(*info){
		"size": func(i *info) { i.size++ }, "time": func(i *info) { i.mtime++ }, "mode": func(i *info) { i.mode ^= 0o100 },
		"inode": func(i *info) { i.inode.ino++ },
	} {
		is := was
		change(&is)
		w := &worker{hasher: newHasher(t.Context(), &c.index, TreeOptions{})}
		if err := w.sum(&dirent{}, strings.NewReader("abc"), was, func() (info, error) { return is, nil }); !errors.Is(err, ErrChanged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w := &worker{hasher: newHasher(t.Context(), &c.index, TreeOptions{})}
	for _, content := range []string{"", "ab", "abcd"} {
		if err := w.sum(&dirent{}, strings.NewReader(content), was, func() (info, error) { return was, nil }); !errors.Is(err, ErrChanged) {
			t.Errorf("%q for 3 bytes: %v", content, err)
		}
	}
	if err := w.sum(&dirent{}, failing{io.ErrUnexpectedEOF}, was, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("unreadable: %v", err)
	}
	if len(c.index.known) != 0 {
		t.Errorf("known: %v", c.index.known)
	}
}

// TestTreeSwapped: someone who puts a link in the place of a directory or file, again
// and again, gets what was there or an error, but nothing of what the link leads to.
func TestTreeSwapped(t *testing.T) {
	testutil.CheckLeaks(t)
	c := trusting(t)
	dir, outside := t.TempDir(), t.TempDir()
	grow(t, dir, "sub/f", "file")
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, make([]byte, 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	swap := func(name, target string) {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(outside, name)); err != nil {
			t.Error(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	back := func(name string) {
		if err := os.Rename(filepath.Join(outside, name), filepath.Join(outside, "moved")); err != nil {
			t.Error(err)
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
		if err := os.Rename(filepath.Join(outside, "moved"), filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			swap("sub", outside)
			back("sub")
			swap("file", secret)
			back("file")
		}
	})
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 300 {
		tree, err := c.HashTree(t.Context(), f, TreeOptions{})
		switch {
		case errors.Is(err, ErrChanged):
		case err != nil:
			t.Error(err)
		case tree.Bytes >= 1000:
			t.Errorf("something from outside is in the tree: %+v", tree)
		}
	}
	close(stop)
	wg.Wait()
}

func TestHashFile(t *testing.T) {
	c := trusting(t)
	dir := t.TempDir()
	grow(t, dir, "a", "run*")
	for _, want := range []Node{{Digest: DigestOf([]byte("a"))}, {Digest: DigestOf([]byte("run")), Executable: true}} {
		name := "a"
		if want.Executable {
			name = "run"
		}
		f := openDir(t, filepath.Join(dir, name))
		for range 2 {
			if got, _, err := c.HashFile(t.Context(), f, TreeOptions{}); err != nil || got != want {
				t.Errorf("%+v, %v; want %+v", got, err, want)
			}
		}
		if b, err := io.ReadAll(f); err != nil || string(b) != name {
			t.Errorf("the offset moved: read %q, %v", b, err)
		}
		if got, _, err := c.HashFile(t.Context(), f, TreeOptions{Reader: 9}); err != nil || got != want {
			t.Errorf("for another reader: %+v, %v", got, err)
		}
	}
	var te *TreeError
	if _, _, err := c.HashFile(t.Context(), openDir(t, dir), TreeOptions{}); !errors.As(err, &te) || te.Path != dir {
		t.Errorf("a directory: %v", err)
	}
	if _, _, err := c.HashFile(t.Context(), openDir(t, filepath.Join(dir, "run")), TreeOptions{MaxBytes: 2}); !errors.As(err, &te) {
		t.Errorf("3 bytes of 2: %v", err)
	}
	if _, _, err := c.HashFile(t.Context(), nil, TreeOptions{MaxBytes: -2}); err == nil {
		t.Error("bad options were taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.HashFile(ctx, openDir(t, filepath.Join(dir, "a")), TreeOptions{Reader: 8}); !errors.Is(err, context.Canceled) || errors.As(err, &te) && te == nil {
		t.Errorf("canceled: %v", err)
	}
}

// BenchmarkTree is the hashing of a tree: known, which every task pays for its work directory; and unknown.
func BenchmarkTree(b *testing.B) {
	for _, size := range []struct{ files, dirs int }{{10, 2}, {1000, 10}, {10_000, 100}, {10_000, 1}} {
		dir := b.TempDir()
		for i := range size.files {
			grow(b, dir, fmt.Sprintf("dir%03d/source_file_%05d.c", i%size.dirs, i))
		}
		for _, known := range []bool{true, false} {
			b.Run(fmt.Sprintf("known=%v/files=%d/dirs=%d", known, size.files, size.dirs), func(b *testing.B) {
				c := trusting(b)
				f := openDir(b, dir)
				if _, err := c.HashTree(b.Context(), f, TreeOptions{}); err != nil {
					b.Fatal(err)
				}
				n := uint32(0)
				for b.Loop() {
					if !known {
						n++ // to another reader nothing is
					}
					tree, err := c.HashTree(b.Context(), f, TreeOptions{Reader: n})
					if err != nil || known && tree.Read != 0 || !known && tree.Read != int64(size.files) {
						b.Fatal(tree, err)
					}
				}
			})
		}
	}
}
