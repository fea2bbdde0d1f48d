package local

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
)

// logs takes a task's standard output and error: to its caller, and into the cache
// what is more than a result carries itself.
type logs struct {
	cache *cache.Cache
	limit int64
	// event tells the caller, or is nil. One at a time.
	event executor.EventFunc
	mu    sync.Mutex
	// full is called once a stream is longer than limit.
	full func()

	out, err   stream
	outW, errW *os.File
	done       sync.WaitGroup
}

type stream struct {
	kind  executor.EventKind
	r     *os.File
	head  []byte
	n     int64
	blob  *cache.Writer // the whole, once it is more than head
	fault error
}

// openLogs makes the pipes. The writing ends are for the sandbox; closeWriters
// closes ours. Then comes either begin, and at last finish, or abandon.
func openLogs(c *cache.Cache, limit int64, event executor.EventFunc, full func()) (*logs, error) {
	l := &logs{cache: c, limit: limit, event: event, full: sync.OnceFunc(full)}
	l.out.kind, l.err.kind = executor.EventStdout, executor.EventStderr
	var err error
	if l.out.r, l.outW, err = os.Pipe(); err != nil {
		return nil, err
	}
	if l.err.r, l.errW, err = os.Pipe(); err != nil {
		return nil, errors.Join(err, l.out.r.Close(), l.outW.Close())
	}
	widen(l.out.r)
	widen(l.err.r)
	return l, nil
}

// Pieces of a stream are read as large as they come: up to what an event may have, for a task that writes much, and
// from little on, since most write little and there may be a thousand.
const (
	minPiece = 8 << 10
	maxPiece = executor.MaxEventBytes
)

// widen has a pipe hold the largest piece, where the machine's bounds on pipes let it.
func widen(pipe *os.File) {
	if c, err := pipe.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, maxPiece) })
	}
}

// begin starts reading, and telling.
func (l *logs) begin() {
	for _, s := range []*stream{&l.out, &l.err} {
		l.done.Go(func() { l.read(s) })
	}
}

func (l *logs) abandon() error { return errors.Join(l.out.r.Close(), l.err.r.Close()) }

func (l *logs) closeWriters() error { return errors.Join(l.outW.Close(), l.errW.Close()) }

// read takes a stream to its end, also past the limit, so that nobody blocks.
func (l *logs) read(s *stream) {
	defer s.r.Close()
	buf := make([]byte, minPiece)
	for {
		n, err := s.r.Read(buf)
		if p := buf[:min(int64(n), l.limit-s.n)]; len(p) > 0 {
			l.take(s, p)
		}
		if int64(n) > l.limit-s.n {
			l.full()
		}
		s.n = min(s.n+int64(n), l.limit)
		if n == len(buf) && n < maxPiece {
			buf = make([]byte, 2*n)
		}
		if err != nil {
			if err != io.EOF {
				s.fault = errors.Join(s.fault, err)
			}
			return
		}
	}
}

// take tells of p, and keeps it. To tell is to hand a copy on: the caller reads it while it is kept.
func (l *logs) take(s *stream, p []byte) {
	l.tell(executor.TaskEvent{Kind: s.kind, Data: p})
	l.keep(s, p)
}

func (l *logs) keep(s *stream, p []byte) {
	// After a fault there is no second try: it would be a blob without its middle.
	if s.blob == nil && s.fault == nil && len(s.head)+len(p) > executor.InlineBytes {
		if s.blob, s.fault = l.cache.Create(); s.fault != nil {
			s.blob = nil
		} else {
			s.blob.Pass()
			_, s.fault = s.blob.Write(s.head)
		}
	}
	s.head = append(s.head, p[:min(len(p), executor.InlineBytes-len(s.head))]...)
	if s.blob != nil && s.fault == nil {
		_, s.fault = s.blob.Write(p)
	}
}

// tell passes an event on.
func (l *logs) tell(e executor.TaskEvent) {
	if l.event == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.event(e)
}

// finish returns the streams. All writers must be closed or about to be.
func (l *logs) finish() (stdout, stderr executor.Stream, err error) {
	l.done.Wait()
	stdout, err = l.out.finish()
	stderr, err2 := l.err.finish()
	return stdout, stderr, errors.Join(err, err2)
}

func (s *stream) finish() (executor.Stream, error) {
	out := executor.Stream{Inline: s.head}
	if s.blob == nil {
		return out, s.fault
	}
	if s.fault != nil {
		s.blob.Abort()
		return out, s.fault
	}
	d, err := s.blob.Commit()
	out.Digest, out.Truncated = executor.Digest(d), true
	return out, err
}
