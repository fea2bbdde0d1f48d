package process

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	wasys "github.com/tetratelabs/wazero/sys"
)

// again is what an instance was when it asked for its first task. It can be that again, to the
// last byte, once a task has ended: its memory, its globals, its stack, and what it has of the clock and of
// randomness. To make an instance takes ten times as long.
//
// That is so for modules that change nothing else, such as their tables, and for tasks that leave no
// file open and have no more memory than before. So it is for the embedded shell, and an instance that
// is not as it was is not used again.
type again struct {
	stacks  []experimental.Snapshot // each good for once
	globals []global
	size    uint32 // of the memory
	elapsed int64
	random  rand.ChaCha8
}

type global struct {
	api.MutableGlobal
	value uint64
}

// uses is how often an instance is used again: each takes a copy of its stack, some 20 KB.
const uses = 100

// keep notes what the instance is.
func (i *instance) keep(ctx context.Context, m api.Module) {
	if i.mem.region == nil || i.mem.region.keep(i.images) != nil {
		return
	}
	a := &again{size: m.Memory().Size(), elapsed: i.clock.elapsed, random: *i.random}
	for _, name := range i.globals {
		g, ok := m.ExportedGlobal(name).(api.MutableGlobal)
		if !ok {
			return
		}
		a.globals = append(a.globals, global{g, g.Get()})
	}
	s := experimental.GetSnapshotter(ctx)
	for range uses {
		a.stacks = append(a.stacks, s.Snapshot())
	}
	i.again = a
}

// exit is proc_exit: the task has ended. If the instance can be used again, it does not return there,
// but from the call by which the guest asks for its task, with the next one.
func (i *instance) exit(ctx context.Context, m api.Module, code uint32) {
	if i.again != nil && i.order != nil && i.err == nil {
		i.err = i.answer(wasys.NewExitError(code))
		if i.err == nil && len(i.again.stacks) > 0 && i.tree.Open() == 0 && m.Memory().Size() == i.again.size {
			i.gc.now()
			i.succeed()
		}
	}
	_ = m.CloseWithExitCode(ctx, code) // it has no error but that of a closer, and there is none
	panic(wasys.NewExitError(code))
}

// succeed makes the instance what it was, and has it take the next task. It returns if there is none.
func (i *instance) succeed() {
	a := i.again
	i.mem.region.revert()
	i.mem.peak, i.mem.refused = uint64(a.size), false
	for _, g := range a.globals {
		g.Set(g.value)
	}
	*i.random = a.random
	for {
		i.clear()
		i.clock.elapsed = a.elapsed
		if i.begin(); i.err == nil {
			break
		}
		if errors.Is(i.err, io.EOF) || errors.Is(i.err, errOrder) || i.answer(nil) != nil {
			return
		}
	}
	s := a.stacks[0]
	a.stacks = a.stacks[1:]
	s.Restore([]uint64{uint64(len(i.described))})
}

// clear forgets the last task.
func (i *instance) clear() {
	i.close()
	i.order, i.err, i.described, i.tree, i.answered = nil, nil, nil, nil, false
	i.clock.epoch = defaultEpoch
}
