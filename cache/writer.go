package cache

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// ErrTooLarge says that a blob is larger than the whole cache may be.
var ErrTooLarge = errors.New("blob is larger than the cache may be: raise the cache's size")

// Writer takes the bytes of a blob whose digest is known when they end. It must
// be ended by Commit or Abort, and is for one goroutine at a time.
type Writer struct {
	c     *Cache
	f     *os.File // nil once ended
	name  string
	hash  hash.Hash
	size  int64
	hole  bool    // what was written last was left out
	known *Digest // of all that is to be written, which then need not be hashed
	pass  bool    // see Pass
	past  int64   // of a passing blob, what the disk was asked to take
	err   error   // the first, which Commit repeats
}

// Create begins a blob.
func (c *Cache) Create() (*Writer, error) {
	name := path.Join(c.own, randomName())
	f, err := c.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return nil, fmt.Errorf("begin a blob: %w", explain(c.root, err))
	}
	return &Writer{c: c, f: f, name: name, hash: sha256.New()}, nil
}

// passBytes is how much of a passing blob the system may hold in memory before it is to write that much.
const passBytes = 8 << 20

// Pass says that the blob, if it is large, is likelier to be evicted than to be read again, and so is not to take the
// system's memory from files that are used: of its bytes but the latest few megabytes are held on disk alone.
func (w *Writer) Pass() { w.pass = true }

// splitBytes is from which size on a piece is hashed while it is written: each takes about as long.
const splitBytes = 64 << 10

// Write adds p to the blob. After an error the blob cannot be committed.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if w.f == nil {
		return 0, fs.ErrClosed
	}
	if w.size+int64(len(p)) > w.c.MaxBytes() {
		w.err = fmt.Errorf("%w (%d bytes)", ErrTooLarge, w.c.MaxBytes())
		return 0, w.err
	}
	var hashed sync.WaitGroup
	switch {
	case w.known != nil:
	case len(p) < splitBytes:
		w.hash.Write(p)
	default:
		hashed.Go(func() { w.hash.Write(p) })
	}
	n, err := w.write(p)
	hashed.Wait()
	w.size += int64(n)
	if w.pass && w.size-w.past >= passBytes {
		writeBehind(w.f, w.past, w.size)
		w.past = w.size
	}
	if err != nil {
		w.err = fmt.Errorf("write a blob: %w", explain(w.c.root, err))
	}
	return n, w.err
}

// holeBytes is how much has to be zeros to be left out, but at the end of a piece.
const holeBytes = 32 << 10

// write writes p but for its holes.
func (w *Writer) write(p []byte) (done int, err error) {
	for done < len(p) && err == nil {
		n := beforeHole(p[done:])
		if w.hole = n == 0; w.hole {
			done += min(holeBytes, len(p)-done)
			continue
		}
		n, err = w.f.WriteAt(p[done:done+n], w.size+int64(done))
		done += n
	}
	return done, err
}

func beforeHole(p []byte) (n int) {
	for n < len(p) {
		block := p[n:min(n+holeBytes, len(p))]
		if isHole(block) {
			break
		}
		n += len(block)
	}
	return n
}

