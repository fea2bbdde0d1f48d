package process

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/experimental/sysfs"
	wasys "github.com/tetratelabs/wazero/sys"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/abi"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

const (
	// maxUndeclared is how many paths are told; more are counted.
	maxUndeclared = 1000
	// maxTrap bounds what is told of a trap.
	maxTrap = 4 << 10
)

// instance is one instance of the module, for one task.
type instance struct {
	*worker
	ctx   context.Context
	fs    *swap
	clock clock
	mem   memory
	stdin bytes.Reader
	roots []*os.Root
	ahead ahead

	// order is nil until begin, and err why the task cannot be begun.
	order     *wire.Task
	err       error
	described []byte
	tree      *tree.FS
	before    wire.Used

	random *rand.ChaCha8
	// again is set where the instance can be used again, asked once it was told to ask again, answered once its task's end was told.
	again    *again
	asked    bool
	answered bool

	// made is the component's, and called the same while it may call the host.
	made   api.Module
	called *abi.Instance
	files  [][2]string // that it has as outputs
}

// swap is a file system that is another once there is a task.
type swap struct{ *tree.FS }

// fault is an error that lies in a field of the TaskSpec.
type fault struct {
	field string
	err   error
}

func (f *fault) Error() string { return f.err.Error() }

func (f *fault) Unwrap() error { return f.err }

// instance is one that has no task yet.
func (w *worker) instance(ctx context.Context) (*instance, error) {
	i := &instance{worker: w, mem: memory{begin: w.begin}, clock: clock{ctx: ctx, epoch: defaultEpoch}, random: rand.NewChaCha8([32]byte{})}
	i.ctx = context.WithValue(experimental.WithMemoryAllocator(ctx, &i.mem), instanceKey{}, i)
	if len(w.globals) > 0 {
		i.ctx = experimental.WithSnapshotter(i.ctx)
	}
	nothing, err := tree.New(tree.Config{Now: i.clock.now, Epoch: defaultEpoch, MaxOpen: 16})
	if err != nil {
		return nil, err
	}
	i.fs = &swap{nothing}
	return i, nil
}

// task runs one task, or returns why there can be no more.
func (w *worker) task(ctx context.Context) error {
	i, err := w.instance(ctx)
	if err != nil {
		return err
	}
	defer i.close()
	if w.ahead {
		i.makeAhead()
	}
	if !w.waits {
		i.begin()
	}
	var ended error
	switch {
	case i.err != nil:
	case w.world:
		ended = i.component()
	default:
		ended = i.command()
	}
	if i.answered {
		return nil
	}
	i.begin() // of a module that ended without having asked for its task
	return i.answer(ended)
}

func (i *instance) close() {
	i.unmake()
	i.ahead.forget()
	for _, r := range i.roots {
		_ = r.Close()
	}
	i.roots = nil
}

// begin takes the task, once.
func (i *instance) begin() {
	if i.order != nil || i.err != nil {
		return
	}
	i.err = i.take()
}

func (i *instance) take() error {
	b, err := i.nextTask()
	if err != nil {
		return err
	}
	o := &wire.Task{}
	if err := json.Unmarshal(b, o); err != nil {
		return err
	}
	i.before = used()
	if err := wire.WriteJSON(i.out, wire.KindBegun, i.before); err != nil {
		return err
	}
	i.order = o
	if o.Epoch != 0 {
		i.clock.epoch = o.Epoch
	}
	if i.tree, err = i.openTree(o); err != nil {
		return err
	}
	i.fs.FS = i.tree
	i.mem.limit = uint64(o.MemoryBytes)
	i.stdin.Reset(o.Stdin)
	i.described = description(o)
	return nil
}

// description is what the shell reads: see package shell.
func description(o *wire.Task) []byte {
	var b bytes.Buffer
	b.WriteString(strconv.Itoa(len(o.Argv)))
	for _, all := range [][][]byte{o.Argv, o.Env} {
		for _, s := range all {
			b.WriteByte(0)
			b.Write(s)
		}
	}
	b.WriteByte(0)
	return b.Bytes()
}

