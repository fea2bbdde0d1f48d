package executor

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// Handle is the caller's end of the protocol: an Executor whose work is done by
// whoever answers its requests. It serves any number of goroutines at once;
// answers are matched by id.
type Handle struct {
	tx   chan<- Request
	gone chan struct{} // closed when no more answers come

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*call
	closed  bool
	why     *Error // the far end's last word, set before gone is closed; may be nil
}

type call struct {
	events chan TaskEvent    // of capacity EventWindow, closed before the answer; nil for none
	answer chan ResponseBody // of capacity 1
}

// NewHandle sends requests on tx and takes answers from rx until rx is closed;
// every waiter and later caller then gets the error with id 0 that came, or
// else an Unavailable one. It closes neither. An EventFunc that blocks holds up its
// own task alone; Execute returns after the last call of it.
func NewHandle(tx chan<- Request, rx <-chan Response) *Handle {
	h := &Handle{tx: tx, gone: make(chan struct{}), waiting: map[uint64]*call{}}
	go h.receive(rx)
	return h
}

func (h *Handle) receive(rx <-chan Response) {
	defer close(h.gone)
	for r := range rx {
		if e, ok := r.Body.(*Error); ok && r.ID == 0 {
			h.why = e
			continue
		}
		h.mu.Lock()
		c := h.waiting[r.ID]
		ev, isEvent := r.Body.(TaskEvent)
		if !isEvent && c != nil {
			delete(h.waiting, r.ID)
			if c.events != nil {
				close(c.events)
			}
		}
		h.mu.Unlock()
		switch {
		case c == nil: // an answer to nobody: the far end's fault, and no harm
		case isEvent && c.events != nil:
			c.events <- ev // there is room, if the far end keeps to EventWindow
		case !isEvent:
			c.answer <- r.Body
		}
	}
}

// errGone is for use once gone is closed.
func (h *Handle) errGone() error {
	if h.why != nil {
		return h.why
	}
	return Errorf(Unavailable, "the executor is gone; start it again, or use another")
}

// ask sends one request and waits for its answer. The end of ctx becomes a
// CancelTask for a task, whose answer is still waited for; other requests are given up.
func (h *Handle) ask(ctx context.Context, body RequestBody, events EventFunc) (ResponseBody, error) {
	if err := ctx.Err(); err != nil {
		return nil, AsError(err)
	}
	c := &call{answer: make(chan ResponseBody, 1)}
	if events != nil {
		c.events = make(chan TaskEvent, EventWindow)
	}
	h.mu.Lock()
	h.next++
	id := h.next
	h.waiting[id] = c
	h.mu.Unlock()
	forget := func() {
		h.mu.Lock()
		delete(h.waiting, id)
		h.mu.Unlock()
	}
	select {
	case h.tx <- Request{ID: id, Body: body}:
	case <-h.gone:
		forget()
		return nil, h.errGone()
	case <-ctx.Done():
		forget()
		return nil, AsError(ctx.Err())
	}
	if events != nil {
		var telling sync.WaitGroup
		telling.Go(func() { h.tell(id, c.events, events) })
		defer telling.Wait()
	}
	ended := ctx.Done()
	for {
		select {
		case b := <-c.answer:
			return result(b)
		case <-h.gone:
			return h.late(c)
		case <-ended:
			if _, ok := body.(ExecuteTask); !ok {
				forget()
				return nil, AsError(ctx.Err())
			}
			ended = nil
			if b, ok := h.cancel(id, c); ok {
				return result(b)
			}
		}
	}
}

// tell calls f with a task's events, and the far end when there is room for more.
func (h *Handle) tell(id uint64, events <-chan TaskEvent, f EventFunc) {
	var taken int64
	for {
		select {
		case ev, more := <-events:
			if !more {
				return
			}
			f(ev)
			ev.Free()
		case <-h.gone:
			for {
				select {
				case ev, more := <-events:
					if !more {
						return
					}
					f(ev)
					ev.Free()
				default:
					return
				}
			}
		}
		if taken++; taken < EventWindow/4 {
			continue
		}
		select {
		case h.tx <- Request{ID: id, Body: EventsTaken{Events: taken}}:
			taken = 0
		case <-h.gone:
		}
	}
}

