package local

import (
	"context"
	"sync"

	"github.com/sandboxd/sandboxd/executor"
)

// TakesTurns is true: a task takes its turn (see executor.WithTurn) when it is opened, signed and not in the
// cache, and gives it back once its sandbox is unmade.
func (e *Executor) TakesTurns() bool { return true }

// turn waits until the task may have a sandbox. Without a Turn first come are first served, and there is
// nobody to see to it that a user has no more than so many.
func (t *task) turn(ctx context.Context) (leave func(), err error) {
	if turn, ok := executor.TurnFrom(ctx); ok {
		return turn.Take(ctx, t.granted.tasks)
	}
	if t.granted.tasks > 0 {
		return nil, executor.Errorf(executor.Unsupported, "user %d may have %d tasks at once, which takes a pool to see to; put the executor into one", t.caller.UID, t.granted.tasks)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	select {
	case t.slots <- struct{}{}:
		return sync.OnceFunc(func() { <-t.slots }), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
