package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// openTest opens a cache of a test's own.
func openTest(t testing.TB, cfg Config) (*Cache, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "cache")
	return reopen(t, dir, cfg), dir
}

func reopen(t testing.TB, dir string, cfg Config) *Cache {
	t.Helper()
	c, err := Open(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			t.Error(err)
		}
	})
	return c
}

func put(t testing.TB, c *Cache, s string) Digest {
	t.Helper()
	d, err := c.PutBytes(t.Context(), []byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// flip changes one bit of a file in place.
func flip(t testing.TB, file string) {
	t.Helper()
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func noTempFiles(t testing.TB, dir string) {
	t.Helper()
	if fs, _ := filepath.Glob(filepath.Join(dir, "tmp", "*", "*")); len(fs) > 0 {
		t.Errorf("temporary files are left: %v", fs)
	}
}

// TestDigestConverts: callers convert digests of tasks, which cannot be imported
// here, by executor.Digest(d).
func TestDigestConverts(t *testing.T) {
	d := DigestOf([]byte("x"))
	if got := executor.Digest(d).String(); got != d.String() {
		t.Errorf("%q, want %q", got, d)
	}
}

func TestPutOpen(t *testing.T) {
	c, dir := openTest(t, Config{})
	for _, s := range []string{"", "hello", strings.Repeat("x", 3<<20)} {
		d, err := c.Put(t.Context(), strings.NewReader(s))
		if err != nil {
			t.Fatal(err)
		}
		if want := DigestOf([]byte(s)); d != want {
			t.Errorf("digest %v, want %v", d, want)
		}
		b, err := c.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(struct{ io.Reader }{b})
		if err != nil || string(got) != s {
			t.Errorf("read %d bytes, error %v; want %d", len(got), err, len(s))
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if again := put(t, c, s); again != d {
			t.Errorf("put again: %v, want %v", again, d)
		}
	}
	noTempFiles(t, dir)
}

func TestBlobReads(t *testing.T) {
	c, dir := openTest(t, Config{})
	b, err := c.Open(put(t, c, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p := make([]byte, 2)
	if _, err := b.ReadAt(p, 3); err != nil || string(p) != "lo" {
		t.Errorf("ReadAt gave %q, %v", p, err)
	}
	f, err := os.Create(filepath.Join(dir, "..", "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := b.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(f.Name()); err != nil || string(got) != "hello" {
		t.Errorf("copied %q, %v", got, err)
	}
}

func TestBytes(t *testing.T) {
	c, _ := openTest(t, Config{})
	d := put(t, c, "hello")
	if b, err := c.Bytes(d, 5); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := c.Bytes(d, 4); err == nil {
		t.Error("more than the limit was read")
	}
}

func TestBadDigestRefused(t *testing.T) {
	c, _ := openTest(t, Config{})
	for _, d := range []Digest{{}, {Hash: "../../etc/passwd"}, {Hash: strings.Repeat("A", 64)}, {Hash: strings.Repeat("a", 64), Size: -1}} {
		_, err := c.Open(d)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%v): %v, want it refused", d, err)
		}
		if _, err := c.Missing([]Digest{d}); err == nil {
			t.Errorf("Missing(%v) said nothing", d)
		}
		if err := c.Expect(t.Context(), d, strings.NewReader("x")); err == nil {
			t.Errorf("Expect(%v) said nothing", d)
		}
	}
}

func TestExpect(t *testing.T) {
	c, dir := openTest(t, Config{})
	d := DigestOf([]byte("hello"))
	for _, wrong := range []string{"", "hell", "jello", "hello!"} {
		if err := c.Expect(t.Context(), d, strings.NewReader(wrong)); err == nil {
			t.Errorf("%q was taken for hello", wrong)
		}
		if _, err := c.Open(DigestOf([]byte(wrong))); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q was stored: %v", wrong, err)
		}
	}
	noTempFiles(t, dir)
	if err := c.Expect(t.Context(), d, strings.NewReader("hello")); err != nil {
		t.Fatal(err)
	}
	if missing, err := c.Missing([]Digest{d}); err != nil || len(missing) != 0 {
		t.Errorf("missing %v, %v", missing, err)
	}
}

func TestMissing(t *testing.T) {
	c, _ := openTest(t, Config{})
	here, a, b := put(t, c, "here"), DigestOf([]byte("a")), DigestOf([]byte("b"))
	size := here
	size.Size++
	got, err := c.Missing([]Digest{b, here, a, b})
	if err != nil || !slices.Equal(got, []Digest{b, a}) {
		t.Errorf("missing %v, %v", got, err)
	}
	if got, err := c.Missing(nil); err != nil || len(got) != 0 {
		t.Errorf("missing %v of none, %v", got, err)
	}
}

// TestBitFlip: one wrong bit is noticed, whether the blob was read before by this
// process or not.
func TestBitFlip(t *testing.T) {
	uses := map[string]func(*Cache, Digest) error{
		"open": func(c *Cache, d Digest) error {
			_, err := c.Open(d)
			if !errors.Is(err, ErrCorrupt) {
				return errors.Join(errors.New("want ErrCorrupt"), err)
			}
			return err
		},
		"missing": func(c *Cache, d Digest) error {
			m, err := c.Missing([]Digest{d})
			if err == nil && len(m) == 1 {
				return fs.ErrNotExist
			}
			return err
		},
		"verify": func(c *Cache, d Digest) error {
			r, err := c.Verify(context.Background())
			if err == nil && slices.Equal(r.Corrupt, []Digest{d}) {
				return fs.ErrNotExist
			}
			return err
		},
	}
	for name, use := range uses {
		for _, known := range []bool{false, true} {
			var told []Digest
			cfg := Config{OnCorrupt: func(d Digest) { told = append(told, d) }}
			c, dir := openTest(t, cfg)
			d := put(t, c, "some bytes")
			if !known {
				c = reopen(t, dir, cfg)
			}
			flip(t, filepath.Join(dir, blobPath(d)))
			if err := use(c, d); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s, known %v: %v, want fs.ErrNotExist", name, known, err)
			}
			if want := []Digest{d}; name != "verify" && !slices.Equal(told, want) {
				t.Errorf("%s, known %v: told of %v, want %v", name, known, told, want)
			}
			if _, err := os.Lstat(filepath.Join(dir, blobPath(d))); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s, known %v: the damaged blob is still there: %v", name, known, err)
			}
			put(t, c, "some bytes")
			if _, err := c.Bytes(d, 100); err != nil {
				t.Errorf("%s, known %v: put again: %v", name, known, err)
			}
		}
	}
}

// TestFlipBeforePut: a put of what is there but damaged mends it.
func TestFlipBeforePut(t *testing.T) {
	c, dir := openTest(t, Config{})
	d := put(t, c, "some bytes")
	flip(t, filepath.Join(dir, blobPath(d)))
	put(t, c, "some bytes")
	if b, err := c.Bytes(d, 100); err != nil || string(b) != "some bytes" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestTruncatedAndReplaced(t *testing.T) {
	c, dir := openTest(t, Config{})
	d := put(t, c, "some bytes")
	file := filepath.Join(dir, blobPath(d))
	if err := os.Truncate(file, 3); err != nil {
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, 3); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Open(d); !errors.Is(err, ErrCorrupt) {
		t.Errorf("truncated: %v", err)
	}
	put(t, c, "some bytes")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("SOME BYTES"), 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Open(d); !errors.Is(err, ErrCorrupt) {
		t.Errorf("replaced: %v", err)
	}
}

func TestWriter(t *testing.T) {
	c, dir := openTest(t, Config{MaxBytes: 10})
	w, err := c.Create()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"a", "b"} {
		if _, err := io.WriteString(w, s); err != nil {
			t.Fatal(err)
		}
	}
	d, err := w.Commit()
	if err != nil || d != DigestOf([]byte("ab")) || w.Size() != 2 {
		t.Errorf("%v, %v", d, err)
	}
	w.Abort()
	if _, err := w.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second commit: %v", err)
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("write after commit: %v", err)
	}
	if w, err = c.Create(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 11)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("11 bytes of 10: %v", err)
	}
	if _, err := w.Commit(); !errors.Is(err, ErrTooLarge) {
		t.Errorf("commit of too much: %v", err)
	}
	if w, err = c.Create(); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	noTempFiles(t, dir)
}