func (i *instance) openTree(o *wire.Task) (*tree.FS, error) {
	cfg := tree.Config{
		WorkReadonly: o.WorkReadonly, Hide: wire.Strings(o.Outputs), WorkBytes: o.WorkBytes, TmpBytes: o.TmpBytes,
		MaxFiles: o.MaxFiles, MaxOpen: o.MaxOpen, Now: i.clock.now, Epoch: i.clock.epoch, RealTimes: i.load.RealClock,
	}
	if i.load.RealClock {
		cfg.Now = func() int64 { return time.Now().UnixNano() }
	}
	if err := i.places(o, &cfg); err != nil {
		return nil, err
	}
	t, err := tree.New(cfg)
	if target := (*tree.TargetError)(nil); errors.As(err, &target) {
		err = &fault{"inputs", err}
	}
	return t, err
}

// places gives a tree what it has of the machine.
func (i *instance) places(o *wire.Task, cfg *tree.Config) error {
	if i.load.Asks {
		cfg.Scratch = askedScratch{i}
		if o.Work != nil {
			cfg.Work = &asked{i, 0, infoOf(o.Work.Info)}
		}
		for n, in := range o.Inputs {
			cfg.Inputs = append(cfg.Inputs, tree.Input{Target: string(in.Target), Machine: &asked{i, n + 1, infoOf(in.Info)}})
		}
		return nil
	}
	open := func(dir []byte) (tree.Dir, error) {
		d, err := tree.OpenDir(string(dir))
		if err == nil {
			i.roots = append(i.roots, d.Root)
		}
		return d, err
	}
	scratch, err := open(o.Scratch)
	if err != nil {
		return err
	}
	cfg.Scratch = tree.Numbered{Root: scratch.Root}
	if o.Work != nil {
		if cfg.Work, err = open(o.Work.Host); err != nil {
			return &fault{"workdir", fmt.Errorf("%w; name a directory that you may read", err)}
		}
	}
	for _, in := range o.Inputs {
		m, err := open(in.Host)
		if err != nil {
			return &fault{"inputs", fmt.Errorf("%w; name a file or directory that you may read", err)}
		}
		cfg.Inputs = append(cfg.Inputs, tree.Input{Target: string(in.Target), Machine: m})
	}
	return nil
}

// command runs the module as a wasip1 program; the error is a *sys.ExitError, a trap, or nil.
func (i *instance) command() (err error) {
	defer func() {
		if x := recover(); x != nil {
			err = trapOf(x)
		}
	}()
	m, err := i.rt.InstantiateModule(i.ctx, i.module, i.config())
	if m != nil {
		err = errors.Join(err, m.Close(i.ctx))
	}
	return err
}

// config is what a module is given.
func (i *instance) config() wazero.ModuleConfig {
	cfg := wazero.NewModuleConfig().WithName("").WithStdin(&i.stdin).
		WithStdout(&stream{i.worker, wire.KindStdout}).WithStderr(&stream{i.worker, wire.KindStderr}).
		WithFSConfig(wazero.NewFSConfig().(sysfs.FSConfig).WithSysFSMount(named{&counted{i.fs, &i.gc}}, "/"))
	cfg = i.clock.configure(cfg, i.load.RealClock, i.random)
	if i.order != nil {
		cfg = cfg.WithArgs(wire.Strings(i.order.Argv)...)
		for _, kv := range wire.Strings(i.order.Env) {
			k, v, _ := strings.Cut(kv, "=")
			cfg = cfg.WithEnv(k, v)
		}
	}
	return cfg
}

// trapOf makes an error of what was panicked with outside of a call.
func trapOf(x any) error {
	if err, ok := x.(error); ok {
		if exit := (*wasys.ExitError)(nil); errors.As(err, &exit) {
			return err
		}
	}
	return fmt.Errorf("%v\n%s", x, debug.Stack())
}

// stream passes on what is written.
type stream struct {
	w    *worker
	kind wire.Kind
}

