package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

const (
	// maxIndex bounds the files known, at some 150 bytes of memory each.
	maxIndex = 1 << 19
	// indexEntry is the size of one in the file.
	indexEntry = 6*8 + sha256.Size
	indexMagic = "sbxdidx2"
	// saveAfter is how many new files are worth a save before Close.
	saveAfter = 4096
)

// index knows the digests of files hashed before, for as long as they have the
// same inode, size, mtime and ctime, and those had settled when it was hashed. It
// only saves time: it may be lost, and what cannot be read is.
type index struct {
	root   *os.Root
	settle time.Duration
	load   sync.Once
	saving sync.WaitGroup

	mu     sync.RWMutex
	known  map[fileID]fileState // guarded by mu
	fresh  int                  // how many are not in the file; guarded by mu
	busy   bool                 // a save is running; guarded by mu
	closed bool                 // guarded by mu
}

// fileID is a file as one reader may see it: what was read with the rights of
// one user tells another nothing.
type fileID struct {
	inode
	reader uint32
}

type inode struct{ dev, ino uint64 }

type fileState struct {
	size, mtime, ctime int64 // times in nanoseconds
	sum                [sha256.Size]byte
}

func (x *index) init(root *os.Root) {
	x.root, x.settle = root, settle
	x.known = map[fileID]fileState{}
}

// loaded reads the file at the first use.
func (x *index) loaded() {
	x.load.Do(func() {
		// Unreadable is as good as empty; Close will say why saving fails.
		known, err := x.read()
		if err == nil {
			x.mu.Lock()
			x.known = known
			x.mu.Unlock()
		}
	})
}

// lookup is the digest of a file's content, if it is known.
func (x *index) lookup(id fileID, size, mtime, ctime int64) (sum [sha256.Size]byte, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s, ok := x.known[id]
	if !ok || s.size != size || s.mtime != mtime || s.ctime != ctime {
		return sum, false
	}
	return s.sum, true
}

// add notes the content of a file that was read beginning at the given time,
// unless it could be written now and look the same, or has no inode to be told by.
func (x *index) add(id fileID, s fileState, read time.Time) {
	if id.inode == (inode{}) || max(s.mtime, s.ctime)+int64(x.settle) >= read.UnixNano() {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.makeRoom()
	x.known[id] = s
	x.fresh++
}

// makeRoom forgets any eighth when the index is full.
func (x *index) makeRoom() {
	if len(x.known) < maxIndex {
		return
	}
	for id := range x.known {
		delete(x.known, id)
		if len(x.known) <= maxIndex*7/8 {
			return
		}
	}
}

// saveSoon saves in the background if much is new. close waits for it.
func (x *index) saveSoon() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.fresh < saveAfter || x.busy || x.closed {
		return
	}
	x.busy = true
	x.saving.Go(func() {
		_ = x.save() // what is not saved stays fresh, and close tries again
		x.mu.Lock()
		x.busy = false
		x.mu.Unlock()
	})
}

func (x *index) close() error {
	x.mu.Lock()
	x.closed = true
	fresh := x.fresh
	x.mu.Unlock()
	x.saving.Wait()
	if fresh == 0 {
		return nil
	}
	return x.save()
}

// save writes what is known by this and other processes.
func (x *index) save() (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("save the index: %w", explain(x.root, err))
		}
	}()
	lock, err := x.root.OpenFile("index.lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := flock(lock, true); err != nil {
		return err
	}
	others, err := x.read()
	if err != nil {
		others = nil // damaged: replaced by ours
	}
	b, fresh := x.merge(others)
	const tmp = "index.tmp" // ours by the lock
	if err := x.root.WriteFile(tmp, b, 0o600); err != nil {
		return errors.Join(err, x.root.Remove(tmp))
	}
	if err := x.root.Rename(tmp, "index"); err != nil {
		return err
	}
	x.mu.Lock()
	x.fresh -= fresh
	x.mu.Unlock()
	return nil
}

// merge takes over what others know, and encodes all. Of two states of a file
// the later is kept; the other could not match again anyway.
func (x *index) merge(others map[fileID]fileState) (b []byte, fresh int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, s := range others {
		if mine, ok := x.known[id]; len(x.known) < maxIndex && (!ok || mine.ctime < s.ctime) {
			x.known[id] = s
		}
	}
	return encodeIndex(x.known), x.fresh
}

func (x *index) read() (map[fileID]fileState, error) {
	f, err := x.root.Open("index")
	if errors.Is(err, fs.ErrNotExist) {
		return map[fileID]fileState{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	const most = int64(len(indexMagic) + sha256.Size + maxIndex*indexEntry)
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	return decodeIndex(b)
}

// encodeIndex is: magic, SHA-256 of what follows, entries of fixed size.
func encodeIndex(known map[fileID]fileState) []byte {
	const head = len(indexMagic) + sha256.Size
	b := make([]byte, head, head+len(known)*indexEntry)
	copy(b, indexMagic)
	for id, s := range known {
		for _, n := range [...]uint64{id.dev, id.ino, uint64(id.reader), uint64(s.size), uint64(s.mtime), uint64(s.ctime)} {
			b = binary.BigEndian.AppendUint64(b, n)
		}
		b = append(b, s.sum[:]...)
	}
	sum := sha256.Sum256(b[head:])
	copy(b[len(indexMagic):], sum[:])
	return b
}

var errIndex = errors.New("index is damaged")

func decodeIndex(b []byte) (map[fileID]fileState, error) {
	p := parser{b: b}
	magic, want := p.bytes(len(indexMagic)), p.bytes(sha256.Size)
	sum := sha256.Sum256(p.b)
	if string(magic) != indexMagic || !bytes.Equal(sum[:], want) || len(p.b)%indexEntry != 0 || len(p.b)/indexEntry > maxIndex {
		return nil, errIndex
	}
	known := make(map[fileID]fileState, len(p.b)/indexEntry)
	for len(p.b) > 0 {
		id := fileID{inode{p.uint64(), p.uint64()}, uint32(p.uint64())}
		s := fileState{size: int64(p.uint64()), mtime: int64(p.uint64()), ctime: int64(p.uint64())}
		s.sum = [sha256.Size]byte(p.bytes(sha256.Size))
		known[id] = s
	}
	return known, nil
}
