package cache

import (
	"crypto/sha256"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func openIndex(t testing.TB, dir string) *index {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := root.Close(); err != nil {
			t.Error(err)
		}
	})
	x := &index{}
	x.init(root)
	x.loaded()
	return x
}

func state(n int64) fileState {
	return fileState{size: n, mtime: n, ctime: n, sum: sha256.Sum256([]byte{byte(n)})}
}

func (x *index) has(id fileID, s fileState) bool {
	sum, ok := x.lookup(id, s.size, s.mtime, s.ctime)
	return ok && sum == s.sum
}

// TestIndexKeeps: what one process hashed, the next knows, and of two processes'
// states of a file the later.
func TestIndexKeeps(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	x, y := openIndex(t, dir), openIndex(t, dir)
	a, b := fileID{inode{1, 1}, 0}, fileID{inode{1, 2}, 7}
	x.add(a, state(1), now)
	y.add(a, state(2), now)
	y.add(b, state(3), now)
	for _, i := range []*index{x, y, x} {
		if err := i.close(); err != nil {
			t.Fatal(err)
		}
	}
	z := openIndex(t, dir)
	if !z.has(a, state(2)) || !z.has(b, state(3)) || z.has(a, state(1)) {
		t.Errorf("known: %v", z.known)
	}
}

// TestIndexRacy: a file written in the same tick as it was read is not known.
func TestIndexRacy(t *testing.T) {
	x := openIndex(t, t.TempDir())
	now := time.Now()
	for _, late := range []fileState{{mtime: now.UnixNano()}, {ctime: now.UnixNano()}, {mtime: now.Add(time.Hour).UnixNano()}} {
		x.add(fileID{inode: inode{1, 1}}, late, now)
		if x.has(fileID{inode: inode{1, 1}}, late) {
			t.Errorf("%v was taken for settled at %d", late, now.UnixNano())
		}
	}
}

func TestIndexBounded(t *testing.T) {
	x := openIndex(t, t.TempDir())
	now := time.Now()
	for i := range uint64(maxIndex + 100) {
		x.add(fileID{inode{1, i}, 0}, fileState{}, now)
	}
	if n := len(x.known); n > maxIndex {
		t.Errorf("%d files are known", n)
	}
	if !x.has(fileID{inode{1, maxIndex + 99}, 0}, fileState{}) {
		t.Error("the last file is not known")
	}
}

// TestIndexSavedSoon: much that is new is saved before the process ends.
func TestIndexSavedSoon(t *testing.T) {
	dir := t.TempDir()
	x := openIndex(t, dir)
	now := time.Now()
	for i := range uint64(saveAfter) {
		x.add(fileID{inode{1, i}, 0}, state(1), now)
	}
	x.saveSoon()
	x.saving.Wait()
	if n := len(openIndex(t, dir).known); n != saveAfter {
		t.Errorf("%d files are in the index, want %d", n, saveAfter)
	}
}

// TestIndexDamaged: a damaged index is as good as none, and is replaced.
func TestIndexDamaged(t *testing.T) {
	dir := t.TempDir()
	x := openIndex(t, dir)
	now := time.Now()
	x.add(fileID{inode{1, 1}, 0}, state(1), now)
	if err := x.save(); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(dir, "index"))
	y := openIndex(t, dir)
	if len(y.known) != 0 {
		t.Errorf("a damaged index was believed: %v", y.known)
	}
	y.add(fileID{inode{1, 2}, 0}, state(2), now)
	if err := y.close(); err != nil {
		t.Fatal(err)
	}
	if z := openIndex(t, dir); !z.has(fileID{inode{1, 2}, 0}, state(2)) {
		t.Error("the index was not replaced")
	}
}

// FuzzIndex: no bytes make the parser fail but by an error, and what it takes is
// what it would write.
func FuzzIndex(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte(indexMagic))
	f.Add(encodeIndex(map[fileID]fileState{{inode{1, 2}, 3}: state(3), {inode{4, 5}, 6}: state(6)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		// With its sum made right, or no input would get past it.
		if head := len(indexMagic) + sha256.Size; len(b) >= head {
			sum := sha256.Sum256(b[head:])
			copy(b[len(indexMagic):], sum[:])
		}
		known, err := decodeIndex(b)
		if err != nil {
			return
		}
		again, err := decodeIndex(encodeIndex(known))
		if err != nil || !maps.Equal(known, again) {
			t.Errorf("%v came back as %v, %v", known, again, err)
		}
	})
}
