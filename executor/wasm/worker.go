package wasm

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/process"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// worker is a process that runs tasks, one at a time.
type worker struct {
	cmd    *exec.Cmd // nil in this process
	in     io.WriteCloser
	out    *bufio.Reader
	stderr *head
	buf    []byte
	// world says that the module is a component, and no command.
	world bool

	// asks says that it has its files opened for it, and sent to it by files.
	asks  bool
	files *os.File
	// walls are what it is to raise, lacks says why one could not be raised, and stands and missing are what is there of them.
	walls           *wire.Walls
	lacks           string
	stands, missing []string
	bounds          granted // that the kernel holds it to
	space           int64   // of addresses, that it had when it was ready
	unkept          string  // why its code was not kept where it was to be

	// What it had used when its module was compiled, or it took its last task.
	userBefore, systemBefore time.Duration
	wait                     func() error // for its end, once
	stop                     func()       // in this process
}

// begins is how many workers are started at most to have one: what happened to the first need not be the module's fault.
const begins = 2

// startWorker returns a worker that has loaded the module. Closing stop ends it meanwhile.
func startWorker(cfg *Config, stop <-chan struct{}) (w *worker, err error) {
	for range begins {
		if w, err = tryWorker(cfg, stop); !errors.Is(err, errNotBegun) {
			return w, err
		}
		select {
		case <-stop:
			return nil, err
		default:
		}
	}
	return nil, fmt.Errorf("%w (%d were started)", err, begins)
}

// tryWorker is startWorker, once.
func tryWorker(cfg *Config, stop <-chan struct{}) (w *worker, err error) {
	if cfg.code != "" {
		if err := lookAtCode(cfg.code); err != nil {
			return nil, fmt.Errorf("compiled code: %w", err)
		}
	}
	w = &worker{stderr: &head{}}
	if cfg.InProcess {
		w.startHere()
	} else {
		argv := cfg.program
		if argv == nil {
			self, err := program()
			if err != nil {
				return nil, err
			}
			argv = []string{self, process.Name}
		}
		if err := w.start(argv); err != nil {
			return nil, fmt.Errorf("start a worker: %w", err)
		}
	}
	ready := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-stop:
			w.kill()
		case <-ready:
		}
	})
	if w.cmd != nil {
		w.space = math.MaxInt64 / 2 // what it will have is not known yet
		err = begun(w.bound(granted{memory: loading - spare, work: math.MaxInt64}))
	}
	if err == nil {
		err = w.load(cfg)
	}
	if err == nil && w.cmd != nil {
		err = begun(w.look())
	}
	close(ready)
	watch.Wait()
	if err != nil {
		w.kill()
		return nil, w.notBegun(cfg, errors.Join(err, w.reap()))
	}
	return w, nil
}

// errNotBegun says that a worker came to its end, or was ended, before it was ready, and that this may not be the module's fault.
var errNotBegun = errors.New("a worker did not begin")

// lateError says what a worker took too long for.
type lateError struct {
	what  string
	limit time.Duration
}

// Error implements error.
func (e *lateError) Error() string {
	return fmt.Sprintf("it takes more than %v to %s", e.limit, e.what)
}

// begun is errNotBegun where err is not nil.
func begun(err error) error {
	if err != nil {
		err = fmt.Errorf("%w: %w", errNotBegun, err)
	}
	return err
}

// notBegun is the error for err, of a worker that was reaped before it was ready: whether that is the module's fault is told by how it ended.
func (w *worker) notBegun(cfg *Config, err error) error {
	why, text, _ := w.died()
	late := (*lateError)(nil)
	switch {
	case errors.As(err, &late) && w.idled(cfg, late):
		return fmt.Errorf("%w: %w, and was held up meanwhile: this machine is too busy, or has too little memory", errNotBegun, late)
	case errors.As(err, &late):
		return &ModuleError{late.Error()}
	case errors.As(err, new(*ModuleError)):
	case why == executor.CauseOOMKilled:
		return &ModuleError{fmt.Sprintf("it takes more memory to be loaded than the %d MiB that there are for that (%s)", loading>>20, text)}
	case errors.Is(err, errNotBegun):
		err = fmt.Errorf("%w; %s", err, w.stderr) // which is whole since it was reaped
		if text != "" {
			err = fmt.Errorf("%w; %s", err, text)
		}
	}
	return err
}

