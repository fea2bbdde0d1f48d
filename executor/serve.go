package executor

import (
	"context"
	"os"
	"runtime/debug"
	"sync"
	"time"
)

// maxInFlight bounds the requests of one connection whose answer was not taken yet,
// and apart from them its refusals.
const maxInFlight = 4096

// maxInFlightBytes bounds the specs of one connection that await their answer:
// what a client can make the executor hold.
const maxInFlightBytes = 4 * MaxSpecBytes

// maxHeldBytes bounds the results of one connection that await their reader, but for
// one, which may be larger.
const maxHeldBytes = 16 << 20

// lastWords is how long an event of a task that is to end, or a result too many, may
// wait for its reader: without a bound, who does not read could keep the task's place
// or fill the memory.
const lastWords = 2 * time.Second

// Serve answers the requests of in on out by e, as the package doc says, until
// in is closed, ctx ends, or a Shutdown or Drain is done. The first two are a lost
// connection: its tasks are canceled and waited for, and answers are dropped.
// It closes neither channel, and e only upon Shutdown, whose answer is the last:
// what was still unread in in then is answered by the end of the connection.
//
// A slow reader of out holds up the tasks whose events it does not take, until their
// time is over or they are canceled: then events are dropped from the first on that
// it does not take within lastWords. Of results that it does not take, those too many
// are replaced by an Unavailable error. The reading of in goes on; unless the far end
// uses an id again whose answer it has not taken, or leaves thousands of refusals
// untaken: then reading waits for it.
func Serve(ctx context.Context, e Executor, in <-chan Request, out chan<- Response) {
	ctx, lose := context.WithCancel(ctx)
	c := &conn{
		e: e, ctx: ctx, lose: lose, out: out, done: make(chan struct{}),
		pending: map[uint64]*flight{}, freed: make(chan struct{}), refusals: make(chan struct{}, maxInFlight),
	}
	if c.read(in) {
		late := time.AfterFunc(lastWords, lose)
		defer late.Stop()
		c.rest.Wait() // an answer under way is not lost to the end of the connection
		if c.last != nil {
			c.send(*c.last)
		}
	}
	lose()
	c.all.Wait()
}

type conn struct {
	e        Executor
	ctx      context.Context
	out      chan<- Response
	done     chan struct{} // closed once Shutdown or Drain is done
	refusals chan struct{} // a slot for each that is not sent yet
	// last is the answer to Shutdown, set before done is closed.
	last *Response
	lose context.CancelFunc
	// all counts every goroutine, rest all but that of Shutdown or Drain, tasks
	// those of ExecuteTask, and running the same until the executor is done with them.
	// Only read adds to them, to the last two only while !closing.
	all, rest, tasks, running sync.WaitGroup
	closing                   bool // of read alone

	mu      sync.Mutex
	pending map[uint64]*flight
	bytes   int           // of the specs in pending
	held    int           // bytes of results
	freed   chan struct{} // closed, and made anew, when held gets less
}

// flight is a request from its coming to the sending of its answer.
type flight struct {
	cancel   context.CancelFunc // nil but for tasks
	bytes    int
	window   chan struct{} // holds one for each event on its way; nil if none was asked for
	answered bool          // the answer is made, so the far end may have it
	sent     chan struct{} // closed when it is sent or dropped
}

// read reports whether the connection ended in order.
func (c *conn) read(in <-chan Request) bool {
	for {
		select {
		case <-c.done:
			return true
		case <-c.ctx.Done():
			return false
		case r, ok := <-in:
			if !ok {
				return false
			}
			c.take(r)
		}
	}
}

func (c *conn) take(r Request) {
	switch b := r.Body.(type) {
	case EventsTaken:
		c.taken(r.ID, b.Events)
		return
	case CancelTask:
		c.cancel(r.ID)
		return
	case Drain:
		c.drain(b)
		return
	}
	c.awaitSent(r.ID)
	ctx, cancel := context.WithCancel(c.ctx)
	if r.Caller != nil {
		ctx = WithCaller(ctx, *r.Caller)
	}
	f, e := c.admit(r, cancel)
	if e != nil {
		cancel()
		c.refuse(r.ID, e)
		return
	}
	switch r.Body.(type) {
	case Shutdown:
		c.closing = true
		c.all.Go(func() {
			defer cancel()
			c.last = &Response{ID: r.ID, Body: c.answer(ctx, r, f)}
			close(c.done)
		})
		return
	case ExecuteTask:
		c.tasks.Add(1)
		c.running.Add(1)
	}
	c.start(func() {
		defer cancel()
		body := c.answer(ctx, r, f)
		if _, ok := r.Body.(ExecuteTask); ok {
			c.running.Done()
		}
		c.finish(r, f, body)
	})
}