// isHole tells whether p is zeros enough to be left out of a file, which reads the same then.
func isHole(p []byte) bool {
	const block = 4096
	return len(p) >= block && p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

// Size is the number of bytes written so far.
func (w *Writer) Size() int64 { return w.size }

// Commit ends the blob and gives it its name. It survives a crash of the machine from
// when a result that needs it is put.
func (w *Writer) Commit() (Digest, error) { return w.commit(nil) }

// commit is Commit of what must be want, if given.
func (w *Writer) commit(want *Digest) (Digest, error) {
	if w.f == nil {
		return Digest{}, fs.ErrClosed
	}
	defer w.Abort()
	if w.err != nil {
		return Digest{}, w.err
	}
	var d Digest
	if w.known != nil {
		d = *w.known
	} else {
		d = digest([sha256.Size]byte(w.hash.Sum(nil)), w.size)
	}
	if want != nil && d != *want {
		return Digest{}, fmt.Errorf("blob said to be %v is %v: nothing is stored", *want, d)
	}
	ok, err := w.c.keep(d)
	if !ok && err == nil && w.hole {
		err = w.f.Truncate(w.size)
	}
	if !ok && err == nil {
		err = w.store(d)
	}
	if err != nil {
		return Digest{}, fmt.Errorf("store blob %v: %w", d, explain(w.c.root, err))
	}
	return d, nil
}

func (w *Writer) store(d Digest) error {
	// A time of our own choosing: a later write sets another, however coarse the
	// kernel's clock is.
	if err := w.c.root.Chtimes(w.name, time.Time{}, now()); err != nil {
		return err
	}
	err := w.c.locked(false, func() error { return w.c.root.Rename(w.name, blobPath(d)) })
	if err != nil {
		return err
	}
	w.name = ""
	w.c.distrust(d) // it may have been known before it was evicted
	if fi, err := w.f.Stat(); err == nil {
		w.c.trust(d, fi)
	}
	return nil
}

// Abort ends the blob without storing it. After Commit it does nothing.
func (w *Writer) Abort() {
	if w.f == nil {
		return
	}
	_ = w.f.Close()
	if w.name != "" {
		_ = w.c.root.Remove(w.name)
	}
	w.f = nil
}

// Put stores what r holds, as a Writer does.
func (c *Cache) Put(ctx context.Context, r io.Reader) (Digest, error) {
	return c.put(ctx, nil, r)
}

// PutBytes is Put of b.
func (c *Cache) PutBytes(ctx context.Context, b []byte) (Digest, error) {
	if err := ctx.Err(); err != nil {
		return Digest{}, fmt.Errorf("put a blob: %w", err)
	}
	return c.putWhole(b)
}

// Expect is Put of what must have the digest d; if it has another, or more bytes,
// nothing is stored.
func (c *Cache) Expect(ctx context.Context, d Digest, r io.Reader) error {
	if err := d.check(); err != nil {
		return err
	}
	_, err := c.put(ctx, &d, r)
	return err
}

// wholeBytes is up to which size a file is in memory as a whole while it is put. Larger ones are read by as much.
const wholeBytes = 256 << 10

// buffers are for files as a whole, smallBuffers for most of them: as many may be put at once as there are tasks that end.
var (
	buffers      = sync.Pool{New: func() any { return new(make([]byte, wholeBytes)) }}
	smallBuffers = sync.Pool{New: func() any { return new(make([]byte, wholeBytes/8)) }}
)

// bufferFor is for a file of that size. It is given back by done.
func bufferFor(size int64) (buffer []byte, done func()) {
	pool := &buffers
	if size <= wholeBytes/8 {
		pool = &smallBuffers
	}
	b := pool.Get().(*[]byte)
	return *b, func() { pool.Put(b) }
}

// shorter is the error of a file that ended too early.
func shorter(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// PutFile is Put of the first size bytes of f, whose offset it neither uses nor changes; fewer are an
// io.ErrUnexpectedEOF. A file of up to 256 KiB that is here already is not written.
func (c *Cache) PutFile(ctx context.Context, f io.ReaderAt, size int64) (Digest, error) {
	if size > c.MaxBytes() {
		return Digest{}, fmt.Errorf("%w (%d bytes)", ErrTooLarge, c.MaxBytes())
	}
	buffer, done := bufferFor(size)
	defer done()
	var w *Writer
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return Digest{}, fmt.Errorf("put a file: %w", err)
		}
		p := buffer[:min(size-at, wholeBytes)]
		if n, err := f.ReadAt(p, at); n < len(p) {
			return Digest{}, fmt.Errorf("put a file: %w", shorter(err))
		}
		if len(p) == int(size) {
			return c.putWhole(p)
		}
		if w == nil {
			var err error
			if w, err = c.Create(); err != nil {
				return Digest{}, err
			}
			defer w.Abort()
		}
		if _, err := w.Write(p); err != nil {
			return Digest{}, err
		}
		if at += int64(len(p)); at == size {
			return w.Commit()
		}
	}
}

// putWhole hashes p first, and writes it if it is not here.
func (c *Cache) putWhole(p []byte) (Digest, error) {
	d := DigestOf(p)
	if ok, err := c.keep(d); ok && err == nil {
		return d, nil
	}
	w, err := c.Create()
	if err != nil {
		return Digest{}, err
	}
	defer w.Abort()
	w.known = &d
	if _, err := w.Write(p); err != nil {
		return Digest{}, err
	}
	return w.Commit()
}

func (c *Cache) put(ctx context.Context, want *Digest, r io.Reader) (Digest, error) {
	w, err := c.Create()
	if err != nil {
		return Digest{}, err
	}
	defer w.Abort()
	if want != nil {
		if want.Size > c.MaxBytes() {
			return Digest{}, fmt.Errorf("%w (%d bytes)", ErrTooLarge, c.MaxBytes())
		}
		r = io.LimitReader(r, want.Size+1)
	}
	// The Writer's own type is hidden, lest it grow a ReadFrom that forgets ctx.
	if _, err := io.Copy(w, reader{ctx, r}); err != nil {
		return Digest{}, fmt.Errorf("put a blob: %w", err)
	}
	return w.commit(want)
}

// writeFile puts a file in place as a whole, and on disk when it returns.
func (c *Cache) writeFile(name string, b []byte) error {
	tmp := path.Join(c.own, randomName())
	f, err := c.root.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return explain(c.root, err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = c.root.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(explain(c.root, err), c.root.Remove(tmp))
	}
	return c.syncName(path.Dir(name))
}

// explain says what to do where an error does not.
func explain(root *os.Root, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("the file system of the cache %s is full, free space there or lower the cache's size and collect garbage: %w", root.Name(), err)
	}
	return err
}

func blobPath(d Digest) string { return "cas/" + d.Hash[:2] + "/" + d.Hash }

func randomName() string { return rand.Text() }

// now is the time with nanoseconds that no kernel clock tick has.
func now() time.Time {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails
	return time.Now().Truncate(time.Millisecond).Add(time.Duration(int(b[0])<<8 | int(b[1])))
}

// TempDir makes an empty directory for what is perhaps to be put into the cache, and returns its absolute path. It is
// removed by whoever has done with it, at the latest by Close; or by another process's Open, if this one was killed.
func (c *Cache) TempDir() (string, error) {
	name := c.own + "/" + randomName()
	if err := c.root.Mkdir(name, 0o700); err != nil {
		return "", fmt.Errorf("temporary directory: %w", explain(c.root, err))
	}
	return filepath.Abs(filepath.Join(c.root.Name(), filepath.FromSlash(name)))
}
