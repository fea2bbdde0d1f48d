package local

import (
	"context"
	"errors"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/action"
)

// store begins to store a success, if what it read is still what was hashed. The work directory may be changed
// once it returns. What it returns waits until the result is stored, which takes the disk some time.
func (t *task) store(ctx context.Context, out *executor.TaskOutput) (wait func() error) {
	failed := func(err error) func() error { return func() error { return err } }
	now, err := t.sign(ctx)
	if err != nil {
		return failed(err)
	}
	if now != t.signature {
		return failed(errors.New("the work directory or an input changed while the task ran"))
	}
	done := make(chan error, 1)
	go func() { done <- action.Store(t.cfg.Cache, t.namespace(), t.signature, out) }()
	return func() error { return <-done }
}
