package executor

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// maxInFlight bounds the requests of one connection that await their answer,
// and apart from them its refusals that nobody has read yet.
const maxInFlight = 4096

// Serve answers the requests of in on out by e, as the package doc says, until
// in is closed, ctx ends or a Shutdown was answered. The first two are a lost
// connection: its tasks are canceled and waited for, and answers are dropped.
// It closes neither channel, and e only upon Shutdown, whose answer is the last:
// what was still unread in in then is answered by the end of the connection. A slow reader of out
// holds up the tasks whose events it does not take, never the reading of in.
func Serve(ctx context.Context, e Executor, in <-chan Request, out chan<- Response) error {
	ctx, lose := context.WithCancel(ctx)
	c := &conn{e: e, ctx: ctx, out: out, pending: map[uint64]context.CancelFunc{}, done: make(chan struct{})}
	err := c.read(in)
	if c.last != nil {
		c.rest.Wait() // an answer under way is not lost to the end of the connection
		c.send(*c.last)
	}
	lose()
	c.all.Wait()
	return err
}

type conn struct {
	e    Executor
	ctx  context.Context
	out  chan<- Response
	done chan struct{} // closed once Shutdown was answered
	// last is the answer to Shutdown, set before done is closed.
	last *Response
	// all counts every goroutine, rest all but that of Shutdown, tasks those of
	// ExecuteTask. Only read adds to them, to tasks only while !closing.
	all, rest, tasks sync.WaitGroup

	mu       sync.Mutex
	pending  map[uint64]context.CancelFunc
	refusals int
	closing  bool // of read alone
}

func (c *conn) read(in <-chan Request) error {
	for {
		select {
		case <-c.done:
			return nil
		case <-c.ctx.Done():
			return c.ctx.Err()
		case r, ok := <-in:
			if !ok {
				return nil
			}
			if err := c.take(r); err != nil {
				return err
			}
		}
	}
}

func (c *conn) take(r Request) error {
	if _, ok := r.Body.(CancelTask); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		if cancel := c.pending[r.ID]; cancel != nil {
			cancel()
		}
		return nil
	}
	ctx, cancel := context.WithCancel(c.ctx)
	if r.Caller != nil {
		ctx = WithCaller(ctx, *r.Caller)
	}
	if e := c.admit(r, cancel); e != nil {
		cancel()
		return c.refuse(r.ID, e)
	}
	_, task := r.Body.(ExecuteTask)
	_, shut := r.Body.(Shutdown)
	c.closing = c.closing || shut
	if shut {
		c.all.Go(func() {
			defer cancel()
			c.last = &Response{ID: r.ID, Body: c.answer(ctx, r)}
			close(c.done)
		})
		return nil
	}
	if task {
		c.tasks.Add(1)
	}
	c.start(func() {
		defer cancel()
		body := c.answer(ctx, r)
		c.mu.Lock()
		delete(c.pending, r.ID)
		c.mu.Unlock()
		c.send(Response{ID: r.ID, Body: body})
		if task {
			c.tasks.Done()
		}
	})
	return nil
}

// start runs f as a goroutine that the answer to Shutdown waits for.
func (c *conn) start(f func()) {
	c.rest.Add(1)
	c.all.Go(func() {
		defer c.rest.Done()
		f()
	})
}

func (c *conn) admit(r Request, cancel context.CancelFunc) *Error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, used := c.pending[r.ID]
	switch r.Body.(type) {
	case ExecuteTask, Shutdown:
		if c.closing {
			return Errorf(Unavailable, "executor is shutting down; try again later or use another")
		}
	case GetStatus, Ping, GetCapabilities:
		cancel = func() {} // CancelTask is for tasks
	default:
		return Errorf(Invalid, "request %d has no known body; use a client of this version", r.ID)
	}
	if _, ok := r.Body.(Shutdown); ok {
		cancel = func() {}
	}
	switch {
	case r.ID == 0 || used:
		return Errorf(Invalid, "request id %d is zero or in use; use a fresh one", r.ID)
	case len(c.pending) >= maxInFlight:
		return Errorf(Unavailable, "%d requests are in flight on this connection; await some", maxInFlight)
	}
	c.pending[r.ID] = cancel
	return nil
}

func (c *conn) refuse(id uint64, e *Error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refusals >= maxInFlight {
		return Errorf(Unavailable, "%d refusals were not read; the connection is given up", maxInFlight)
	}
	c.refusals++
	c.start(func() {
		c.send(Response{ID: id, Body: e})
		c.mu.Lock()
		c.refusals--
		c.mu.Unlock()
	})
	return nil
}

func (c *conn) send(r Response) {
	select {
	case c.out <- r:
	case <-c.ctx.Done():
	}
}

func (c *conn) answer(ctx context.Context, r Request) (body ResponseBody) {
	defer func() {
		if p := recover(); p != nil {
			// The stack tells of the daemon's inside: it is for its log alone.
			fmt.Fprintf(os.Stderr, "executor panicked: %v\n%s", p, debug.Stack())
			body = Errorf(Internal, "executor panicked; see the daemon's log")
		}
	}()
	var err error
	switch b := r.Body.(type) {
	case ExecuteTask:
		if err = b.Spec.Validate(); err != nil {
			return AsError(err)
		}
		if b.Events {
			ctx = WithEvents(ctx, func(ev TaskEvent) {
				ev.Data = append([]byte(nil), ev.Data...)
				c.send(Response{ID: r.ID, Body: ev})
			})
		}
		var o *TaskOutput
		if o, err = c.e.Execute(ctx, b.Spec); err == nil {
			return TaskResult{Output: o}
		}
	case GetStatus:
		var s Status
		if s, err = c.e.Status(ctx); err == nil {
			return s
		}
	case GetCapabilities:
		var s Capabilities
		if s, err = c.e.Capabilities(ctx); err == nil {
			return s
		}
	case Shutdown:
		c.drain(time.Duration(min(max(b.GraceMillis, 0), MaxTimeout.Milliseconds())) * time.Millisecond)
		if err = c.e.Close(ctx); err != nil {
			break
		}
		return ShutdownAck{}
	default:
		return Pong{}
	}
	return AsError(err)
}

// drain waits for the tasks, and cancels those that outlast grace.
func (c *conn) drain(grace time.Duration) {
	t := time.AfterFunc(grace, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, cancel := range c.pending {
			cancel()
		}
	})
	defer t.Stop()
	c.tasks.Wait()
}
