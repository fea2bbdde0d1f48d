package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor"
)

// TestMain is the program itself where a test runs it as a process of its own.
func TestMain(m *testing.M) {
	if os.Getenv("SANDBOXD_TEST_AS_PROGRAM") == "1" {
		os.Exit(run(context.Background(), systemEnv()))
	}
	os.Exit(m.Run())
}

// scripted is a host whose tasks do what the test says.
type scripted struct {
	run   func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error)
	blobs map[executor.Digest]string

	mu      sync.Mutex
	closed  bool
	refuses bool
	sick    error
	config  config // the last that it was given
}

// Healthy implements host.
func (s *scripted) Healthy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sick
}

// Reconfigure implements host.
func (s *scripted) Reconfigure(c config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config = c
}

// Refuse implements host.
func (s *scripted) Refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuses = true
}

func (s *scripted) Execute(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
	return s.run(ctx, spec)
}

func (s *scripted) Capabilities(context.Context) (executor.Capabilities, error) {
	return executor.Capabilities{Sandboxing: true, MaxParallel: 3, Networks: []string{"isolated"}, Version: "test", Missing: []string{"io_weight: use cgroup v2"}}, nil
}

func (s *scripted) Status(context.Context) (executor.Status, error) {
	return executor.Status{Healthy: true, Executed: 5, Successful: 4, Failed: 1, CacheHits: 2}, nil
}

func (s *scripted) Close(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *scripted) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *scripted) OpenBlob(_ context.Context, d executor.Digest) (io.ReadCloser, error) {
	b, ok := s.blobs[d]
	if !ok {
		return nil, executor.Errorf(executor.Unavailable, "blob %v is gone", d)
	}
	return io.NopCloser(strings.NewReader(b)), nil
}

// results makes a host of which every task ends with o.
func results(o executor.TaskOutput) *scripted {
	return &scripted{run: func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) { return &o, nil }}
}

// socketDir is a directory whose name is short enough for sockets.
func socketDir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "sd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

// watched is a buffer that tells when a text has been written.
type watched struct {
	mu   sync.Mutex
	cond *sync.Cond
	b    bytes.Buffer
	over bool
}

func newWatched() *watched {
	w := &watched{}
	w.cond = sync.NewCond(&w.mu)
	return w
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cond.Broadcast()
	return w.b.Write(p)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// end says that no more will be written.
func (w *watched) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.cond.Broadcast()
}

// await returns once s was written; false if it never will be.
func (w *watched) await(s string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !strings.Contains(w.b.String(), s) {
		if w.over {
			return false
		}
		w.cond.Wait()
	}
	return true
}

// testEnv is an env that takes nothing from this process.
func testEnv(args ...string) (env, *bytes.Buffer, *watched) {
	var out bytes.Buffer
	errs := newWatched()
	p := systemParts()
	p.openHost = func(context.Context, config, logrus.FieldLogger) (host, error) {
		return nil, executor.Errorf(executor.Internal, "no host in this test")
	}
	return env{
		args: args, stdin: strings.NewReader(""), stdout: &out, stderr: errs,
		getenv: func(string) string { return "" }, signals: make(chan os.Signal), parts: p,
		supervisor: func() (supervisor, error) { return supervisor{}, nil },
	}, &out, errs
}

type daemon struct {
	dir, socket string
	log         *watched
	signals     chan os.Signal
	exit        chan int
}

// startDaemon runs serve with h behind a real socket, and stops it with the test.
func startDaemon(t *testing.T, h host, args ...string) *daemon {
	t.Helper()
	dir := socketDir(t)
	d := &daemon{dir: dir, socket: filepath.Join(dir, "s.sock"), signals: make(chan os.Signal), exit: make(chan int, 1)}
	e, _, errs := testEnv(append([]string{"serve", "--socket", d.socket, "--state-dir", dir + "/state", "--cache-dir", dir + "/cache"}, args...)...)
	e.signals = d.signals
	e.parts.openHost = func(context.Context, config, logrus.FieldLogger) (host, error) { return h, nil }
	d.log = errs
	go func() {
		d.exit <- run(context.Background(), e)
		errs.end()
	}()
	if !errs.await(`"msg":"ready"`) {
		t.Fatalf("the daemon did not start: %s", errs)
	}
	t.Cleanup(func() { d.stop(t) })
	return d
}

// stop returns the exit status; later calls do nothing.
func (d *daemon) stop(t *testing.T) int {
	t.Helper()
	if d.signals == nil {
		return 0
	}
	select {
	case d.signals <- syscall.SIGTERM:
	case code := <-d.exit:
		t.Fatalf("the daemon was gone: %d %s", code, d.log)
	}
	d.signals = nil
	return <-d.exit
}

// client runs a command against d.
func (d *daemon) client(stdin, command string, args ...string) (code int, stdout, stderr string) {
	e, out, errs := testEnv(append([]string{command, "--socket", d.socket}, args...)...)
	e.stdin = strings.NewReader(stdin)
	code = run(context.Background(), e)
	return code, out.String(), errs.String()
}