// cancel sends CancelTask, unless the answer or the end comes first.
func (h *Handle) cancel(id uint64, c *call) (ResponseBody, bool) {
	select {
	case h.tx <- Request{ID: id, Body: CancelTask{}}:
	case b := <-c.answer:
		return b, true
	case <-h.gone:
	}
	return nil, false
}

// late takes an answer that came just before the far end went.
func (h *Handle) late(c *call) (ResponseBody, error) {
	select {
	case b := <-c.answer:
		return result(b)
	default:
		return nil, h.errGone()
	}
}

func result(b ResponseBody) (ResponseBody, error) {
	if e, ok := b.(*Error); ok {
		return nil, e
	}
	return b, nil
}

// ask is Handle.ask for an answer of type T.
func ask[T ResponseBody](ctx context.Context, h *Handle, body RequestBody, events EventFunc) (T, error) {
	var none T
	b, err := h.ask(ctx, body, events)
	if err != nil {
		return none, err
	}
	v, ok := b.(T)
	if !ok {
		return none, Errorf(Internal, "the executor answered %T with %T; use the same version at both ends", body, b)
	}
	return v, nil
}

// Execute implements Executor. A spec that is not valid is refused here.
func (h *Handle) Execute(ctx context.Context, spec *TaskSpec) (*TaskOutput, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	events := EventsFrom(ctx)
	r, err := ask[TaskResult](ctx, h, ExecuteTask{Spec: spec, Events: events != nil}, events)
	return r.Output, err
}

// Capabilities implements Executor.
func (h *Handle) Capabilities(ctx context.Context) (Capabilities, error) {
	return ask[Capabilities](ctx, h, GetCapabilities{}, nil)
}

// Status implements Executor.
func (h *Handle) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, h, GetStatus{}, nil)
}

// Ping returns nil once the far end answered.
func (h *Handle) Ping(ctx context.Context) error {
	_, err := ask[Pong](ctx, h, Ping{}, nil)
	return err
}

// Shutdown closes the executor at the far end: it lets tasks end for grace,
// cancels the rest, and returns when all are answered.
func (h *Handle) Shutdown(ctx context.Context, grace time.Duration) error {
	_, err := ask[ShutdownAck](ctx, h, Shutdown{GraceMillis: grace.Milliseconds()}, nil)
	return err
}

// Close implements Executor: Shutdown, with the time that ctx has left as grace
// (no end: MaxTimeout). When ctx ends, the tasks of this Handle are canceled, and
// Close goes on waiting for them to be gone.
func (h *Handle) Close(ctx context.Context) error {
	h.mu.Lock()
	again := h.closed
	h.closed = true
	h.mu.Unlock()
	if again {
		return nil
	}
	grace := MaxTimeout
	if d, ok := ctx.Deadline(); ok {
		grace = max(0, time.Until(d))
	}
	if ctx.Err() != nil {
		grace = 0
	}
	defer context.AfterFunc(ctx, h.cancelAll)()
	err := h.Shutdown(context.WithoutCancel(ctx), grace)
	if KindOf(err) == Unavailable {
		return nil // it is gone, which is what was wanted
	}
	return err
}

// cancelAll sends CancelTask for all that waits; what is no task does not mind.
func (h *Handle) cancelAll() {
	h.mu.Lock()
	ids := slices.Collect(maps.Keys(h.waiting))
	h.mu.Unlock()
	for _, id := range ids {
		select {
		case h.tx <- Request{ID: id, Body: CancelTask{}}:
		case <-h.gone:
			return
		}
	}
}
