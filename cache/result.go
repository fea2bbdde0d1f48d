package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
	"time"
)

const (
	// MaxRecord is the most bytes a result's record may have: what is larger
	// belongs into a blob.
	MaxRecord = 16 << 20
	// MaxResultBlobs is the most blobs a result may have.
	MaxResultBlobs = 1 << 20
	// maxEntry bounds a result's file.
	maxEntry = MaxRecord + MaxResultBlobs*entryBlob + 4096
	// entryBlob is the size of a digest in a result's file.
	entryBlob = sha256.Size + 8
	// entryMagic also is the version of the format.
	entryMagic = "sbxdres1"
)

// Result is the record stored for an action in a namespace, and the blobs it
// needs. It is an fs.ErrNotExist if there is none, or not all of its blobs are here
// and right; such a result is dropped. A result that is found counts as used, and
// so do its blobs.
func (c *Cache) Result(namespace string, action Digest) (record []byte, blobs []Digest, err error) {
	name, err := resultPath(namespace, action)
	if err != nil {
		return nil, nil, err
	}
	e, fi, err := c.readEntry(name, namespace, action)
	if errors.Is(err, errEntry) {
		err = errors.Join(fmt.Errorf("%w: %w", fs.ErrNotExist, err), c.drop(name, fi))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("result of %v: %w", action, err)
	}
	missing, err := c.Missing(e.blobs)
	if err != nil {
		return nil, nil, fmt.Errorf("result of %v: %w", action, err)
	}
	if len(missing) > 0 {
		err := errors.Join(fmt.Errorf("%w: %d blobs are gone, among them %v", fs.ErrNotExist, len(missing), missing[0]), c.drop(name, fi))
		return nil, nil, fmt.Errorf("result of %v: %w", action, err)
	}
	// Eviction of the result before this makes it absent; after, not possible.
	err = c.locked(false, func() error { return c.root.Chtimes(name, time.Time{}, now()) })
	if err != nil {
		return nil, nil, fmt.Errorf("result of %v: %w", action, err)
	}
	return e.record, e.blobs, nil
}

// PutResult stores what an action came to: a record, and the blobs without which
// it is worth nothing, all of which must be here. It replaces what was stored
// before. When it returns, the result and its blobs survive a crash of the machine. A namespace, 1 to 64 of a-z 0-9 and -, is a set of results that share
// their trust, such as those of one user.
func (c *Cache) PutResult(namespace string, action Digest, record []byte, blobs []Digest) error {
	name, err := resultPath(namespace, action)
	if err != nil {
		return err
	}
	if len(record) > MaxRecord || len(blobs) > MaxResultBlobs {
		return fmt.Errorf("result of %v: %d bytes and %d blobs, at most %d and %d may be", action, len(record), len(blobs), MaxRecord, MaxResultBlobs)
	}
	missing, err := c.Missing(blobs)
	if err != nil {
		return fmt.Errorf("result of %v: %w", action, err)
	}
	if len(missing) > 0 {
		return fmt.Errorf("result of %v: blob %v is not here, put it first: %w", action, missing[0], fs.ErrNotExist)
	}
	if err := c.sync(blobs); err != nil {
		return fmt.Errorf("result of %v: %w", action, explain(c.root, err))
	}
	if err := c.makeResultDir(path.Dir(name)); err != nil {
		return fmt.Errorf("result of %v: %w", action, explain(c.root, err))
	}
	b := encodeEntry(namespace, action, entry{record, blobs})
	err = c.locked(false, func() error {
		for _, d := range blobs {
			if err := c.use(d); err != nil {
				return err
			}
		}
		return c.writeFile(name, b)
	})
	if err != nil {
		return fmt.Errorf("result of %v: %w", action, err)
	}
	return nil
}

func resultPath(namespace string, action Digest) (string, error) {
	if n := len(namespace); n < 1 || n > 64 || strings.Trim(namespace, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return "", fmt.Errorf("namespace %.80q: want 1 to 64 of a-z, 0-9 and -", namespace)
	}
	if err := action.check(); err != nil {
		return "", err
	}
	return "ac/" + namespace + "/" + action.Hash[:2] + "/" + action.Hash + "_" + strconv.FormatInt(action.Size, 10), nil
}

