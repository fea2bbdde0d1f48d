package executor

import (
	"context"
	"errors"
)

// Turn is how a task at an executor gets what tasks take turns at, such as a processor.
type Turn struct {
	// Take waits until it is the task's turn. most is how many its caller may have at once, with this one; 0 is
	// any number. leave gives the turn back, once, however often it is called, and may be called after the
	// task was answered. An error is to be returned as it is: the task may run elsewhere.
	Take func(ctx context.Context, most int) (leave func(), err error)
	// Forgo is for a task that waits for something else before it takes its turn, such as another task: a turn
	// that is kept for it is another's then.
	Forgo func()
}

type turnKey struct{}

// WithTurn returns a context for an executor that takes turns: that takes t's before a task starts, and not
// for a task that it answers without, such as from a cache. Such an executor has a method TakesTurns; any
// other is called with a turn taken.
func WithTurn(ctx context.Context, t Turn) context.Context {
	return context.WithValue(ctx, turnKey{}, t)
}

// TurnFrom returns ctx's Turn, and false if it has none.
func TurnFrom(ctx context.Context) (Turn, bool) {
	t, ok := ctx.Value(turnKey{}).(Turn)
	return t, ok
}

// ErrNotStarted is wrapped by an error, in this process, of a task that had no effect and may be run
// elsewhere, whatever the error's kind and the events that were told.
var ErrNotStarted = errors.New("the task was not started")