// cancel ends the task id, if it is in flight.
func (c *conn) cancel(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.pending[id]; f != nil && f.cancel != nil {
		f.cancel()
	}
}

// taken makes room for n more events of the task id.
func (c *conn) taken(id uint64, n int64) {
	c.mu.Lock()
	f := c.pending[id]
	c.mu.Unlock()
	if f == nil {
		return
	}
	for range min(n, EventWindow) {
		select {
		case <-f.window:
		default: // more than were sent
			return
		}
	}
}

// awaitSent waits while an answer to id is being sent: the far end, which may use
// the id again once it has the answer, can be faster than we are to note that it was sent.
func (c *conn) awaitSent(id uint64) {
	c.mu.Lock()
	f := c.pending[id]
	wait := f != nil && f.answered
	c.mu.Unlock()
	if wait {
		<-f.sent
	}
}

func (c *conn) finish(r Request, f *flight, body ResponseBody) {
	held := 0
	if t, ok := body.(TaskResult); ok {
		if held = t.Output.size(); !c.hold(held) {
			held = 0
			body = Errorf(Unavailable, "%d bytes of results on this connection wait to be read; read them, and run the task again", maxHeldBytes)
		}
	}
	c.mu.Lock()
	f.answered = true
	c.mu.Unlock()
	c.send(Response{ID: r.ID, Body: body})
	c.mu.Lock()
	delete(c.pending, r.ID)
	c.bytes -= f.bytes
	if held > 0 {
		c.held -= held
		close(c.freed)
		c.freed = make(chan struct{})
	}
	c.mu.Unlock()
	close(f.sent)
	if _, ok := r.Body.(ExecuteTask); ok {
		c.tasks.Done()
	}
}

// hold waits until a result of n bytes may be held, and reports false if it may not.
func (c *conn) hold(n int) bool {
	late := time.NewTimer(lastWords)
	defer late.Stop()
	for {
		c.mu.Lock()
		free := c.held == 0 || c.held+n <= maxHeldBytes
		if free {
			c.held += n
		}
		freed := c.freed
		c.mu.Unlock()
		if free {
			return true
		}
		select {
		case <-freed:
		case <-late.C:
			return false
		case <-c.ctx.Done(): // nobody gets it
			return false
		}
	}
}

// start runs f as a goroutine that the end in order waits for.
func (c *conn) start(f func()) {
	c.rest.Add(1)
	c.all.Go(func() {
		defer c.rest.Done()
		f()
	})
}

