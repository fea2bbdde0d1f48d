package wasm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// files are the machine's that a task is given. They are read with its caller's rights.
type files struct {
	paths *caller.Paths
	once  sync.Once
	work  chan func(error)
	// machines are of the work directory, and of the inputs, in this order: nil before they were asked for.
	machines []tree.Machine
	opened   []*os.Root
}

// machine calls what with the work directory, for 0, or an input, from one on: with the caller's rights, and no two
// at once. What does not come to its end, on a file system that does not answer, is left to itself at the end of ctx: with
// an error, nothing that what sets may be looked at.
func (f *files) machine(ctx context.Context, number int, what func(tree.Machine) error) error {
	done := make(chan error, 1)
	f.once.Do(f.start)
	select {
	case f.work <- func(err error) {
		var m tree.Machine
		if err == nil {
			m, err = f.open(number)
		}
		if err == nil {
			err = what(m)
		}
		done <- err
	}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// start makes a thread for all that is to be done: to make one takes longer than most of that.
func (f *files) start() {
	f.work = make(chan func(error))
	f.machines = make([]tree.Machine, 1+len(f.paths.Inputs))
	go func() {
		err := caller.As(f.paths.Caller, func() error {
			for work := range f.work {
				work(nil)
			}
			return nil
		})
		for work := range f.work { // its rights could not be taken on
			work(err)
		}
		for _, r := range f.opened {
			_ = r.Close()
		}
	}()
}

// close ends the thread, once it has nothing to do.
func (f *files) close() {
	f.once.Do(func() {})
	if f.work != nil {
		close(f.work)
	}
}

// open returns a machine.
func (f *files) open(number int) (tree.Machine, error) {
	if number < 0 || number >= len(f.machines) {
		return nil, fs.ErrNotExist
	}
	if m := f.machines[number]; m != nil {
		return m, nil
	}
	at := f.paths.Work
	if number > 0 {
		at = f.paths.Inputs[number-1]
	}
	if at == nil {
		return nil, fs.ErrNotExist
	}
	m, root, err := machineAt(at, f.paths.Caller)
	if err != nil {
		return nil, err
	}
	if root != nil {
		f.opened = append(f.opened, root)
	}
	f.machines[number] = m
	return m, nil
}

func infoOf(fi fs.FileInfo) tree.Info {
	return tree.Info{Mode: fi.Mode(), Size: fi.Size(), Time: fi.ModTime().UnixNano()}
}

func infoFor(i tree.Info) wire.Info {
	return wire.Info{Name: []byte(i.Name), Bare: i.Bare, Mode: uint32(i.Mode), Size: i.Size, Time: i.Time, Target: []byte(i.Target)}
}

// blame names the field of a task that a machine is of, in an error.
func blame(number int, err error) error {
	field := "workdir"
	if number > 0 {
		field = "inputs"
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return executor.FieldErrorf(field, "%w", err)
}
