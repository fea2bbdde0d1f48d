package local

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/action"
	"github.com/sandboxd/sandboxd/sandbox"
)

// opened are a task's paths, open.
type opened struct {
	caller executor.Caller
	work   *os.File // nil: empty
	inputs []*os.File
}

// open opens the paths of spec with the caller's rights.
func open(c executor.Caller, spec *executor.TaskSpec) (*opened, error) {
	o := &opened{caller: c}
	if spec.Workdir != "" {
		f, err := openAs(c, spec.Workdir, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return nil, executor.FieldErrorf("workdir", "%q: %w; name a directory that you may read", spec.Workdir, err)
		}
		o.work = f
	}
	for _, in := range spec.Inputs {
		f, err := openAs(c, in.Host, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
		if err != nil {
			return nil, errors.Join(executor.FieldErrorf("inputs", "%q: %w; name a file or directory that you may read", in.Host, err), o.close())
		}
		o.inputs = append(o.inputs, f)
		if st, err := f.Stat(); err != nil || !st.IsDir() && !st.Mode().IsRegular() {
			return nil, errors.Join(executor.FieldErrorf("inputs", "%q is not a file or directory", in.Host), err, o.close())
		}
	}
	return o, nil
}

func (o *opened) close() error {
	var errs []error
	if o.work != nil {
		errs = append(errs, o.work.Close())
	}
	for _, f := range o.inputs {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// sign signs a task with its open paths, which are read with the caller's rights.
func (t *task) sign(ctx context.Context) (action.Signature, error) {
	f := action.Files{Work: t.paths.work, Inputs: t.paths.inputs, Reader: t.caller.UID}
	if t.caller.UID != 0 {
		f.Credential = func(work func() error) error { return as(t.caller, work) }
	}
	return action.Sign(ctx, t.cfg.Cache, t.spec, environment(t.spec.Env), f, action.Ground{Platform: executor.PlatformNative, Root: t.root.Identity()})
}

// environment is what a task's processes see.
func environment(env map[string]string) map[string]string {
	return action.Environment(sandbox.DefaultPath, sandbox.HomeDir, env)
}
