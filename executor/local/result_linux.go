package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
)

// record is a result as it is stored: what the JSON of a TaskOutput leaves out
// stands beside it.
type record struct {
	Output             *executor.TaskOutput
	Duration           time.Duration
	CPUUser, CPUSystem time.Duration
}

// store begins to store a success, if what it read is still what was hashed. The work directory may be changed
// once it returns. What it returns waits until the result is stored, which takes the disk some time.
func (t *task) store(ctx context.Context, out *executor.TaskOutput) (wait func() error) {
	failed := func(err error) func() error { return func() error { return err } }
	now, err := t.sign(ctx, t.spec, t.paths, t.root.Identity())
	if err != nil {
		return failed(err)
	}
	if now != t.signature {
		return failed(errors.New("the work directory or an input changed while the task ran"))
	}
	b, err := json.Marshal(record{out, out.Duration, out.Usage.CPUUser, out.Usage.CPUSystem})
	if err != nil {
		return failed(err)
	}
	done := make(chan error, 1)
	go func() { done <- t.cfg.Cache.PutResult(t.namespace(), t.signature.Digest, b, blobs(out)) }()
	return func() error { return <-done }
}

// blobs are what out names and does not hold.
func blobs(out *executor.TaskOutput) []cache.Digest {
	var all []cache.Digest
	for _, f := range out.OutputFiles {
		if f.Kind == executor.KindFile {
			all = append(all, cache.Digest(f.Digest))
		}
	}
	for _, s := range []executor.Stream{out.Stdout, out.Stderr} {
		if s.Truncated {
			all = append(all, cache.Digest(s.Digest))
		}
	}
	return all
}

func blobBytes(out *executor.TaskOutput) (n int64) {
	for _, d := range blobs(out) {
		n += d.Size
	}
	return n
}

// lookUp returns the stored result of the task with its outputs in place, or nil.
func (t *task) lookUp(ctx context.Context) (*executor.TaskOutput, error) {
	b, _, err := t.cfg.Cache.Result(t.namespace(), t.signature.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil || r.Output == nil {
		// Of another version, perhaps: the task can be run.
		t.log.WithError(err).WithField("signature", t.signature.String()).Warn("cached result cannot be read")
		return nil, nil
	}
	out := r.Output
	out.Duration, out.Usage.CPUUser, out.Usage.CPUSystem = r.Duration, r.CPUUser, r.CPUSystem
	out.Cached = true
	if !out.Success() {
		return nil, fmt.Errorf("cached result %s is not a success", t.signature)
	}
	if t.spec.WorkdirMode == executor.WorkdirOverlay {
		if err := t.place(ctx, out.OutputFiles); err != nil {
			return nil, err
		}
	}
	return out, nil
}
