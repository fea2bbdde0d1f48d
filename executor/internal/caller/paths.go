package caller

import (
	"errors"
	"os"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/action"
)

// Paths are a task's paths, open.
type Paths struct {
	Caller executor.Caller
	Work   *os.File // nil: empty
	Inputs []*os.File
}

// Open opens the paths of spec with the caller's rights.
func Open(c executor.Caller, spec *executor.TaskSpec) (*Paths, error) {
	p := &Paths{Caller: c}
	if spec.Workdir != "" {
		f, err := openDir(c, spec.Workdir)
		if err != nil {
			return nil, executor.FieldErrorf("workdir", "%q: %w; name a directory that you may read", spec.Workdir, err)
		}
		p.Work = f
	}
	for _, in := range spec.Inputs {
		f, err := openInput(c, in.Host)
		if err != nil {
			return nil, errors.Join(executor.FieldErrorf("inputs", "%q: %w; name a file or directory that you may read", in.Host, err), p.Close())
		}
		p.Inputs = append(p.Inputs, f)
		if st, err := f.Stat(); err != nil || !st.IsDir() && !st.Mode().IsRegular() {
			return nil, errors.Join(executor.FieldErrorf("inputs", "%q is not a file or directory", in.Host), err, p.Close())
		}
	}
	return p, nil
}

// Close closes them.
func (p *Paths) Close() error {
	var errs []error
	if p.Work != nil {
		errs = append(errs, p.Work.Close())
	}
	for _, f := range p.Inputs {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Files are they for a signature, which reads them with the caller's rights.
func (p *Paths) Files() action.Files {
	f := action.Files{Work: p.Work, Inputs: p.Inputs, Reader: p.Caller.UID}
	if !own(p.Caller) {
		f.Credential = func(work func() error) error { return As(p.Caller, work) }
	}
	return f
}
