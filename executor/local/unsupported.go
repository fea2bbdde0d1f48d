//go:build !linux

package local

import (
	"context"
	"io"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/access"
)

// Executor runs tasks, on Linux.
type Executor struct{ executor.Executor }

// New needs Linux.
func New(Config) (*Executor, error) {
	return nil, executor.Errorf(executor.Unsupported, "sandboxes need Linux; run the daemon there, and name its socket with --socket")
}

// Reconfigure is never reached, since there is no Executor.
func (e *Executor) Reconfigure(access.Rules) {}

// OpenBlob is never reached, since there is no Executor.
func (e *Executor) OpenBlob(context.Context, executor.Digest) (io.ReadCloser, error) {
	return nil, executor.Errorf(executor.Unsupported, "sandboxes need Linux")
}

// Healthy is never reached, as OpenBlob.
func (e *Executor) Healthy() error {
	return executor.Errorf(executor.Unsupported, "sandboxes need Linux")
}

// Check finds that this is not Linux.
func Check(context.Context, Config) []Finding {
	return []Finding{{Name: "linux", Detail: "this is another system", Remedy: "run the daemon on Linux", Required: true}}
}
