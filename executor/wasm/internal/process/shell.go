package process

import (
	"context"
	"errors"
	"io"
	"io/fs"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental/sys"
	wasys "github.com/tetratelabs/wazero/sys"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/abi"
)

// ownModule has what wasip1 lacks, for the shell: see package shell.
const ownModule = "sandboxd"

type instanceKey struct{}

// instanceOf is the instance whose call ctx belongs to.
func instanceOf(ctx context.Context) *instance { return ctx.Value(instanceKey{}).(*instance) }

// own offers ownModule to modules.
func (w *worker) own(ctx context.Context) error {
	b := w.rt.NewHostModuleBuilder(ownModule)
	for name, f := range map[string]struct {
		call func(ctx context.Context, i *instance, m api.Module, a []uint64) uint32
		args int
	}{
		"chmod":     {chmod, 3},
		"touch":     {touch, 3},
		"mode":      {mode, 3},
		"task":      {await, 0},
		"task_read": {describe, 1},
	} {
		args := make([]api.ValueType, f.args)
		for i := range args {
			args[i] = api.ValueTypeI32
		}
		results := []api.ValueType{api.ValueTypeI32}
		if name == "task_read" {
			results = nil
		}
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, m api.Module, stack []uint64) {
			if r := f.call(ctx, instanceOf(ctx), m, stack); results != nil {
				stack[0] = uint64(r)
			}
		}), args, results).Export(name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		return err
	}
	return abi.Export(ctx, w.rt, func(ctx context.Context) abi.Host { return instanceOf(ctx) })
}

// path reads a string of a guest's.
func path(m api.Module, a []uint64) (string, bool) {
	if m.Memory() == nil {
		return "", false
	}
	b, ok := m.Memory().Read(uint32(a[0]), uint32(a[1]))
	return string(b), ok
}

// chmod takes a path, its length and a mode, and returns an errno of wasip1. No tree keeps the bits set-user-ID,
// set-group-ID and sticky, which is not to be found out later.
func chmod(_ context.Context, i *instance, m api.Module, a []uint64) uint32 {
	p, ok := path(m, a)
	if !ok {
		return wasiErrno(sys.EFAULT)
	}
	if uint32(a[2])&^uint32(fs.ModePerm) != 0 {
		return wasiErrno(sys.EPERM)
	}
	return wasiErrno(i.fs.Chmod(p, fs.FileMode(a[2])))
}

// touch takes a path, its length and where the time is, in nanoseconds since 1970 with the little end first, and returns an errno of
// wasip1. It is the time of a link itself.
func touch(_ context.Context, i *instance, m api.Module, a []uint64) uint32 {
	p, ok := path(m, a)
	if !ok {
		return wasiErrno(sys.EFAULT)
	}
	t, ok := m.Memory().ReadUint64Le(uint32(a[2]))
	if !ok {
		return wasiErrno(sys.EFAULT)
	}
	return wasiErrno(i.fs.TouchLink(p, int64(t)))
}

// mode takes a path, its length and whether to follow a link, and returns the mode, with the type of a FIFO or a socket, or an errno of wasip1 times -1.
func mode(_ context.Context, i *instance, m api.Module, a []uint64) uint32 {
	p, ok := path(m, a)
	if !ok {
		return -wasiErrno(sys.EFAULT)
	}
	look := i.fs.Lstat
	if uint32(a[2]) != 0 {
		look = i.fs.Stat
	}
	st, e := look(p)
	if e != 0 {
		return -wasiErrno(e)
	}
	return uint32(st.Mode.Perm()) | special(st.Mode)
}

// special is the type of what has none in wasip1, in the numbers of stat(2).
func special(m fs.FileMode) uint32 {
	switch m.Type() {
	case fs.ModeNamedPipe:
		return 0o010000
	case fs.ModeSocket:
		return 0o140000
	}
	return 0
}

// await returns the length of the task's description, once there is one, or askAgain.
func await(ctx context.Context, i *instance, m api.Module, _ []uint64) uint32 {
	if i.order == nil && len(i.globals) > 0 {
		if !i.asked {
			i.asked = true
			return askAgain
		}
		i.keep(ctx, m)
	}
	for i.begin(); i.err != nil; i.begin() {
		if i.again == nil || errors.Is(i.err, io.EOF) || errors.Is(i.err, errOrder) || i.answer(nil) != nil {
			panic(wasys.NewExitError(1)) // the guest goes no further
		}
		i.clear()
	}
	return uint32(len(i.described))
}

// describe writes the description.
func describe(_ context.Context, i *instance, m api.Module, a []uint64) uint32 {
	if len(i.described) > 0 && (m.Memory() == nil || !m.Memory().Write(uint32(a[0]), i.described)) {
		panic(sys.EFAULT) // which is a trap
	}
	return 0
}

// wasiErrno is the number that wasip1 has for an errno.
func wasiErrno(e sys.Errno) uint32 {
	if e == 0 {
		return 0
	}
	if n, ok := wasiErrnos[e]; ok {
		return n
	}
	return wasiErrnos[sys.EIO]
}

var wasiErrnos = map[sys.Errno]uint32{
	sys.EACCES: 2, sys.EAGAIN: 6, sys.EBADF: 8, sys.EEXIST: 20, sys.EFAULT: 21, sys.EINTR: 27, sys.EINVAL: 28,
	sys.EIO: 29, sys.EISDIR: 31, sys.ELOOP: 32, sys.ENAMETOOLONG: 37, sys.ENOENT: 44, sys.ENOSYS: 52, sys.ENOTDIR: 54,
	sys.ERANGE: 68, sys.ENOTEMPTY: 55, sys.ENOTSOCK: 57, sys.ENOTSUP: 58, sys.EPERM: 63, sys.EROFS: 69,
}