// TestLargeBlob: in pieces of all sizes, with zeros in between, and whether or not the system is to forget it.
func TestLargeBlob(t *testing.T) {
	for _, pass := range []bool{false, true} {
		c, _ := openTest(t, Config{})
		w, err := c.Create()
		if err != nil {
			t.Fatal(err)
		}
		if pass {
			w.Pass()
		}
		sum := sha256.New()
		for i := 0; w.Size() < 5*passBytes/2; i++ {
			p := bytes.Repeat([]byte{byte(i % 7)}, []int{256 << 10, 100_001, 4096, 5}[i%4])
			sum.Write(p)
			if n, err := w.Write(p); n != len(p) || err != nil {
				t.Fatalf("wrote %d of %d: %v", n, len(p), err)
			}
			clear(p) // it is ours again
		}
		d, err := w.Commit()
		if err != nil || d != digest([sha256.Size]byte(sum.Sum(nil)), w.Size()) {
			t.Fatalf("committed as %v, %v", d, err)
		}
		c.distrust(d)
		b, err := c.Open(d)
		if err != nil {
			t.Fatalf("pass %v: %v", pass, err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestPutFails(t *testing.T) {
	c, dir := openTest(t, Config{})
	want := errors.New("the far end is gone")
	if _, err := c.Put(t.Context(), io.MultiReader(strings.NewReader("abc"), failing{want})); !errors.Is(err, want) {
		t.Errorf("%v, want %v", err, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Put(ctx, bytes.NewReader(make([]byte, 100))); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
	noTempFiles(t, dir)
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "no", "such"), Config{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no parent: %v", err)
	}
	if _, err := Open(t.TempDir(), Config{MaxBytes: -1}); err == nil {
		t.Error("a negative size was taken")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, Config{}); err == nil {
		t.Error("a file was taken for a directory")
	}
}

// TestSweep: what a dead process was writing goes at the next Open, what a living
// one is writing stays.
func TestSweep(t *testing.T) {
	c, dir := openTest(t, Config{})
	w, err := c.Create()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	dead := filepath.Join(dir, "tmp", "DEAD")
	if err := os.MkdirAll(filepath.Join(dead, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	reopen(t, dir, Config{})
	if _, err := os.Lstat(dead); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the leftover is still there: %v", err)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(); err != nil {
		t.Errorf("the living writer: %v", err)
	}
}

// TestVerifiedBounded: knowing blobs takes bounded memory.
func TestVerifiedBounded(t *testing.T) {
	c, dir := openTest(t, Config{})
	d := put(t, c, "x")
	fi, err := os.Lstat(filepath.Join(dir, blobPath(d)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxVerified + 10 {
		c.trust(DigestOf([]byte{byte(i), byte(i >> 8), byte(i >> 16)}), fi)
	}
	if n := len(c.verified); n > maxVerified {
		t.Errorf("%d are known", n)
	}
}

// TestTouchKeepsTrust: marking a blob as used does not cost reading it again.
func TestTouchKeepsTrust(t *testing.T) {
	c, dir := openTest(t, Config{})
	d := put(t, c, "x")
	file := filepath.Join(dir, blobPath(d))
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := stampOf(fi); !ok {
		t.Skip("no inodes to compare here")
	}
	c.trust(d, fi)
	if ok, err := c.keep(d); !ok || err != nil {
		t.Fatal(ok, err)
	}
	after, err := os.Lstat(file)
	if err != nil {
		t.Fatal(err)
	}
	if time.Since(after.ModTime()) > time.Minute {
		t.Error("the use was not noted")
	}
	if !c.trusted(d, after) {
		t.Error("the blob has to be read again")
	}
}

// What is in a directory that is no cache stays there.
func TestOpenRefusesWhatIsNoCache(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(dir, "tmp", "precious")
	if err := errors.Join(os.Mkdir(filepath.Dir(precious), 0o700), os.WriteFile(precious, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Config{}); err == nil || !strings.Contains(err.Error(), "no cache") {
		t.Fatalf("opened: %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	if es, err := os.ReadDir(dir); err != nil || len(es) != 1 {
		t.Errorf("%v, %v: something was made", es, err)
	}
}

// TestTagIsWrittenOnce: a process that is killed while it opens a cache does not make a strange directory of it.
func TestTagIsWrittenOnce(t *testing.T) {
	_, dir := openTest(t, Config{})
	tag := filepath.Join(dir, tagName)
	before, err := os.Stat(tag)
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(tag, old, old); err != nil {
		t.Fatal(err)
	}
	reopen(t, dir, Config{})
	if after, err := os.Stat(tag); err != nil || !os.SameFile(before, after) || !after.ModTime().Equal(old) {
		t.Errorf("it was written again: %v, %v", after, err)
	}
	// One that was cut short is completed, as long as there is nothing else.
	half := filepath.Join(t.TempDir(), "half")
	if err := errors.Join(os.Mkdir(half, 0o700), os.WriteFile(filepath.Join(half, tagName), []byte(tagText[:9]), 0o600), os.WriteFile(filepath.Join(half, "lock"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	reopen(t, half, Config{})
}

func TestPutFile(t *testing.T) {
	c, dir := openTest(t, Config{MaxBytes: 4 * wholeBytes})
	for _, size := range []int{0, 1, 5000, wholeBytes / 8, wholeBytes/8 + 1, wholeBytes, wholeBytes + 1, 3*wholeBytes - 7} {
		b := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		clear(b[size/3 : size/2]) // a hole, in the large ones
		for range 2 {
			d, err := c.PutFile(t.Context(), bytes.NewReader(append(b, "and more"...)), int64(size))
			if err != nil || d != DigestOf(b) {
				t.Errorf("%d bytes: %v, %v", size, d, err)
			}
		}
		c.distrust(DigestOf(b))
		if got, err := c.Bytes(DigestOf(b), 4*wholeBytes); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes came back as %d, %v", size, len(got), err)
		}
		if _, err := c.PutFile(t.Context(), bytes.NewReader(b), int64(size)+1); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes of %d: %v", size, size+1, err)
		}
	}
	if _, err := c.PutFile(t.Context(), bytes.NewReader(make([]byte, 5*wholeBytes)), 5*wholeBytes); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.PutFile(ctx, strings.NewReader("x"), 1); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	noTempFiles(t, dir)
}

// TestPutFileAtOnce: by many goroutines, some of them the same.
func TestPutFileAtOnce(t *testing.T) {
	c, dir := openTest(t, Config{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				b := bytes.Repeat(fmt.Appendf(nil, "%d %d;", i/2, j), 100*j+1)
				d, err := c.PutFile(t.Context(), bytes.NewReader(b), int64(len(b)))
				if err != nil || d != DigestOf(b) {
					t.Errorf("%v, %v", d, err)
				}
				if got, err := c.Bytes(d, int64(len(b))); err != nil || !bytes.Equal(got, b) {
					t.Errorf("%d bytes came back as %d, %v", len(b), len(got), err)
				}
			}
		})
	}
	wg.Wait()
	noTempFiles(t, dir)
}
