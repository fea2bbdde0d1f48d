package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var action = DigestOf([]byte("action"))

func putResult(t testing.TB, c *Cache, ns string, action Digest, record string, blobs ...Digest) {
	t.Helper()
	if err := c.PutResult(ns, action, []byte(record), blobs); err != nil {
		t.Fatal(err)
	}
}

// wantResult takes "" for none.
func wantResult(t testing.TB, c *Cache, ns string, action Digest, want string) {
	t.Helper()
	record, _, err := c.Result(ns, action)
	switch {
	case want == "" && !errors.Is(err, fs.ErrNotExist):
		t.Errorf("result %q, error %v; want none", record, err)
	case want != "" && (err != nil || string(record) != want):
		t.Errorf("result %q, error %v; want %q", record, err, want)
	}
}

func resultFileOf(t testing.TB, dir, ns string, action Digest) string {
	t.Helper()
	name, err := resultPath(ns, action)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

func TestResult(t *testing.T) {
	c, dir := openTest(t, Config{})
	wantResult(t, c, "u0", action, "")
	a, b := put(t, c, "a"), put(t, c, "b")
	putResult(t, c, "u0", action, "record", a, b, a)
	record, blobs, err := c.Result("u0", action)
	if err != nil || string(record) != "record" || !slices.Equal(blobs, []Digest{a, b, a}) {
		t.Errorf("%q, %v, %v", record, blobs, err)
	}
	putResult(t, c, "u0", action, "another")
	wantResult(t, c, "u0", action, "another")
	wantResult(t, reopen(t, dir, Config{}), "u0", action, "another")
	// A result is one user's alone, and one action's.
	wantResult(t, c, "u1", action, "")
	wantResult(t, c, "u0", Digest{action.Hash, action.Size + 1}, "")
	noTempFiles(t, dir)
}

// TestResultIncomplete: without one of its blobs, a result is none, and is gone.
func TestResultIncomplete(t *testing.T) {
	for name, harm := range map[string]func(file string) error{
		"removed":   os.Remove,
		"flipped":   func(file string) error { flip(t, file); return nil },
		"truncated": func(file string) error { return os.WriteFile(file, nil, 0) },
	} {
		for _, known := range []bool{false, true} {
			c, dir := openTest(t, Config{})
			a, b := put(t, c, "some bytes"), put(t, c, "others")
			putResult(t, c, "u0", action, "record", a, b)
			if !known {
				c = reopen(t, dir, Config{})
			}
			file := filepath.Join(dir, blobPath(b))
			if err := os.Chmod(file, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := harm(file); err != nil {
				t.Fatal(err)
			}
			wantResult(t, c, "u0", action, "")
			if _, err := os.Lstat(resultFileOf(t, dir, "u0", action)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s, known %v: the result is still there: %v", name, known, err)
			}
			put(t, c, "others")
			putResult(t, c, "u0", action, "again", a, b)
			wantResult(t, c, "u0", action, "again")
		}
	}
}

// TestResultDamaged: a result's own file is not believed either, nor when it is moved.
func TestResultDamaged(t *testing.T) {
	for name, harm := range map[string]func(dir, file string) error{
		"flipped":   func(_, file string) error { flip(t, file); return nil },
		"truncated": func(_, file string) error { return os.Truncate(file, 20) },
		"empty":     func(_, file string) error { return os.Truncate(file, 0) },
		"huge":      func(_, file string) error { return os.Truncate(file, maxEntry+1) },
		"another action's": func(dir, file string) error {
			return os.Rename(resultFileOf(t, dir, "u0", DigestOf([]byte("other"))), file)
		},
		"another user's": func(dir, file string) error { return os.Rename(resultFileOf(t, dir, "u1", action), file) },
	} {
		c, dir := openTest(t, Config{})
		putResult(t, c, "u0", action, "record")
		putResult(t, c, "u0", DigestOf([]byte("other")), "other")
		putResult(t, c, "u1", action, "u1's")
		file := resultFileOf(t, dir, "u0", action)
		if err := harm(dir, file); err != nil {
			t.Fatal(name, err)
		}
		wantResult(t, c, "u0", action, "")
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the result is still there: %v", name, err)
		}
	}
}

func TestPutResultRefuses(t *testing.T) {
	c, _ := openTest(t, Config{})
	if err := c.PutResult("u0", action, nil, []Digest{DigestOf([]byte("absent"))}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a blob that is not here: %v", err)
	}
	if err := c.PutResult("u0", action, make([]byte, MaxRecord+1), nil); err == nil {
		t.Error("a record that is too large was taken")
	}
	if err := c.PutResult("u0", action, nil, make([]Digest, MaxResultBlobs+1)); err == nil {
		t.Error("too many blobs were taken")
	}
	for _, ns := range []string{"", ".", "..", "a/b", "A", "a\x00", "a.b", strings.Repeat("a", 65)} {
		if err := c.PutResult(ns, action, nil, nil); err == nil {
			t.Errorf("namespace %q was taken", ns)
		}
		if _, _, err := c.Result(ns, action); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("namespace %q: %v, want it refused", ns, err)
		}
	}
	for _, d := range []Digest{{}, {Hash: "../../x"}, {Hash: action.Hash, Size: -1}} {
		if err := c.PutResult("u0", d, nil, nil); err == nil {
			t.Errorf("action %v was taken", d)
		}
		if err := c.PutResult("u0", action, nil, []Digest{d}); err == nil {
			t.Errorf("blob %v was taken", d)
		}
	}
}

