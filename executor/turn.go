package executor

import (
	"context"
	"errors"
)

// TurnFunc waits until a task may use what tasks take turns at. most is how many its caller may
// have at once, with this one; 0 is any number. leave gives the turn back, once, however often it is called, and
// may be called after the task was answered. The error is to be returned as it is: the task may run elsewhere.
type TurnFunc func(ctx context.Context, most int) (leave func(), err error)

type turnKey struct{}

// WithTurn returns a context for an executor that takes turns: that asks f before a task starts, and not
// before a task that it answers without, such as from a cache. Such an executor has a method TakesTurns; any
// other is called with a turn taken.
func WithTurn(ctx context.Context, f TurnFunc) context.Context {
	return context.WithValue(ctx, turnKey{}, f)
}

// TurnFrom returns ctx's TurnFunc, or nil if it has none.
func TurnFrom(ctx context.Context) TurnFunc {
	f, _ := ctx.Value(turnKey{}).(TurnFunc)
	return f
}

// ErrNotStarted is wrapped by an error, in this process, of a task that had no effect and may be run
// elsewhere, whatever the error's kind and the events that were told.
var ErrNotStarted = errors.New("the task was not started")