// idled says whether a worker that was late hardly ran meanwhile: a module that is at fault keeps it busy. The shell is not: nothing of it
// runs before there is a task.
func (w *worker) idled(cfg *Config, late *lateError) bool {
	if w.cmd == nil {
		return cfg.shell
	}
	user, system := w.used()
	return cfg.shell || user+system < late.limit/20
}

// startHere starts it in this process.
func (w *worker) startHere() {
	in, ourIn := io.Pipe()
	ourOut, out := io.Pipe()
	w.in, w.out = ourIn, bufio.NewReaderSize(ourOut, 2*wire.MaxPiece)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		err := process.Serve(ctx, in, out, stop)
		stop()
		_ = in.Close()
		_ = out.CloseWithError(io.EOF)
		done <- err
	}()
	w.stop = func() {
		stop()
		_ = ourIn.Close()
		_ = ourOut.CloseWithError(io.ErrClosedPipe)
	}
	w.wait = sync.OnceValue(func() error {
		<-done // of what was stopped the error is that
		return nil
	})
	w.missing = []string{"a process of its own"}
}

// command makes the process's.
func (w *worker) command(argv []string, attr *syscall.SysProcAttr) {
	w.cmd = exec.Command(argv[0], argv[1:]...)
	w.cmd.Env = workerEnv()
	w.cmd.Stderr = w.stderr
	w.cmd.SysProcAttr = attr
}

// run starts what command made.
func (w *worker) run() (err error) {
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	w.out = bufio.NewReaderSize(out, 2*wire.MaxPiece)
	if err := w.cmd.Start(); err != nil {
		return err
	}
	w.wait = sync.OnceValue(w.cmd.Wait)
	return nil
}

// workerEnv is a worker's environment: what a system needs to run programs at all.
func workerEnv() []string {
	env := []string{}
	for _, kv := range os.Environ() {
		switch k, _, _ := strings.Cut(kv, "="); strings.ToUpper(k) {
		case "SYSTEMROOT", "GORACE", "GODEBUG", "GOTRACEBACK":
			env = append(env, kv)
		}
	}
	return env
}

const (
	// compiling is how long a module may take to be compiled, trying how long to be ready then, for which code of its own may run.
	compiling = 5 * time.Minute
	trying    = 30 * time.Second
	// loading is what it may have of memory while it loads the module, where the system can hold it to that.
	loading = 4 << 30
	// spare is what a worker may have beyond its task's memory: compiled code, what the tree knows, garbage.
	spare = 2 << 30
)

// load has it load the module, and waits for that.
func (w *worker) load(cfg *Config) error {
	// What it says about a wrong module comes before it has read all.
	sent := make(chan error, 1)
	go func() {
		err := wire.WriteJSON(w.in, wire.KindLoad, wire.Load{
			CodeDir: []byte(cfg.code), RealClock: cfg.RealClock, Again: cfg.shell && !cfg.RealClock && !cfg.InProcess, InProcess: cfg.InProcess, Asks: w.asks, Walls: w.walls,
		})
		sent <- errors.Join(err, wire.Write(w.in, wire.KindModule, cfg.Module))
	}()
	compiling, trying := cmp.Or(cfg.compiling, compiling), cmp.Or(cfg.trying, trying)
	var late atomic.Bool
	timer := time.AfterFunc(compiling, func() {
		late.Store(true)
		w.kill()
	})
	defer timer.Stop()
	compiled := false
	k, body, err := w.next()
	if err == nil && k == wire.KindCompiled {
		compiled = true
		timer.Reset(trying)
		var c wire.Compiled
		if err = json.Unmarshal(body, &c); err == nil {
			w.userBefore, w.systemBefore, w.unkept = c.CPUUser, c.CPUSystem, strings.ToValidUTF8(c.Unkept, "?")
			k, body, err = w.next()
		}
	}
	switch {
	case late.Load() && compiled:
		<-sent
		return &lateError{"be ready when it is compiled: what it runs at its start, in _initialize or ping does not come to an end", trying}
	case late.Load():
		<-sent
		return &lateError{"be compiled", compiling}
	case err != nil:
		w.kill()
		<-sent
		return begun(err)
	case k == wire.KindFailed:
		return &ModuleError{strings.ToValidUTF8(string(body), "?")}
	case k != wire.KindReady || len(body) == 0:
		return fmt.Errorf("a worker began with %q", k)
	}
	w.world = body[0] == 1
	if len(body) > 1 {
		w.lacks = strings.TrimPrefix(w.lacks+"; "+strings.ToValidUTF8(string(body[1:]), "?"), "; ")
	}
	return <-sent
}

