// Package process is a worker process: the program that imports it, executed again. It compiles
// one module, and runs it for one task after another, each in an instance of its own.
//
// A guest cannot be interrupted, nor does the garbage collector get its turn while it is busy. So
// a task is ended by killing its worker, and collections happen here only where the guest
// waits for us, or is gone: see collector.
package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/abi"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/component"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// Name is the one argument of a worker process.
const Name = "sandboxd-wasm-worker"

// init takes over in a worker, before main does.
func init() {
	if len(os.Args) == 2 && os.Args[1] == Name {
		os.Exit(run())
	}
}

// run is the process. It ends with its standard input.
func run() int {
	sacrifice()
	debug.SetGCPercent(-1)
	// A guest holds a processor and does not give it back; its executor is to be heard.
	runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0)))
	// At the end of its input the executor has gone, or wants us to.
	if err := Serve(context.Background(), os.Stdin, os.Stdout, func() { os.Exit(0) }); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// worker is what all tasks share.
type worker struct {
	in     input
	out    *output
	load   wire.Load
	rt     wazero.Runtime
	cache  wazero.CompilationCache // the runtime's, if its code is kept
	module wazero.CompiledModule
	waits  bool // for a task, having been started
	// globals are the names of the module's, where its instances are used again, which their memory's images are for.
	globals []string
	images  *os.File
	world   bool   // of executor.wit, and no command
	begin   uint64 // bytes of memory, that the module's instances begin with
	ahead   bool   // of it an instance can be made before there is a task: it imports nothing but the world's, and begins with no more than that may have
	gc      collector
	lacks   string // says which walls could not be raised
}

// Serve loads a module, and runs it for task after task. It calls end, whatever it does, once in has come to its end, and
// returns when it has nothing to do then, or with an error.
func Serve(ctx context.Context, in io.Reader, out io.Writer, end func()) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w := &worker{in: newInput(ctx, in, end), out: newOutput(out)}
	defer func() {
		if w.rt != nil {
			_ = w.close(context.WithoutCancel(ctx)) // it has no error but those of what is closed with it
		}
	}()
	if err := w.prepare(ctx); err != nil {
		return wire.Write(w.out, wire.KindFailed, []byte(err.Error()))
	}
	debug.FreeOSMemory() // compiling takes hundreds of MB
	ready := append([]byte{0}, w.lacks...)
	if w.world {
		ready[0] = 1
	}
	if err := wire.Write(w.out, wire.KindReady, ready); err != nil {
		return err
	}
	for {
		if err := w.task(ctx); err != nil {
			return err
		}
		w.gc.now()
	}
}

var errOrder = errors.New("the executor sent what does not belong there")

// idle is after how long a worker that waits for a task gives back memory.
const idle = time.Second

// nextTask is the next frame, which must be a task. While there is none nobody is held up, and garbage that pays to keep for many
// tasks goes.
func (w *worker) nextTask() ([]byte, error) {
	if !w.load.InProcess && !w.in.comes(idle) {
		w.gc.all()
	}
	return w.next(wire.KindTask)
}

// next is the next frame, which must be of kind k.
func (w *worker) next(k wire.Kind) ([]byte, error) {
	f, err := w.in.next()
	switch {
	case err != nil:
		return nil, io.EOF
	case f.kind != k:
		return nil, fmt.Errorf("%w: %q for %q", errOrder, f.kind, k)
	}
	return f.body, nil
}

// prepare compiles the module.
func (w *worker) prepare(ctx context.Context) error {
	b, err := w.next(wire.KindLoad)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &w.load); err != nil {
		return err
	}
	code, err := w.next(wire.KindModule)
	if err != nil {
		return err
	}
	if component.Is(code) {
		if code, err = component.Core(code, abi.ExecuteTask); err != nil {
			return fmt.Errorf("the component cannot be run: %w", err)
		}
	}
	if err := component.OnlyFunctions(code); err != nil {
		return fmt.Errorf("the module cannot be used: %w", err)
	}
	if w.load.Again {
		if w.images, err = imageFile(); err != nil {
			return err
		}
	}
	unkept, err := w.compile(experimental.WithCompilationWorkers(ctx, runtime.NumCPU()), code)
	if err != nil {
		return err
	}
	compiled := wire.Compiled{Used: used()}
	if unkept != nil {
		compiled.Unkept = unkept.Error()
	}
	if err := wire.WriteJSON(w.out, wire.KindCompiled, compiled); err != nil {
		return err
	}
	return w.recognize(ctx)
}

