package wasm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/access"
	"github.com/sandboxd/sandboxd/executor/internal/action"
	"github.com/sandboxd/sandboxd/executor/internal/flight"
	"github.com/sandboxd/sandboxd/executor/internal/life"
	"github.com/sandboxd/sandboxd/executor/internal/placing"
	"github.com/sandboxd/sandboxd/executor/internal/statedir"
)

// Executor runs tasks in WebAssembly. It is an executor.Executor.
type Executor struct {
	cfg   Config
	log   logrus.FieldLogger
	root  string // names what tasks run on, in their signatures
	seats chan *seat
	gc    *action.Collector
	stop  chan struct{} // closed by Close: workers that load give up

	journal *placing.Journal // nil without a state directory
	lock    *os.File
	access  atomic.Pointer[access.Rules]
	flight  flight.Group
	lacks   atomic.Pointer[string]
	unkept  atomic.Bool   // the last worker's code was not kept
	alone   sync.Mutex    // held by a worker that starts where that is so: each compiles, with as much memory
	places  chan struct{} // one for each worker, where nobody gives turns

	life *life.Life

	mu     sync.Mutex
	closed bool
	end    error
}

var _ executor.Executor = (*Executor)(nil)

// New checks cfg, and starts loading the module in the background, which takes seconds where
// nothing of it is in the CodeDir. A module that cannot be loaded fails the tasks.
func New(cfg Config) (*Executor, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("wasm executor: %w", err)
	}
	e := &Executor{
		cfg: cfg, log: cfg.Logger, life: life.New(), stop: make(chan struct{}),
		root: "wasm " + cfg.digest.String(), seats: make(chan *seat, cfg.MaxParallel),
	}
	e.places = make(chan struct{}, cfg.MaxParallel)
	e.Reconfigure(cfg.Access)
	if cfg.RealClock {
		e.root += " real-clock"
	}
	if err := e.openState(); err != nil {
		return nil, fmt.Errorf("wasm executor: %w", err)
	}
	e.gc = action.NewCollector(cfg.Cache, cfg.Logger)
	if cfg.unkept != nil {
		e.unkept.Store(true)
		e.warnUnkept(cfg.unkept.Error())
	}
	if cfg.code != "" {
		go e.stay()
	}
	// The first worker compiles, for all.
	first := make(chan struct{})
	for i := range cfg.MaxParallel {
		s := &seat{}
		if i == 0 {
			s.fill(e, nil, first)
		} else {
			s.fill(e, first, nil)
		}
		e.seats <- s
	}
	return e, nil
}

// openState takes the state directory, and cleans up what a killed executor was putting in place.
func (e *Executor) openState() (err error) {
	if e.cfg.StateDir == "" || runtime.GOOS != "linux" {
		return nil
	}
	if e.lock, err = statedir.Open(e.cfg.StateDir); errors.Is(err, fs.ErrPermission) {
		e.log.WithError(err).Warn("without a state directory, what is half in place in a work directory stays there if this process is killed; choose one with --state-dir")
		return nil
	}
	if err != nil {
		return err
	}
	left := 0
	if e.journal, left, err = placing.Open(filepath.Join(e.cfg.StateDir, "placing"), e.log); err != nil {
		return errors.Join(err, e.lock.Close())
	}
	if left > 0 {
		e.log.WithField("outputs", left).Info("removed what a killed daemon had left")
	}
	return nil
}

// closeState undoes it.
func (e *Executor) closeState() (err error) {
	if e.journal != nil {
		err = e.journal.Close()
	}
	if e.lock != nil {
		err = errors.Join(err, e.lock.Close())
	}
	return err
}

// seat is the place of one worker.
type seat struct {
	// ready is closed when worker or err is set.
	ready  chan struct{}
	worker *worker
	err    error
	// scratch is an empty directory for what a task writes; "" if there is none yet.
	scratch string
}

// sweep removes what a task left in the scratch directory.
func (s *seat) sweep() error {
	d, err := os.Open(s.scratch)
	if err == nil {
		_, err = d.Readdirnames(1)
		err = errors.Join(err, d.Close())
	}
	if errors.Is(err, io.EOF) { // it is empty
		return nil
	}
	err, s.scratch = os.RemoveAll(s.scratch), ""
	return err
}

// fill starts a worker, once after is closed, and closes done if that is not nil.
func (s *seat) fill(e *Executor, after <-chan struct{}, done chan<- struct{}) {
	s.ready, s.worker, s.err = make(chan struct{}), nil, nil
	ready := s.ready
	go func() {
		defer close(ready)
		if done != nil {
			defer close(done)
		}
		if after != nil {
			<-after
		}
		if e.unkept.Load() {
			e.alone.Lock()
			defer e.alone.Unlock()
		}
		if s.worker, s.err = startWorker(&e.cfg, e.stop); s.err == nil {
			e.see(s.worker)
			e.seeKept(s.worker)
		}
	}()
}

