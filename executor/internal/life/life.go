// Package life is an executor's from its making to its Close: what it counts of its tasks, and
// who waits for whom at the end.
package life

import (
	"context"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// Life counts the tasks of an executor. Its methods may be called by any number of goroutines.
type Life struct {
	born time.Time

	mu     sync.Mutex
	status executor.Status
	closed bool
	idle   chan struct{} // closed when closed and no task is left
	once   sync.Once
	ctx    context.Context
	cancel context.CancelFunc
}

// New returns that of an executor that takes tasks.
func New() *Life {
	l := &Life{born: time.Now(), idle: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.status.Healthy = true
	return l
}

// Enter counts a task in. After Close it is refused, as Unavailable.
func (l *Life) Enter() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return executor.Errorf(executor.Unavailable, "the executor is closed; try another")
	}
	l.status.Active++
	return nil
}

// Leave counts it out, by what became of it; nil is an error.
func (l *Life) Leave(out *executor.TaskOutput) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Active--
	l.status.Executed++
	if out != nil && out.Success() {
		l.status.Successful++
	} else {
		l.status.Failed++
	}
	if out != nil && out.Cached {
		l.status.CacheHits++
	}
	l.rest()
}

// rest says that the last task has left, if it has. The lock is held.
func (l *Life) rest() {
	if l.closed && l.status.Active == 0 {
		l.once.Do(func() { close(l.idle) })
	}
}

// Context ends when running tasks must.
func (l *Life) Context() context.Context { return l.ctx }

// Status is how the executor is.
func (l *Life) Status() executor.Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	s.Uptime = time.Since(l.born)
	return s
}

// Close refuses new tasks, lets those that are in end until ctx does, has them end then, and returns when
// the last has left.
func (l *Life) Close(ctx context.Context) {
	l.mu.Lock()
	l.closed, l.status.Healthy = true, false
	l.rest()
	l.mu.Unlock()
	select {
	case <-l.idle:
	case <-ctx.Done():
		l.cancel()
		<-l.idle
	}
	l.cancel()
}
