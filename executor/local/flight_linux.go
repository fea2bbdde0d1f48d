package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
)

// flight keeps the same task of a user from running twice at once: one runs, and the others wait and have its
// result: from the cache or, where it is not kept there, as it is, if they were granted alike.
type flight struct {
	mu      sync.Mutex
	running map[string]*flown
}

// flown is a task that runs, and what became of it.
type flown struct {
	over    chan struct{}
	waiting int // under flight.mu

	// Set before over is closed.
	kept    bool                 // the result is in the cache
	out     *executor.TaskOutput // one that is not, and may be had; nil if there is none
	caller  executor.Caller
	granted granted
}

// join returns a new one, for the caller to do, where nobody runs key, and else that of who did once it is over.
func (f *flight) join(ctx context.Context, key string) (r *flown, mine bool, err error) {
	f.mu.Lock()
	r = f.running[key]
	if r == nil {
		r = &flown{over: make(chan struct{})}
		f.running[key] = r
		f.mu.Unlock()
		return r, true, nil
	}
	r.waiting++
	f.mu.Unlock()
	if turn, ok := executor.TurnFrom(ctx); ok {
		turn.Forgo() // the one that runs may wait for it
	}
	select {
	case <-r.over:
		return r, false, nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r.waiting--
	return nil, false, ctx.Err()
}

// land says that it is over.
func (f *flight) land(key string, r *flown) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.running, key)
	close(r.over)
}

func (f *flight) followed(r *flown) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return r.waiting > 0
}

// once answers the task from the cache, by another that is the same, or by running it.
func (t *task) once(ctx context.Context) (*executor.TaskOutput, error) {
	key := t.namespace() + t.signature.String()
	for {
		r, mine, err := t.flight.join(ctx, key)
		if err != nil {
			return nil, err
		}
		if mine {
			return t.lead(ctx, key, r)
		}
		if t.spec.Cache != executor.CacheUse {
			continue // it is to run in any case
		}
		if out, err := t.follow(ctx, r); out != nil || err != nil {
			return out, err
		}
	}
}

// lead runs the task, if it must be run, for itself and for those that follow.
func (t *task) lead(ctx context.Context, key string, r *flown) (out *executor.TaskOutput, err error) {
	defer t.flight.land(key, r)
	if t.spec.Cache == executor.CacheUse {
		if out, err = t.lookUp(ctx); out != nil || err != nil {
			r.kept = out != nil
			return out, err
		}
	}
	out, err = t.run(ctx, true)
	r.kept = t.kept
	if err != nil || t.kept || out.Cause == executor.CauseCanceled || out.Success() && !t.strained || !t.flight.followed(r) {
		return out, err
	}
	// As for one that is stored: what it read must be what was hashed.
	if now, err := t.sign(ctx); err == nil && now == t.signature {
		r.out, r.caller, r.granted = out, t.caller, t.granted
	}
	return out, nil
}

// follow is the answer that another's run gives the task; nil if it gives none.
func (t *task) follow(ctx context.Context, r *flown) (out *executor.TaskOutput, err error) {
	switch {
	case r.kept:
		if out, err = t.lookUp(ctx); out == nil || err != nil {
			return nil, err
		}
	case r.out == nil, r.granted != t.granted, !caller.Alike(r.caller, t.caller):
		return nil, nil
	default:
		shared := *r.out
		out = &shared
		if out.Success() && t.spec.WorkdirMode == executor.WorkdirOverlay {
			if err := t.place(ctx, out.OutputFiles); err != nil {
				return nil, err
			}
		}
	}
	return out, t.replay(ctx, out)
}

// replay tells the task's caller what another run has written.
func (t *task) replay(ctx context.Context, out *executor.TaskOutput) error {
	if t.event == nil {
		return nil
	}
	for _, s := range []struct {
		kind   executor.EventKind
		stream executor.Stream
	}{{executor.EventStdout, out.Stdout}, {executor.EventStderr, out.Stderr}} {
		if !s.stream.Truncated {
			if len(s.stream.Inline) > 0 {
				t.event(executor.TaskEvent{Kind: s.kind, Data: s.stream.Inline})
			}
			continue
		}
		if err := t.replayBlob(ctx, s.kind, s.stream.Digest); err != nil {
			return fmt.Errorf("tell the task's %s: %w", s.kind, err)
		}
	}
	return nil
}

func (t *task) replayBlob(ctx context.Context, kind executor.EventKind, d executor.Digest) (err error) {
	b, err := t.cfg.Cache.Open(cache.Digest(d))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	piece := make([]byte, maxPiece)
	for {
		n, err := io.ReadFull(b, piece)
		if n > 0 {
			t.event(executor.TaskEvent{Kind: kind, Data: piece[:n]})
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