// Write implements io.Writer.
func (s *stream) Write(b []byte) (int, error) {
	s.w.gc.called()
	if err := s.w.out.stream(s.kind, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// counted lets garbage be collected between calls.
type counted struct {
	*swap
	gc *collector
}

// OpenFile implements sys.FS.
func (c *counted) OpenFile(p string, flag sys.Oflag, perm fs.FileMode) (sys.File, sys.Errno) {
	c.gc.called()
	return c.FS.OpenFile(p, flag, perm)
}

// Stat implements sys.FS.
func (c *counted) Stat(p string) (wasys.Stat_t, sys.Errno) {
	c.gc.called()
	return c.FS.Stat(p)
}

// Lstat implements sys.FS.
func (c *counted) Lstat(p string) (wasys.Stat_t, sys.Errno) {
	c.gc.called()
	return c.FS.Lstat(p)
}

// answer tells how the task ended, and what it leaves. An error says that there is nobody to tell.
func (i *instance) answer(ended error) error {
	d := wire.Done{Files: i.files, MemoryRefused: i.mem.refused, PeakMemory: int64(i.mem.peak)}
	var exit *wasys.ExitError
	var declined *abi.TaskError
	switch {
	case errors.Is(i.err, io.EOF), errors.Is(i.err, errOrder):
		return i.err
	case i.err != nil:
		fail(&d, i.err)
	case errors.As(ended, &declined):
		d.Declined = declined.Text
	case errors.As(ended, &exit):
		d.Code = exit.ExitCode()
	case ended != nil:
		s := ended.Error()
		switch {
		case i.mem.refused && i.mem.size == 0:
			s = "its memory begins with more than the task may have"
		case i.mem.region == nil && errors.As(ended, new(runtime.Error)):
			s = "it has no memory, which what it calls takes; give it one, and export it as \"memory\""
		}
		d.Trap = strings.ToValidUTF8(s[:min(len(s), maxTrap)], "?")
		// As a shell says that its command crashed. An error is told with the frame of the end.
		line, _, _ := strings.Cut(d.Trap, "\n")
		_ = i.out.stream(wire.KindStderr, []byte("sandboxd: the module trapped: "+line+"\n"))
	}
	if i.tree != nil {
		d.Refused = i.tree.Refused()
		if err := i.leaves(&d); err != nil {
			return err
		}
	}
	if !i.load.InProcess { // where there is more than the task
		now := used()
		d.CPUUser, d.CPUSystem = now.CPUUser-i.before.CPUUser, now.CPUSystem-i.before.CPUSystem
	}
	i.answered = true
	return wire.WriteJSON(i.out, wire.KindDone, d)
}

// leaves tells of the outputs of a success, and of all other writes.
func (i *instance) leaves(d *wire.Done) error {
	declared := wire.Strings(i.order.Outputs)
	var sending error
	send := func(k wire.Kind, v any) error {
		sending = errors.Join(sending, wire.WriteJSON(i.out, k, v))
		return sending
	}
	if d.Error == "" && d.Declined == "" && d.Trap == "" && d.Code == 0 {
		missing, err := i.tree.Outputs(declared, func(e tree.Entry) error {
			i.gc.called()
			return send(wire.KindOutput, wire.Output{Path: []byte(e.Path), Mode: uint32(e.Mode), Number: e.Number, Content: e.Content, Size: e.Size, Target: []byte(e.Target)})
		})
		if sending != nil {
			return sending
		}
		if err != nil {
			fail(d, err)
		}
		d.Missing = wire.Bytes(missing)
	}
	i.tree.Undeclared(declared, func(p string) {
		if d.Undeclared++; d.Undeclared <= maxUndeclared && sending == nil {
			sending = wire.Write(i.out, wire.KindUndeclared, []byte(p))
		}
	})
	return sending
}

// fail notes why there is no result.
func fail(d *wire.Done, err error) {
	d.Error = strings.ToValidUTF8(err.Error(), "?")
	var f *fault
	var entry *tree.EntryError
	switch {
	case errors.As(err, &f):
		d.Field = f.field
	case errors.As(err, &entry):
		d.Field = "outputs"
	}
}