// ModuleError says why the module cannot run tasks.
type ModuleError struct{ Text string }

// Error implements error.
func (e *ModuleError) Error() string { return e.Text }

// next is the next frame. The body is good until the next call.
func (w *worker) next() (wire.Kind, []byte, error) {
	k, body, err := wire.Read(w.out, wire.MaxFrame, w.buf)
	if cap(body) <= 4*wire.MaxPiece {
		w.buf = body[:cap(body)]
	}
	return k, body, err
}

// begin waits until it has taken a task.
func (w *worker) begin() error {
	k, body, err := w.next()
	if err == nil && k != wire.KindBegun {
		err = fmt.Errorf("a frame %q for a task", k)
	}
	if err != nil {
		return err
	}
	var u wire.Used
	err = json.Unmarshal(body, &u)
	w.userBefore, w.systemBefore = u.CPUUser, u.CPUSystem
	return err
}

// kill ends it at once, whatever it does.
func (w *worker) kill() {
	if w.cmd == nil {
		w.stop()
		return
	}
	_ = w.cmd.Process.Kill() // it fails for one that has ended
}

// used is what it has used of processors, of one that was reaped.
func (w *worker) used() (user, system time.Duration) {
	if w.cmd == nil {
		return 0, 0
	}
	s := w.cmd.ProcessState
	return max(0, s.UserTime()-w.userBefore), max(0, s.SystemTime()-w.systemBefore)
}

// close has it end.
func (w *worker) close() error {
	err := w.in.Close()
	return errors.Join(err, w.reap())
}

// reap waits for the end of one that was killed or closed.
func (w *worker) reap() error {
	err := w.wait()
	if w.files != nil {
		_ = w.files.Close() // it has no error worth a word, and may be the second
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// died says, of one that was reaped, why it did where the reason is the task's: for its memory, or by a signal.
func (w *worker) died() (why executor.Cause, text string, signal int) {
	if w.cmd == nil {
		return "", "", 0
	}
	s := w.cmd.ProcessState
	said := w.stderr.String()
	switch {
	case s == nil:
	case strings.Contains(said, "out of memory") || strings.Contains(said, "cannot allocate memory"):
		return executor.CauseOOMKilled, "the worker could get no more memory: " + s.String(), sigkill
	case signalOf(s) != 0:
		return executor.CauseSignaled, "wait status of the worker: " + s.String(), signalOf(s)
	}
	return "", "", 0
}

// head keeps the beginning of what a worker says that is no frame: why it crashed.
type head struct {
	mu sync.Mutex
	b  []byte
}

const maxHead = 4 << 10

// Write implements io.Writer.
func (h *head) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.b = append(h.b, b[:min(len(b), maxHead-len(h.b))]...)
	return len(b), nil
}

// String is what there is.
func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.b) == 0 {
		return "it said nothing"
	}
	return "it said " + strings.ToValidUTF8(string(h.b), "?")
}