// seeKept notes whether a worker's code was kept, and says so once where it was not.
func (e *Executor) seeKept(w *worker) {
	if e.cfg.unkept != nil {
		return // it was said at once
	}
	if before := e.unkept.Swap(w.unkept != ""); !before && w.unkept != "" {
		e.warnUnkept(w.unkept)
	}
}

func (e *Executor) warnUnkept(why string) {
	e.log.WithFields(logrus.Fields{"dir": e.cfg.CodeDir, "reason": why}).Warn("compiled WebAssembly is not kept: each worker compiles its module, for seconds " +
		"and with some hundred MB of memory, and has the code for itself; make room and give rights there, or choose another directory with [wasm] code_dir")
}

// stay keeps others from removing the compiled code while this executor is there, however old it is.
func (e *Executor) stay() {
	tick := time.NewTicker(cmp.Or(e.cfg.touching, unused/30))
	defer tick.Stop()
	for {
		select {
		case <-e.stop:
			return
		case now := <-tick.C:
			_ = os.Chtimes(e.cfg.code, now, now) // what cannot be kept is compiled anew
		}
	}
}

// Reconfigure sets who may have what, for tasks that come from now on.
func (e *Executor) Reconfigure(a access.Rules) { e.access.Store(&a) }

// TakesTurns is true: a task takes its turn (see executor.WithTurn) when it is opened, signed and not in the
// cache, and gives it back once its worker has no more to do with it.
func (e *Executor) TakesTurns() bool { return true }

// see notes which walls a worker lacks, and says so once.
func (e *Executor) see(w *worker) {
	lacks := ""
	if len(w.missing) > 0 {
		lacks = strings.Join(w.missing, ", ")
		if w.lacks != "" {
			lacks += " (" + w.lacks + ")"
		}
	}
	if before := e.lacks.Swap(&lacks); before == nil && lacks != "" && !e.cfg.InProcess {
		e.log.WithField("missing", lacks).Warn("workers are not kept from the machine by all that Linux has for that")
	}
}

// Lacks says what keeps workers from the machine on Linux and does not here, if anything. Before there is a worker it is empty.
func (e *Executor) Lacks() string {
	if l := e.lacks.Load(); l != nil {
		return *l
	}
	return ""
}

// Close implements executor.Executor.
func (e *Executor) Close(ctx context.Context) error {
	e.life.Close(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return e.end
	}
	e.closed = true
	close(e.stop)
	e.gc.Close(ctx)
	var errs []error
	for range e.cfg.MaxParallel {
		s := <-e.seats
		<-s.ready
		if s.worker != nil {
			errs = append(errs, s.worker.close())
		}
	}
	e.end = errors.Join(append(errs, e.closeState())...)
	return e.end
}

// Status implements executor.Executor.
func (e *Executor) Status(context.Context) (executor.Status, error) {
	return e.life.Status(), nil
}

// Capabilities implements executor.Executor.
func (e *Executor) Capabilities(context.Context) (executor.Capabilities, error) {
	c := executor.Capabilities{
		Sandboxing: true, NetworkIsolation: true, Caching: true,
		MaxParallel: e.cfg.MaxParallel,
		Platforms:   []string{executor.PlatformWasm},
		Version:     e.cfg.Version,
		Networks:    []string{executor.NetworkIsolated.String(), executor.NetworkLoopback.String()},
		Limits:      []string{"memory_bytes", "tmp_bytes", "open_files", "output_bytes"},
		Missing: []string{
			"programs of " + runtime.GOOS + "/" + runtime.GOARCH + ": a task has the tools of its module alone; use an executor with sandboxes",
			"networks controlled and full, work directories of mode direct, CPU quotas and I/O weights: use an executor with sandboxes",
		},
	}
	if l := e.Lacks(); l != "" {
		c.Missing = append(c.Missing, "of what keeps workers from the machine: "+l+"; tasks of other users are refused for it")
	}
	return c, nil
}

// Healthy returns an error if no task can be started.
func (e *Executor) Healthy() error {
	if !e.life.Status().Healthy {
		return executor.Errorf(executor.Unavailable, "the executor is closed")
	}
	return nil
}

// OpenBlob returns a blob's content, verified. The error of one that is not there is an fs.ErrNotExist.
func (e *Executor) OpenBlob(_ context.Context, d executor.Digest) (io.ReadCloser, error) {
	return action.OpenBlob(e.cfg.Cache, d)
}