// makeResultDir makes ac/<namespace>/ab. Its name and that above are on disk afterwards, also
// where somebody else made it, who may have been killed before that.
func (c *Cache) makeResultDir(dir string) error {
	c.mu.Lock()
	known := c.dirs[dir]
	c.mu.Unlock()
	if fi, err := c.root.Lstat(dir); known && err == nil && fi.IsDir() {
		return nil
	}
	above := path.Dir(dir)
	if err := errors.Join(c.mkdir(above), c.mkdir(dir)); err != nil {
		return err
	}
	if err := errors.Join(c.syncName("ac"), c.syncName(above)); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	makeRoom(c.dirs)
	c.dirs[dir] = true
	return nil
}

// drop removes a result, unless another took its place meanwhile.
func (c *Cache) drop(name string, old fs.FileInfo) error {
	return c.locked(true, func() error {
		fi, err := c.root.Lstat(name)
		if err != nil || !sameFile(fi, old) {
			return absent(err)
		}
		return c.root.Remove(name)
	})
}

// readEntry reads a result's file. The error is errEntry if it is damaged.
func (c *Cache) readEntry(name, namespace string, action Digest) (entry, fs.FileInfo, error) {
	f, err := c.root.Open(name)
	if err != nil {
		return entry{}, nil, err
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return entry{}, nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxEntry {
		return entry{}, fi, errEntry
	}
	b := make([]byte, fi.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return entry{}, fi, err
	}
	e, err := decodeEntry(b, namespace, action)
	return e, fi, err
}

// entry is what a result's file holds:
//
//	magic, SHA-256 of what follows,
//	action hash, action size, length of namespace, namespace,
//	number of blobs, (hash, size) of each, record
//
// Integers are of 64 bits, big end first. Action and namespace are there so that
// a file that was moved is not taken for another's.
type entry struct {
	record []byte
	blobs  []Digest
}

var errEntry = errors.New("stored result is damaged")

func encodeEntry(namespace string, action Digest, e entry) []byte {
	b := make([]byte, 0, len(entryMagic)+2*sha256.Size+3*8+len(namespace)+len(e.blobs)*entryBlob+len(e.record))
	b = append(b, entryMagic...)
	b = append(b, make([]byte, sha256.Size)...)
	b = appendDigest(b, action)
	b = binary.BigEndian.AppendUint64(b, uint64(len(namespace)))
	b = append(b, namespace...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(e.blobs)))
	for _, d := range e.blobs {
		b = appendDigest(b, d)
	}
	b = append(b, e.record...)
	sum := sha256.Sum256(b[len(entryMagic)+sha256.Size:])
	copy(b[len(entryMagic):], sum[:])
	return b
}

func decodeEntry(b []byte, namespace string, action Digest) (entry, error) {
	p := parser{b: b}
	magic, want := p.bytes(len(entryMagic)), p.bytes(sha256.Size)
	sum := sha256.Sum256(p.b)
	if string(magic) != entryMagic || !bytes.Equal(sum[:], want) {
		return entry{}, errEntry
	}
	if p.digest() != action || string(p.bytes(p.count(1))) != namespace {
		return entry{}, errEntry
	}
	n := p.count(entryBlob)
	e := entry{blobs: make([]Digest, n)}
	for i := range e.blobs {
		if e.blobs[i] = p.digest(); e.blobs[i].Size < 0 {
			return entry{}, errEntry
		}
	}
	if p.short {
		return entry{}, errEntry
	}
	e.record = p.b
	return e, nil
}

func appendDigest(b []byte, d Digest) []byte {
	sum := d.sum()
	return binary.BigEndian.AppendUint64(append(b, sum[:]...), uint64(d.Size))
}

// parser takes bytes from the front; when there are too few, short is set and
// all it gives is empty.
type parser struct {
	b     []byte
	short bool
}

func (p *parser) bytes(n int) []byte {
	if n > len(p.b) {
		p.short, p.b = true, nil
		return nil
	}
	b := p.b[:n]
	p.b = p.b[n:]
	return b
}

func (p *parser) uint64() uint64 {
	b := p.bytes(8)
	if b == nil {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// count is a number of things of the given size, of which there must be as many.
func (p *parser) count(size int) int {
	n := p.uint64()
	if n > math.MaxInt32 || int(n)*size > len(p.b) {
		p.short, p.b = true, nil
		return 0
	}
	return int(n)
}

func (p *parser) digest() Digest {
	sum := p.bytes(sha256.Size)
	if sum == nil {
		return Digest{}
	}
	return digest([sha256.Size]byte(sum), int64(p.uint64()))
}
