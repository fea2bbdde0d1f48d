// Package flight keeps the same task of a user from running twice at once, whichever executor runs it.
package flight

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/action"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
)

// Group is the tasks of an executor that run: of those that are the same one runs, and the others wait and have its
// result: from the cache or, where it is not kept there, as it is, if they were granted alike. The zero Group is ready.
type Group struct {
	// Mu is for those who see whether it can be had.
	Mu      sync.Mutex
	running map[string]*flown
}

// Task is one that runs once.
type Task struct {
	// Namespace keeps the results of users apart. It and the Signature are those of the same task, by the same user.
	Namespace string
	Signature action.Signature
	Spec      *executor.TaskSpec
	Caller    executor.Caller
	// Granted is what the task may have; it can be compared.
	Granted any
	Event   executor.EventFunc
	Cache   *cache.Cache
	Log     logrus.FieldLogger
	// Run runs the task.
	Run func(context.Context) (Result, error)
	// Sign makes the signature of what the task reads now.
	Sign func(context.Context) (action.Signature, error)
	// Place puts the outputs of a success in place.
	Place func(context.Context, *executor.TaskOutput) error
}

func (t *Task) key() string { return t.Namespace + t.Signature.String() }

// lookUp returns the stored result with its outputs in place, or nil.
func (t *Task) lookUp(ctx context.Context) (*executor.TaskOutput, error) {
	out, err := action.LookUp(t.Cache, t.Namespace, t.Signature)
	if errors.Is(err, action.ErrRecord) {
		t.Log.WithError(err).WithField("signature", t.Signature.String()).Warn("the task is run again")
		return nil, nil
	}
	if out == nil || err != nil {
		return nil, err
	}
	if err := t.Place(ctx, out); err != nil {
		return nil, err
	}
	return out, nil
}

// unchanged says whether the task reads what it read when it was signed.
func (t *Task) unchanged(ctx context.Context) bool {
	now, err := t.Sign(ctx)
	return err == nil && now == t.Signature
}

// Result is what became of a task.
type Result struct {
	Output *executor.TaskOutput
	// Kept says that it is in the cache.
	Kept bool
	// Strained says that a success met a limit, and may have done less than it would have else.
	Strained bool
}

// flown is a task that runs, and what became of it.
type flown struct {
	over    chan struct{}
	waiting int // under Group.Mu

	// Set before over is closed.
	kept bool                 // the result is in the cache
	out  *executor.TaskOutput // one that is not, and may be had; nil if there is none
	task *Task
}

// Waiting is how many tasks wait for another.
func (g *Group) Waiting() (n int) {
	g.Mu.Lock()
	defer g.Mu.Unlock()
	for _, r := range g.running {
		n += r.waiting
	}
	return n
}

// join returns a new one, for the caller to do, where nobody runs the same, and else that of who did once it is over.
func (g *Group) join(ctx context.Context, t *Task) (r *flown, mine bool, err error) {
	g.Mu.Lock()
	r = g.running[t.key()]
	if r == nil {
		if g.running == nil {
			g.running = map[string]*flown{}
		}
		r = &flown{over: make(chan struct{}), task: t}
		g.running[t.key()] = r
		g.Mu.Unlock()
		return r, true, nil
	}
	r.waiting++
	g.Mu.Unlock()
	if turn, ok := executor.TurnFrom(ctx); ok {
		turn.Forgo() // the one that runs may wait for it
	}
	select {
	case <-r.over:
		return r, false, nil
	case <-ctx.Done():
	}
	g.Mu.Lock()
	defer g.Mu.Unlock()
	r.waiting--
	return nil, false, ctx.Err()
}

// land says that it is over.
func (g *Group) land(r *flown) {
	g.Mu.Lock()
	defer g.Mu.Unlock()
	delete(g.running, r.task.key())
	close(r.over)
}

func (g *Group) followed(r *flown) bool {
	g.Mu.Lock()
	defer g.Mu.Unlock()
	return r.waiting > 0
}

// Do answers the task from the cache, by another that is the same, or by running it.
func (g *Group) Do(ctx context.Context, t *Task) (*executor.TaskOutput, error) {
	for {
		r, mine, err := g.join(ctx, t)
		if err != nil {
			return nil, err
		}
		if mine {
			return g.lead(ctx, r)
		}
		if t.Spec.Cache != executor.CacheUse {
			continue // it is to run in any case
		}
		if out, err := t.follow(ctx, r); out != nil || err != nil {
			return out, err
		}
	}
}

// lead runs the task, if it must be run, for itself and for those that follow.
func (g *Group) lead(ctx context.Context, r *flown) (*executor.TaskOutput, error) {
	defer g.land(r)
	t := r.task
	if t.Spec.Cache == executor.CacheUse {
		if out, err := t.lookUp(ctx); out != nil || err != nil {
			r.kept = out != nil
			return out, err
		}
	}
	done, err := t.Run(ctx)
	out := done.Output
	r.kept = done.Kept
	if err != nil || done.Kept || out.Cause == executor.CauseCanceled || out.Success() && !done.Strained || !g.followed(r) {
		return out, err
	}
	// As for one that is stored: what it read must be what was hashed.
	if t.unchanged(ctx) {
		r.out = out
	}
	return out, nil
}

// follow is the answer that another's run gives the task; nil if it gives none.
func (t *Task) follow(ctx context.Context, r *flown) (out *executor.TaskOutput, err error) {
	switch {
	case r.kept:
		if out, err = t.lookUp(ctx); out == nil || err != nil {
			return nil, err
		}
	case r.out == nil, r.task.Granted != t.Granted, !caller.Alike(r.task.Caller, t.Caller):
		return nil, nil
	default:
		shared := *r.out
		out = &shared
		if err := t.Place(ctx, out); err != nil {
			return nil, err
		}
	}
	return out, t.replay(ctx, out)
}

// replay tells the task's caller what another run has written.
func (t *Task) replay(ctx context.Context, out *executor.TaskOutput) error {
	if t.Event == nil {
		return nil
	}
	for _, s := range []struct {
		kind   executor.EventKind
		stream executor.Stream
	}{{executor.EventStdout, out.Stdout}, {executor.EventStderr, out.Stderr}} {
		if !s.stream.Truncated {
			if len(s.stream.Inline) > 0 {
				t.Event(executor.TaskEvent{Kind: s.kind, Data: s.stream.Inline})
			}
			continue
		}
		if err := t.replayBlob(ctx, s.kind, s.stream.Digest); err != nil {
			return fmt.Errorf("tell the task's %s: %w", s.kind, err)
		}
	}
	return nil
}

func (t *Task) replayBlob(ctx context.Context, kind executor.EventKind, d executor.Digest) (err error) {
	b, err := t.Cache.Open(cache.Digest(d))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	piece := make([]byte, executor.MaxEventBytes)
	for {
		n, err := io.ReadFull(b, piece)
		if n > 0 {
			t.Event(executor.TaskEvent{Kind: kind, Data: piece[:n]})
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// Take waits for the task's turn; see executor.WithTurn. Without a Turn first come are first served, of as many places as
// places has room for, and there is nobody to see to it that a user has no more than so many.
func Take(ctx context.Context, c executor.Caller, most int, places chan struct{}) (leave func(), err error) {
	if turn, ok := executor.TurnFrom(ctx); ok {
		return turn.Take(ctx, most)
	}
	if most > 0 {
		return nil, executor.Errorf(executor.Unsupported, "user %d may have %d tasks at once, which takes a pool to see to; put the executor into one", c.UID, most)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	select {
	case places <- struct{}{}:
		return sync.OnceFunc(func() { <-places }), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