// forAgain is the module, or its stub, with what is needed to use its instances again, if they are to be.
func (w *worker) forAgain(code []byte) (_ []byte, err error) {
	if w.load.Again {
		if code, w.globals, err = component.ExportGlobals(code, "sandboxd global "); err != nil {
			return nil, fmt.Errorf("the module cannot be used again: %w", err)
		}
	}
	return code, nil
}

// compile compiles the module, in a runtime that it makes for that. The code is kept where it is to be, unless unkept says why it is not.
func (w *worker) compile(ctx context.Context, code []byte) (unkept, err error) {
	if dir := string(w.load.CodeDir); dir != "" {
		done := false
		if done, unkept = w.compileKept(ctx, kept{dir}, code); done {
			return unkept, nil
		} // or it cannot be compiled at all
	}
	if code, err = w.forAgain(code); err != nil {
		return nil, err
	}
	if err := w.open(ctx, ""); err != nil {
		return nil, err
	}
	if w.module, err = w.rt.CompileModule(ctx, code); err != nil {
		return nil, fmt.Errorf("the module cannot be compiled: %w", err)
	}
	return unkept, nil
}

// compileKept takes what is kept, or compiles the module to be kept. The error says why it is not; the module may be there all the same, which done says.
func (w *worker) compileKept(ctx context.Context, k kept, code []byte) (done bool, err error) {
	stub, err := component.Stub(code)
	if err != nil {
		return false, err
	}
	if stub, err = w.forAgain(stub); err != nil {
		return false, err
	}
	if done, err := w.take(ctx, k, stub); done || err != nil {
		return done, err
	}
	made, err := k.begin()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(made)) }()
	as := kept{filepath.Join(made, "stub")}
	if err := w.open(ctx, as.dir); err != nil {
		return false, err
	}
	if _, err := w.rt.CompileModule(ctx, stub); err != nil || len(as.files()) == 0 {
		return false, err // what is interpreted has no files
	}
	if code, err = w.forAgain(code); err != nil {
		return false, err
	}
	of := kept{filepath.Join(made, "module")}
	if err := w.open(ctx, of.dir); err != nil {
		return false, err
	}
	if w.module, err = w.rt.CompileModule(ctx, code); err != nil {
		// It may be that what was compiled could not be written: then it is in memory, and found there.
		again := error(nil)
		w.module, again = w.rt.CompileModule(ctx, code)
		return again == nil, err
	}
	compiled, ok := codeOf(w.module)
	if !ok {
		return true, errors.New("this wazero keeps it otherwise than is known here")
	}
	if err := k.put(of, as, mark(compiled)); err != nil {
		return true, err
	}
	if done, err = w.take(ctx, k, stub); !done && err == nil {
		err = errors.New("it is not found again")
	}
	return done, err
}

// take takes the module's code from where it is kept, if it is, and has it in common with other workers.
func (w *worker) take(ctx context.Context, k kept, stub []byte) (done bool, err error) {
	marks, err := k.check()
	if err != nil || len(marks) == 0 {
		return false, err
	}
	if err := w.open(ctx, k.dir); err != nil {
		return false, err
	}
	if w.module, err = w.rt.CompileModule(ctx, stub); err != nil {
		k.forget() // it may be at fault
		return false, nil
	}
	if code, ok := codeOf(w.module); ok {
		if mark := mark(code); slices.Contains(marks, mark) {
			if !w.load.InProcess {
				_ = shareCode(k.dir, mark, code) // it saves memory, and a worker without it is as good
			}
			return true, nil
		}
	}
	if len(k.files()) == len(marks) {
		k.forget() // one has other code than its checksum is of
		return false, nil
	}
	_, err = k.check() // that of the stub goes, which was compiled now
	return false, err
}

