package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// Blob is an open blob, which was right when it was opened. It stays readable
// when the cache drops it. The caller must Close it.
type Blob struct {
	f      *os.File
	digest Digest
}

// Open opens a blob, having made sure that it is what d says. It is an
// fs.ErrNotExist if there is none, and ErrCorrupt if it was damaged.
func (c *Cache) Open(d Digest) (*Blob, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	f, err := c.openVerified(d)
	if err != nil {
		return nil, fmt.Errorf("open blob %v: %w", d, err)
	}
	if fi, err := f.Stat(); err == nil {
		c.touch(d, fi)
	}
	return &Blob{f: f, digest: d}, nil
}

// Digest is the blob's name.
func (b *Blob) Digest() Digest { return b.digest }

// File is the blob itself, for those who copy from file to file. It is open for
// reading, and closed by Close or by closing it. It must not leave this process.
func (b *Blob) File() *os.File { return b.f }

// Read reads on from where the last Read ended.
func (b *Blob) Read(p []byte) (int, error) { return b.f.Read(p) }

// ReadAt reads at an offset, independent of Read.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) { return b.f.ReadAt(p, off) }

// WriteTo writes what Read has not read yet to w; from file to file the kernel
// copies, and shares where the file system can.
func (b *Blob) WriteTo(w io.Writer) (int64, error) {
	if f, ok := w.(*os.File); ok {
		return f.ReadFrom(b.f)
	}
	return io.Copy(w, struct{ io.Reader }{b.f})
}

// Close ends the use of the blob.
func (b *Blob) Close() error { return b.f.Close() }

// Bytes is a blob in memory. One larger than limit is refused.
func (c *Cache) Bytes(d Digest, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("blob %v is larger than %d bytes: read it in pieces", d, limit)
	}
	b, err := c.Open(d)
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.Close() }()
	p := make([]byte, d.Size)
	if _, err := io.ReadFull(b, p); err != nil {
		return nil, fmt.Errorf("read blob %v: %w", d, err)
	}
	return p, nil
}

// Missing lists those of ds that are not here, each once, in their order. The
// others are verified and marked as used. Damaged ones are removed and missing.
func (c *Cache) Missing(ds []Digest) ([]Digest, error) {
	ds = unique(ds)
	here, unsure, err := c.look(ds)
	if err != nil {
		return nil, err
	}
	for _, i := range unsure {
		if here[i], err = c.keep(ds[i]); err != nil {
			return nil, fmt.Errorf("look for blob %v: %w", ds[i], err)
		}
	}
	var missing []Digest
	for i, d := range ds {
		if !here[i] {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// look says which blobs are here and known to be right, and marks them as used; and
// which have to be read to know.
func (c *Cache) look(ds []Digest) (here []bool, unsure []int, err error) {
	for _, d := range ds {
		if err := d.check(); err != nil {
			return nil, nil, err
		}
	}
	here = make([]bool, len(ds))
	err = c.locked(false, func() error {
		for i, d := range ds {
			fi, err := c.root.Lstat(blobPath(d))
			switch {
			case absent(err) != nil:
				return fmt.Errorf("look for blob %v: %w", d, err)
			case err != nil:
			case c.trusted(d, fi):
				c.touch(d, fi)
				here[i] = true
			default:
				unsure = append(unsure, i)
			}
		}
		return nil
	})
	return here, unsure, err
}

// keep reports whether a blob is here and right, and if so marks it as used.
func (c *Cache) keep(d Digest) (bool, error) {
	if err := c.check(d); err != nil {
		return false, absent(err)
	}
	err := c.locked(false, func() error { return c.use(d) })
	return err == nil, absent(err)
}

// use marks a blob as used. The caller holds the lock, so that it is not evicted
// between the look and the mark.
func (c *Cache) use(d Digest) error {
	fi, err := c.root.Lstat(blobPath(d))
	if err != nil {
		return err
	}
	if fi.Size() != d.Size {
		return fs.ErrNotExist // replaced since it was checked; the next check removes it
	}
	c.touch(d, fi)
	return nil
}

// absent is nil for an error that says no more than that.
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// touch notes a use in a blob's mtime, if the last is so long ago that GC might
// come; failing to is no harm but to its age.
func (c *Cache) touch(d Digest, fi fs.FileInfo) {
	if time.Since(fi.ModTime()) < c.cfg.Grace/(2*hurry) {
		return
	}
	trusted := c.trusted(d, fi)
	at := now()
	if c.root.Chtimes(blobPath(d), time.Time{}, at) != nil || !trusted {
		return
	}
	// A write in between would have set another time.
	if after, err := c.root.Lstat(blobPath(d)); err == nil && os.SameFile(fi, after) && after.ModTime().Equal(at) && after.Size() == fi.Size() {
		c.trust(d, after)
	}
}

// check is openVerified without keeping the blob open, nor opening one that is
// known.
func (c *Cache) check(d Digest) error {
	fi, err := c.root.Lstat(blobPath(d))
	if err != nil {
		return err
	}
	if c.trusted(d, fi) {
		return nil
	}
	f, err := c.openVerified(d)
	if err != nil {
		return err
	}
	return f.Close()
}

func (c *Cache) openVerified(d Digest) (*os.File, error) {
	// What is no file may wait for ever when it is opened.
	fi, err := c.root.Lstat(blobPath(d))
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, c.corrupt(d, c.root.RemoveAll(blobPath(d)))
	}
	f, err := c.root.Open(blobPath(d))
	if err != nil {
		return nil, err
	}
	if err := c.verify(d, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// corrupt is the error of a damaged blob that was removed, or was to be.
func (c *Cache) corrupt(d Digest, removed error) error {
	if c.cfg.OnCorrupt != nil {
		c.cfg.OnCorrupt(d)
	}
	return errors.Join(ErrCorrupt, removed)
}

// verify makes sure that f is what d says, and removes it if not.
func (c *Cache) verify(d Digest, f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if c.trusted(d, fi) {
		return nil
	}
	began := time.Now()
	ok, err := holds(context.Background(), f, fi, d)
	if err != nil {
		return err
	}
	if !ok {
		return c.corrupt(d, c.remove(d, fi))
	}
	after, err := f.Stat()
	if err != nil {
		return err
	}
	if sameStamp(fi, after) && settled(after, began) {
		c.trust(d, after)
	}
	return nil
}

// holds reports whether the file's content is what d says.
func holds(ctx context.Context, f *os.File, fi fs.FileInfo, d Digest) (bool, error) {
	if !fi.Mode().IsRegular() || fi.Size() != d.Size {
		return false, nil
	}
	h := sha256.New()
	// A failing disk is an error, not a wrong blob: it may be readable later.
	if _, err := io.Copy(h, reader{ctx, io.NewSectionReader(f, 0, d.Size)}); err != nil {
		return false, err
	}
	return [sha256.Size]byte(h.Sum(nil)) == d.sum(), nil
}

// remove removes a wrong blob, unless a right one took its place meanwhile.
func (c *Cache) remove(d Digest, wrong fs.FileInfo) error {
	c.distrust(d)
	return c.locked(true, func() error {
		fi, err := c.root.Lstat(blobPath(d))
		if err != nil || !sameFile(fi, wrong) {
			return absent(err)
		}
		return c.root.Remove(blobPath(d))
	})
}