func (c *conn) admit(r Request, cancel context.CancelFunc) (*flight, *Error) {
	f := &flight{sent: make(chan struct{})}
	switch b := r.Body.(type) {
	case ExecuteTask:
		if c.closing {
			return nil, errClosing()
		}
		f.cancel, f.bytes = cancel, b.Spec.size()
		if f.bytes > MaxSpecBytes {
			return nil, AsError(b.Spec.Validate())
		}
		if b.Events {
			f.window = make(chan struct{}, EventWindow)
		}
	case Shutdown:
		if c.closing {
			return nil, errClosing()
		}
		if r.Caller != nil && r.Caller.UID != 0 && int(r.Caller.UID) != os.Geteuid() {
			return nil, Errorf(Denied, "user %d may not shut the executor down; ask root to", r.Caller.UID)
		}
	case GetStatus, Ping, GetCapabilities:
	default:
		return nil, Errorf(Invalid, "request %d has no known body; use a client of this version", r.ID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch _, used := c.pending[r.ID]; {
	case r.ID == 0 || used:
		return nil, Errorf(Invalid, "request id %d is zero or in use; use a fresh one", r.ID)
	case len(c.pending) >= maxInFlight:
		return nil, Errorf(Unavailable, "%d requests are in flight on this connection; await some", maxInFlight)
	case c.bytes+f.bytes > maxInFlightBytes:
		return nil, Errorf(Unavailable, "the tasks in flight on this connection hold %d bytes; await some", c.bytes)
	}
	c.pending[r.ID] = f
	c.bytes += f.bytes
	return f, nil
}

func errClosing() *Error {
	return Errorf(Unavailable, "executor is shutting down; try again later or use another")
}

func (c *conn) refuse(id uint64, e *Error) {
	select {
	case c.refusals <- struct{}{}:
	case <-c.ctx.Done():
		return
	}
	c.start(func() {
		c.send(Response{ID: id, Body: e})
		<-c.refusals
	})
}

func (c *conn) send(r Response) {
	select {
	case c.out <- r:
	case <-c.ctx.Done():
	}
}

func (c *conn) answer(ctx context.Context, r Request, f *flight) (body ResponseBody) {
	defer func() {
		if p := recover(); p != nil {
			body = Errorf(Internal, "executor panicked; see the daemon's log%w", &PanicError{Value: p, Stack: debug.Stack()})
		}
	}()
	var err error
	switch b := r.Body.(type) {
	case ExecuteTask:
		if err = b.Spec.Validate(); err != nil {
			return AsError(err)
		}
		if b.Events {
			t := newTeller(ctx, c, r.ID, b.Spec, f.window)
			defer t.stop()
			ctx = WithEvents(ctx, t.tell)
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
		grace, stop := context.WithTimeout(ctx, time.Duration(min(max(b.GraceMillis, 0), MaxTimeout.Milliseconds()))*time.Millisecond)
		defer stop()
		err = c.e.Close(grace) // other connections' tasks too
		c.end(grace)
		if err == nil {
			return ShutdownAck{}
		}
	default:
		return Pong{}
	}
	return AsError(err)
}

// teller sends the events of one task, one at a time.
type teller struct {
	*conn
	id      uint64
	timeout time.Duration
	window  chan<- struct{}
	over    context.Context // ends when the task is canceled or its time is over
	end     context.CancelFunc
	timer   *time.Timer // from the start of the task on
	mute    bool
}

func newTeller(ctx context.Context, c *conn, id uint64, spec *TaskSpec, window chan<- struct{}) *teller {
	t := &teller{conn: c, id: id, timeout: spec.Timeout, window: window}
	if t.timeout == 0 {
		t.timeout = DefaultTimeout
	}
	t.over, t.end = context.WithCancel(ctx)
	return t
}

func (t *teller) stop() {
	t.end()
	if t.timer != nil {
		t.timer.Stop()
	}
}

// tell sends a copy of ev, whose Data is the executor's again once this returns, in pieces of the
// size that a message may have.
func (t *teller) tell(ev TaskEvent) {
	if ev.Kind == EventStarted && t.timer == nil {
		t.timer = time.AfterFunc(t.timeout, t.end)
	}
	data := ev.Data
	for !t.mute {
		n := min(len(data), MaxEventBytes)
		if push(t, t.window, struct{}{}) {
			piece := NewTaskEvent(ev.Kind, n)
			copy(piece.Data, data)
			piece.Platform, piece.Text = ev.Platform, ev.Text
			push(t, t.out, Response{ID: t.id, Body: piece})
		}
		if data = data[n:]; len(data) == 0 {
			return
		}
	}
}

// push sends v, and reports whether it could.
func push[T any](t *teller, to chan<- T, v T) bool {
	select {
	case to <- v:
		return true
	case <-t.conn.ctx.Done():
		t.mute = true
		return false
	case <-t.over.Done():
	}
	last := time.NewTimer(lastWords)
	defer last.Stop()
	select {
	case to <- v:
		return true
	case <-t.conn.ctx.Done():
	case <-last.C:
	}
	t.mute = true
	return false
}

func (c *conn) drain(d Drain) {
	if c.closing {
		return
	}
	c.closing = true
	c.all.Go(func() {
		c.end(d.Grace)
		close(c.done)
	})
}

// end waits for the tasks, and cancels those that outlast grace. Their answers have
// the rest of it to be read, and lastWords.
func (c *conn) end(grace context.Context) {
	stop := context.AfterFunc(grace, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, f := range c.pending {
			if f.cancel != nil {
				f.cancel()
			}
		}
	})
	defer stop()
	c.running.Wait()
	late := context.AfterFunc(grace, func() { time.AfterFunc(lastWords, c.lose) })
	defer late()
	c.tasks.Wait()
}
