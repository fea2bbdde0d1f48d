package local

import (
	"context"
	"errors"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/action"
)

// store stores a success, if what it read is still what was hashed.
func (t *task) store(ctx context.Context, out *executor.TaskOutput) error {
	now, err := t.sign(ctx)
	if err != nil {
		return err
	}
	if now != t.signature {
		return errors.New("the work directory or an input changed while the task ran")
	}
	return action.Store(t.cfg.Cache, t.namespace(), t.signature, out)
}

// lookUp returns the stored result of the task with its outputs in place, or nil.
func (t *task) lookUp(ctx context.Context) (*executor.TaskOutput, error) {
	out, err := action.LookUp(t.cfg.Cache, t.namespace(), t.signature)
	if errors.Is(err, action.ErrRecord) {
		t.log.WithError(err).WithField("signature", t.signature.String()).Warn("the task is run again")
		return nil, nil
	}
	if out == nil || err != nil {
		return nil, err
	}
	if t.spec.WorkdirMode == executor.WorkdirOverlay {
		if err := t.place(ctx, out.OutputFiles); err != nil {
			return nil, err
		}
	}
	return out, nil
}
