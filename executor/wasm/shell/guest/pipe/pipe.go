// Package pipe is a pipe in memory that behaves as a kernel's: it holds 64 KiB,
// so that what a reader leaves unread does not fail its writer as long as it fits.
//
// The interpreter uses it where the system has no pipes; the build of the guest
// puts it there.
package pipe

import (
	"io"
	"sync"
)

const size = 64 << 10

type pipe struct {
	mu     sync.Mutex
	change sync.Cond
	buf    []byte
	rdone  bool
	wdone  bool
}

// Reader is the read end. It is safe for concurrent use.
type Reader struct{ p *pipe }

// Writer is the write end. It is safe for concurrent use.
type Writer struct{ p *pipe }

// New returns the two ends. Both must be closed, or the other waits forever.
func New() (*Reader, *Writer) {
	p := &pipe{}
	p.change.L = &p.mu
	return &Reader{p}, &Writer{p}
}

// Read waits for at least one byte. It is at the end when all writers' bytes were
// read and the write end is closed.
func (r *Reader) Read(b []byte) (int, error) {
	p := r.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	for len(p.buf) == 0 && !p.wdone && !p.rdone {
		p.change.Wait()
	}
	if p.rdone {
		return 0, io.ErrClosedPipe
	}
	if len(p.buf) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.buf)
	if p.buf = p.buf[n:]; len(p.buf) == 0 {
		p.buf = nil
	}
	p.change.Broadcast()
	return n, nil
}

// Close makes writes fail with [io.ErrClosedPipe]. It never fails.
func (r *Reader) Close() error {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	r.p.rdone, r.p.buf = true, nil
	r.p.change.Broadcast()
	return nil
}

// Write waits until all of b is in the pipe.
func (w *Writer) Write(b []byte) (n int, err error) {
	p := w.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.rdone || p.wdone {
			return n, io.ErrClosedPipe
		}
		if k := min(size-len(p.buf), len(b)); k > 0 {
			p.buf = append(p.buf, b[:k]...)
			b, n = b[k:], n+k
			p.change.Broadcast()
		}
		if len(b) == 0 {
			return n, nil
		}
		p.change.Wait()
	}
}

// Close lets the reader come to its end. It never fails.
func (w *Writer) Close() error {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	w.p.wdone = true
	w.p.change.Broadcast()
	return nil
}