// open makes the runtime anew, with dir for its code if that is not empty.
func (w *worker) open(ctx context.Context, dir string) error {
	if w.rt != nil {
		if err := w.close(ctx); err != nil {
			return err
		}
	}
	cfg := wazero.NewRuntimeConfig().WithMemoryLimitPages(65536).WithCloseOnContextDone(w.load.InProcess)
	if dir != "" {
		var err error
		if w.cache, err = wazero.NewCompilationCacheWithDir(dir); err != nil {
			return fmt.Errorf("cache of compiled modules: %w", err)
		}
		cfg = cfg.WithCompilationCache(w.cache)
	}
	w.rt = wazero.NewRuntimeWithConfig(ctx, cfg)
	if err := w.wasi(ctx); err != nil {
		return err
	}
	return w.own(ctx)
}

// close ends the runtime, with all that was compiled in it.
func (w *worker) close(ctx context.Context) error {
	err := w.rt.Close(ctx)
	if w.cache != nil {
		err = errors.Join(err, w.cache.Close(ctx))
	}
	w.rt, w.cache, w.module = nil, nil, nil
	return err
}

// wasi offers wasip1, with our own proc_exit, and for all paths.
func (w *worker) wasi(ctx context.Context) error {
	b := w.rt.NewHostModuleBuilder(wasi_snapshot_preview1.ModuleName)
	wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(b)
	if err := exportPaths(ctx, w.rt, b); err != nil {
		return err
	}
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, m api.Module, stack []uint64) {
		instanceOf(ctx).exit(ctx, m, uint32(stack[0]))
	}), []api.ValueType{api.ValueTypeI32}, nil).Export("proc_exit")
	_, err := b.Instantiate(ctx)
	return err
}

// recognize finds how the module is called, and sees that it can be.
func (w *worker) recognize(ctx context.Context) error {
	functions := w.module.ExportedFunctions()
	start, program := functions["_start"]
	_, w.world = functions[abi.ExecuteTask]
	switch {
	case w.world:
		if err := abi.Check(functions, w.module.ExportedMemories()); err != nil {
			return err
		}
	case !program:
		return fmt.Errorf("the module exports neither _start nor %s; build it as a wasip1 command, or for the world bitzel:executor/executor-component", abi.ExecuteTask)
	}
	if program && !w.world && len(start.ParamTypes())+len(start.ResultTypes()) > 0 {
		return errors.New("the module's _start has parameters or results, and that of a wasip1 command has none")
	}
	w.ahead = w.world
	for _, f := range w.module.ImportedFunctions() {
		m, name, _ := f.Import()
		if m == ownModule && name == "task" {
			w.waits = !w.world
		}
		w.ahead = w.ahead && m == abi.HostName
	}
	if err := w.stubs(ctx); err != nil {
		return err
	}
	// All code is there, and none of the module's has run.
	if w.load.Walls != nil {
		if err := Raise(w.load.Walls); err != nil {
			w.lacks = err.Error()
		}
	}
	if !w.world {
		return nil
	}
	w.begin = uint64(w.module.ExportedMemories()["memory"].Min()) << 16
	w.ahead = w.ahead && w.begin <= beforeTask
	return w.ping(ctx)
}

// stubs stand for functions that the module imports and nobody has: many modules import more than
// they call.
func (w *worker) stubs(ctx context.Context) error {
	missing := map[string][]api.FunctionDefinition{}
	for _, f := range w.module.ImportedFunctions() {
		m, name, _ := f.Import()
		if host := w.rt.Module(m); host == nil {
			missing[m] = append(missing[m], f)
		} else if host.ExportedFunctionDefinitions()[name] == nil {
			return fmt.Errorf("the module imports %q of %q, which is not part of that; build it for what there is", name, m)
		}
	}
	for m, all := range missing {
		b := w.rt.NewHostModuleBuilder(m)
		done := map[string]bool{}
		for _, f := range all {
			_, name, _ := f.Import()
			if done[name] {
				continue
			}
			done[name] = true
			b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(context.Context, api.Module, []uint64) {
				panic(fmt.Errorf("the module calls %q of %q, which nobody has here", name, m))
			}), f.ParamTypes(), f.ResultTypes()).Export(name)
		}
		if _, err := b.Instantiate(ctx); err != nil {
			return fmt.Errorf("imports from %q: %w", m, err)
		}
	}
	return nil
}