// TestVerify finds all that is wrong at once.
func TestVerify(t *testing.T) {
	c, dir := openTest(t, Config{})
	good, bad := put(t, c, "good"), put(t, c, "bad")
	putResult(t, c, "u0", action, "stays", good)
	putResult(t, c, "u0", DigestOf([]byte("2")), "lacks a blob", good, bad)
	putResult(t, c, "u0", DigestOf([]byte("3")), "damaged")
	flip(t, filepath.Join(dir, blobPath(bad)))
	flip(t, resultFileOf(t, dir, "u0", DigestOf([]byte("3"))))
	r, err := c.Verify(t.Context())
	if err != nil || r.Blobs != 2 || r.Bytes != 7 || r.CorruptBlobs != 1 || !slices.Equal(r.Corrupt, []Digest{bad}) || r.Results != 3 || r.DroppedResults != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	wantResult(t, c, "u0", action, "stays")
	if r, err = c.Verify(t.Context()); err != nil || r.CorruptBlobs != 0 || r.Results != 1 || r.DroppedResults != 0 {
		t.Errorf("again: %+v, %v", r, err)
	}
}

// FuzzEntry: no bytes make the parser fail but by an error, and what it takes is what it
// would write.
func FuzzEntry(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte(entryMagic))
	f.Add(encodeEntry("u0", action, entry{[]byte("record"), []Digest{DigestOf(nil), action}}))
	f.Add(encodeEntry("u0", action, entry{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		// With its sum made right, or no input would get past it.
		if head := len(entryMagic) + sha256.Size; len(b) >= head {
			sum := sha256.Sum256(b[head:])
			copy(b[len(entryMagic):], sum[:])
		}
		e, err := decodeEntry(b, "u0", action)
		if err != nil {
			return
		}
		if again := encodeEntry("u0", action, e); !bytes.Equal(again, b) {
			t.Errorf("%q came back as %q", b, again)
		}
	})
}

// FuzzDigest: what is taken for a digest is a safe name, and the only one of its bytes.
func FuzzDigest(f *testing.F) {
	f.Add(action.Hash, int64(1))
	f.Add("../../etc/passwd", int64(0))
	f.Fuzz(func(t *testing.T, hash string, size int64) {
		d := Digest{hash, size}
		if d.check() == nil && (digest(d.sum(), size) != d || !filepath.IsLocal(blobPath(d)) || strings.Count(blobPath(d), "/") != 2) {
			t.Errorf("%v", d)
		}
	})
}

// TestResultOfManyBlobs: they are synced in another way than few, and found in the same.
func TestResultOfManyBlobs(t *testing.T) {
	c, dir := openTest(t, Config{})
	var ds []Digest
	for i := range manySyncs + 10 {
		ds = append(ds, put(t, c, fmt.Sprint(i)))
	}
	putResult(t, c, "u0", action, "record", ds...)
	for _, c := range []*Cache{c, reopen(t, dir, Config{})} {
		if record, blobs, err := c.Result("u0", action); err != nil || string(record) != "record" || !slices.Equal(blobs, ds) {
			t.Errorf("%q, %d blobs, %v", record, len(blobs), err)
		}
	}
	if n := len(c.synced); n != len(ds) {
		t.Errorf("%d of %d blobs are known to be synced", n, len(ds))
	}
}

// BenchmarkResult is a lookup that hits, which looks for each blob; and one that misses.
func BenchmarkResult(b *testing.B) {
	for _, blobs := range []int{0, 3, 100, 1000, 10_000} {
		b.Run(fmt.Sprintf("hit/blobs=%d", blobs), func(b *testing.B) {
			c, _ := openTest(b, Config{})
			var ds []Digest
			for i := range blobs {
				ds = append(ds, put(b, c, fmt.Sprintf("%1000d", i)))
			}
			putResult(b, c, "u0", action, strings.Repeat("r", 1000), ds...)
			for b.Loop() {
				if _, _, err := c.Result("u0", action); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("miss", func(b *testing.B) {
		c, _ := openTest(b, Config{})
		for b.Loop() {
			if _, _, err := c.Result("u0", action); !errors.Is(err, fs.ErrNotExist) {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkPutResult is the storing of new blobs of 1 KiB and a result that needs them, on disk at the end.
func BenchmarkPutResult(b *testing.B) {
	for _, blobs := range []int{0, 3, 100, 1000} {
		b.Run(fmt.Sprintf("blobs=%d", blobs), func(b *testing.B) {
			c, _ := openTest(b, Config{})
			n := 0
			for b.Loop() {
				var ds []Digest
				for range blobs {
					n++
					ds = append(ds, put(b, c, fmt.Sprintf("%1024d", n)))
				}
				n++
				putResult(b, c, "u0", DigestOf(fmt.Append(nil, n)), "record", ds...)
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	_, dir := openTest(b, Config{})
	for b.Loop() {
		c, err := Open(dir, Config{})
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
