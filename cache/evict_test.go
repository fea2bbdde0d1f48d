package cache

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// age makes a file look as if it had been used that many hours ago.
func age(t testing.TB, file string, hours int) {
	t.Helper()
	at := time.Now().Add(-time.Duration(hours) * time.Hour)
	if err := os.Chtimes(file, at, at); err != nil {
		t.Fatal(err)
	}
}

func exists(t testing.TB, file string) bool {
	t.Helper()
	_, err := os.Lstat(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// kilo is a blob of 1000 bytes.
func kilo(t testing.TB, c *Cache, fill string) Digest {
	t.Helper()
	return put(t, c, strings.Repeat(fill, 1000))
}

func gc(t testing.TB, c *Cache) GCReport {
	t.Helper()
	r, err := c.GC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestGC evicts in the order of last use, results before their blobs, and blobs that
// another result needs not at all.
func TestGC(t *testing.T) {
	const room = 3000 + 1000 // three blobs, and what results take
	c, dir := openTest(t, Config{MaxBytes: room})
	blob := func(d Digest) string { return filepath.Join(dir, blobPath(d)) }
	old, shared, young, loose, fresh := kilo(t, c, "o"), kilo(t, c, "s"), kilo(t, c, "y"), kilo(t, c, "l"), kilo(t, c, "f")
	action2 := DigestOf([]byte("2"))
	putResult(t, c, "u0", action, "old", old, shared)
	putResult(t, c, "u1", action2, "young", young, shared)
	oldResult, youngResult := resultFileOf(t, dir, "u0", action), resultFileOf(t, dir, "u1", action2)
	for file, hours := range map[string]int{
		blob(old): 9, blob(shared): 9, blob(young): 9, // a result's age counts, not theirs
		blob(loose): 8, oldResult: 7, youngResult: 6,
	} {
		age(t, file, hours)
	}
	r := gc(t, c)
	if r.Results != 1 || r.Blobs != 2 || r.Left >= room || r.Bytes <= 2000 {
		t.Errorf("%+v", r)
	}
	for file, want := range map[string]bool{
		blob(loose): false, oldResult: false, blob(old): false,
		youngResult: true, blob(shared): true, blob(young): true, blob(fresh): true,
	} {
		if exists(t, file) != want {
			t.Errorf("%s exists: %v, want %v", file, !want, want)
		}
	}
	wantResult(t, c, "u1", action2, "young")
	s, err := c.Stats()
	if err != nil || s.Blobs != 3 || s.Results != 1 || s.Bytes != r.Left || s.MaxBytes != room {
		t.Errorf("%+v, %v; GC says %+v", s, err, r)
	}
	if r := gc(t, c); r.Results+r.Blobs+r.Bytes != 0 {
		t.Errorf("again: %+v", r)
	}
}

// TestGCGrace: what was used lately stays, however full the cache is.
func TestGCGrace(t *testing.T) {
	c, dir := openTest(t, Config{MaxBytes: 1500})
	a, b := kilo(t, c, "a"), kilo(t, c, "b")
	putResult(t, c, "u0", action, "record", a)
	if r := gc(t, c); r.Blobs+r.Results != 0 || r.Left < 2000 {
		t.Errorf("%+v", r)
	}
	// A use counts as a write does.
	for _, d := range []Digest{a, b} {
		age(t, filepath.Join(dir, blobPath(d)), 5)
	}
	age(t, resultFileOf(t, dir, "u0", action), 5)
	wantResult(t, c, "u0", action, "record")
	if r := gc(t, c); r.Blobs != 1 || r.Results != 0 {
		t.Errorf("%+v", r)
	}
	if missing, err := c.Missing([]Digest{a, b}); err != nil || len(missing) != 1 || missing[0] != b {
		t.Errorf("missing %v, %v", missing, err)
	}
}

// TestGCResultsCount: many results without blobs do not fill the disk.
func TestGCResultsCount(t *testing.T) {
	c, _ := openTest(t, Config{MaxBytes: 10_000, Grace: -1})
	for i := range byte(20) {
		putResult(t, c, "u0", DigestOf([]byte{i}), strings.Repeat("r", 1000))
	}
	if r := gc(t, c); r.Results < 10 || r.Left >= 10_000 {
		t.Errorf("%+v", r)
	}
}

// TestGCUsedMeanwhile: what is used between the look and the deletion stays.
func TestGCUsedMeanwhile(t *testing.T) {
	c, dir := openTest(t, Config{MaxBytes: 1000, Grace: time.Hour})
	d := kilo(t, c, "a")
	putResult(t, c, "u0", action, "record", d)
	age(t, filepath.Join(dir, blobPath(d)), 5)
	age(t, resultFileOf(t, dir, "u0", action), 5)
	s := &sweeper{c: c, blobs: map[blobID]*blobUse{}}
	if err := errors.Join(s.scan(t.Context()), s.order(t.Context())); err != nil {
		t.Fatal(err)
	}
	wantResult(t, c, "u0", action, "record")
	if err := s.evict(t.Context()); err != nil || s.report.Blobs+s.report.Results != 0 {
		t.Errorf("%+v, %v", s.report, err)
	}
	wantResult(t, c, "u0", action, "record")
}

// TestGCDamagedResult: a result that cannot be read holds no blobs back.
func TestGCDamagedResult(t *testing.T) {
	c, dir := openTest(t, Config{MaxBytes: 1000, Grace: -1})
	putResult(t, c, "u0", action, "record", kilo(t, c, "a"))
	flip(t, resultFileOf(t, dir, "u0", action))
	gc(t, c)
	if s, err := c.Stats(); err != nil || s.Blobs+s.Results+s.Bytes != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestGCCanceled(t *testing.T) {
	c, dir := openTest(t, Config{MaxBytes: 1000, Grace: -1})
	kilo(t, c, "a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.GC(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
	// While another process collects, too.
	other := reopen(t, dir, Config{})
	unlock, err := other.lockGC(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := c.GC(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want canceled", err)
	}
}

// TestStrangers: what is not the cache's is left alone and not counted.
func TestStrangers(t *testing.T) {
	c, dir := openTest(t, Config{MaxBytes: 1000, Grace: -1})
	kilo(t, c, "a")
	hash := DigestOf([]byte("x")).Hash
	strangers := []string{"cas/00/README", "cas/00/" + hash, "cas/ff/sub/x", "ac/README", "ac/u0/README", "ac/u0/00/" + hash + "_1", "ac/UPPER/" + hash[:2] + "/" + hash + "_1", "ac/u0/" + hash[:2] + "/" + hash + "_+1"}
	grow(t, dir, strangers...)
	if s, err := c.Stats(); err != nil || s.Blobs != 1 || s.Results != 0 || s.Bytes != 1000 {
		t.Errorf("%+v, %v", s, err)
	}
	gc(t, c)
	if _, err := c.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	for _, s := range strangers {
		if !exists(t, filepath.Join(dir, s)) {
			t.Errorf("%s is gone", s)
		}
	}
}

// TestGCHurries: at twice its size the cache keeps only what was used just now.
func TestGCHurries(t *testing.T) {
	for blobs, left := range map[int]int{19: 19, 40: 9} {
		c, dir := openTest(t, Config{MaxBytes: 10_000, Grace: time.Hour})
		for i := range blobs {
			d, err := c.PutBytes(t.Context(), bytes.Repeat([]byte{byte(i), 1}, 500))
			if err != nil {
				t.Fatal(err)
			}
			at := time.Now().Add(-10 * time.Minute)
			if i == 0 {
				at = time.Now()
			}
			if err := os.Chtimes(filepath.Join(dir, blobPath(d)), at, at); err != nil {
				t.Fatal(err)
			}
		}
		r, err := c.GC(t.Context())
		if err != nil || r.Left != int64(left)*1000 {
			t.Errorf("of %d blobs: %+v, %v; want %d left", blobs, r, err, left)
		}
		if ok, err := c.keep(DigestOf(bytes.Repeat([]byte{0, 1}, 500))); !ok || err != nil {
			t.Errorf("of %d blobs the new one is gone: %v", blobs, err)
		}
	}
}
