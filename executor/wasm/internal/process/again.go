package process

import (
	"context"
	"math/rand/v2"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	wasys "github.com/tetratelabs/wazero/sys"
)

// again is what an instance was when it asked for its first task. It can be that again, to the
// last byte, once a task has ended: its memory, its globals, its stack, and what it has of the clock and of
// randomness. To make an instance takes ten times as long.
//
// That is so for modules that change nothing else, such as their tables, and do not ask how much memory they have but
// when they start; and for tasks that leave no file open. So it is for the embedded shell, and an instance that is not as it was is not used again.
type again struct {
	stack   experimental.Snapshot // good for once
	globals []global
	size    uint64 // of the memory
	elapsed int64
	random  rand.ChaCha8
}

type global struct {
	api.MutableGlobal
	value uint64
}

// askAgain tells a guest that asks for its task to ask again. One that is to be used again is told so at first, and
// when it was made what it was: so it comes to ask in the same state for each task, and leaves us a stack to go back to.
const askAgain = 1<<32 - 1

// keep notes what the instance is, and at each task its stack.
func (i *instance) keep(ctx context.Context, m api.Module) {
	if i.again == nil {
		if i.mem.region == nil || i.mem.region.keep(i.images) != nil {
			return
		}
		a := &again{size: i.mem.size, elapsed: i.clock.elapsed, random: *i.random}
		for _, name := range i.globals {
			g, ok := m.ExportedGlobal(name).(api.MutableGlobal)
			if !ok {
				return
			}
			a.globals = append(a.globals, global{g, g.Get()})
		}
		i.again = a
	}
	i.again.stack = experimental.GetSnapshotter(ctx).Snapshot()
}

// exit is proc_exit: the task has ended. If the instance can be used again, it does not return there,
// but from the call by which the guest asks for its task.
func (i *instance) exit(ctx context.Context, m api.Module, code uint32) {
	if i.again != nil && i.order != nil && i.err == nil {
		i.err = i.answer(wasys.NewExitError(code))
		if i.err == nil && i.tree.Open() == 0 && i.mem.size-i.again.size <= maxExtra {
			i.gc.now()
			i.revert()
			i.again.stack.Restore([]uint64{askAgain})
		}
	}
	_ = m.CloseWithExitCode(ctx, code) // it has no error but that of a closer, and there is none
	panic(wasys.NewExitError(code))
}

// revert makes the instance what it was.
func (i *instance) revert() {
	i.clear()
	a := i.again
	i.mem.region.revert()
	i.mem.extra, i.mem.peak, i.mem.refused = i.mem.size-a.size, a.size, false
	for _, g := range a.globals {
		g.Set(g.value)
	}
	*i.random = a.random
}

// clear forgets the last task.
func (i *instance) clear() {
	i.close()
	i.order, i.err, i.described, i.tree, i.answered = nil, nil, nil, nil, false
	i.clock.epoch, i.clock.elapsed = defaultEpoch, i.again.elapsed
}
