package wasm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/action"
)

// Executor runs tasks in WebAssembly. It is an executor.Executor.
type Executor struct {
	cfg   Config
	log   logrus.FieldLogger
	root  string // names what tasks run on, in their signatures
	seats chan *seat
	gc    *action.Collector
	born  time.Time
	stop  chan struct{} // closed by Close: workers that load give up

	mu     sync.Mutex
	status executor.Status
	closed bool
	idle   chan struct{} // closed when closed and no task is left
	life   context.Context
	cancel context.CancelFunc
	once   sync.Once
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
		cfg: cfg, log: cfg.Logger, born: time.Now(), stop: make(chan struct{}), idle: make(chan struct{}),
		root: "wasm " + cache.DigestOf(cfg.Module).String(), seats: make(chan *seat, cfg.MaxParallel),
	}
	if cfg.RealClock {
		e.root += " real-clock"
	}
	e.gc = action.NewCollector(cfg.Cache, cfg.Logger)
	e.life, e.cancel = context.WithCancel(context.Background())
	e.status.Healthy = true
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
		s.worker, s.err = startWorker(&e.cfg, e.stop)
	}()
}

// Close implements executor.Executor.
func (e *Executor) Close(ctx context.Context) error {
	e.mu.Lock()
	first := !e.closed
	e.closed, e.status.Healthy = true, false
	if e.status.Active == 0 {
		e.once.Do(func() { close(e.idle) })
	}
	e.mu.Unlock()
	select {
	case <-e.idle:
	case <-ctx.Done():
		e.cancel()
		<-e.idle
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cancel()
	if !first {
		return e.end
	}
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
	e.end = errors.Join(errs...)
	return e.end
}

// enter counts a task in.
func (e *Executor) enter() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return executor.Errorf(executor.Unavailable, "the executor is closed; try another")
	}
	e.status.Active++
	return nil
}

// leave counts it out.
func (e *Executor) leave(out *executor.TaskOutput) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.status.Active--
	e.status.Executed++
	if out != nil && out.Success() {
		e.status.Successful++
	} else {
		e.status.Failed++
	}
	if out != nil && out.Cached {
		e.status.CacheHits++
	}
	if e.closed && e.status.Active == 0 {
		e.once.Do(func() { close(e.idle) })
	}
}

// Status implements executor.Executor.
func (e *Executor) Status(context.Context) (executor.Status, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.status
	s.Uptime = time.Since(e.born)
	return s, nil
}

// Capabilities implements executor.Executor.
func (e *Executor) Capabilities(context.Context) (executor.Capabilities, error) {
	return executor.Capabilities{
		Sandboxing: true, NetworkIsolation: true, Caching: true,
		MaxParallel: e.cfg.MaxParallel,
		Platforms:   []string{"wasip1/wasm"},
		Version:     e.cfg.Version,
		Networks:    []string{executor.NetworkIsolated.String(), executor.NetworkLoopback.String()},
		Limits:      []string{"memory_bytes", "tmp_bytes", "open_files", "output_bytes"},
		Missing: []string{
			"programs of " + runtime.GOOS + "/" + runtime.GOARCH + ": a task has the tools of its module alone; use an executor with sandboxes",
			"networks controlled and full, work directories of mode direct, CPU quotas and I/O weights: use an executor with sandboxes",
		},
	}, nil
}

// Healthy returns an error if no task can be started.
func (e *Executor) Healthy() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return executor.Errorf(executor.Unavailable, "the executor is closed")
	}
	return nil
}

// OpenBlob returns a blob's content, verified. The error of one that is not there is an fs.ErrNotExist.
func (e *Executor) OpenBlob(_ context.Context, d executor.Digest) (io.ReadCloser, error) {
	b, err := e.cfg.Cache.Open(cache.Digest(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, executor.Errorf(executor.Invalid, "blob %s is not in the cache; run the task again with cache mode refresh: %w", d, err)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}
