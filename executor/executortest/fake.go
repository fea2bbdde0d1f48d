// Package executortest is for the tests of Executors: a Fake, and the suite
// that every Executor passes.
package executortest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// fakeParallel is small enough for a test to see tasks wait.
const fakeParallel = 16

// fakeLogBytes bounds each stream where the task sets no limit: it is held in memory.
const fakeLogBytes = 64 << 20

var (
	errTimeout = errors.New("the timer fired")
	errLimit   = errors.New("a stream grew past its limit")
	errClosed  = errors.New("the executor was closed")
)

// Fake is an Executor for tests: it runs tasks as plain processes of the machine,
// with the caller's whole power, in the workdir itself. It enforces timeout and
// OutputBytes and nothing else, and says so in its Capabilities. It keeps the
// blobs of its results in memory, see OpenBlob.
type Fake struct {
	began time.Time
	base  context.Context
	end   context.CancelCauseFunc
	slots chan struct{}

	mu     sync.Mutex
	closed bool
	tasks  sync.WaitGroup // Add only while !closed
	status executor.Status
	blobs  map[executor.Digest][]byte
}

// NewFake returns a Fake, which the caller closes.
func NewFake() *Fake {
	f := &Fake{began: time.Now(), slots: make(chan struct{}, fakeParallel), blobs: map[executor.Digest][]byte{}}
	f.base, f.end = context.WithCancelCause(context.Background())
	return f
}

// Execute implements Executor.
func (f *Fake) Execute(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil, executor.Errorf(executor.Unavailable, "executor is closed; use another")
	}
	f.tasks.Add(1)
	f.mu.Unlock()
	defer f.tasks.Done()
	out, err := f.execute(ctx, spec)
	f.mu.Lock()
	f.status.Executed++
	if err == nil && out.Success() {
		f.status.Successful++
	} else {
		f.status.Failed++
	}
	f.mu.Unlock()
	if err != nil {
		return nil, executor.AsError(err)
	}
	return out, nil
}

func (f *Fake) execute(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
	if err := check(spec); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(f.base, func() { cancel(errClosed) })()
	ev := &events{f: executor.EventsFrom(ctx)}
	ev.send(executor.TaskEvent{Kind: executor.EventQueued})
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return nil, executor.Errorf(executor.Canceled, "the task was canceled before it started: %w", context.Cause(ctx))
	}
	f.active(1)
	defer f.active(-1)
	dir, err := os.MkdirTemp("", "fake-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r := &run{spec: spec, dir: dir, workdir: spec.Workdir, events: ev, cancel: cancel}
	if r.workdir == "" {
		r.workdir = dir
	}
	out, err := r.run(ctx)
	if err != nil {
		return nil, err
	}
	out.Stdout, out.Stderr = f.stream(r.stdout.Bytes()), f.stream(r.stderr.Bytes())
	return out, f.collect(r.workdir, spec, out)
}

// check refuses what would run but mean something else than asked.
func check(spec *executor.TaskSpec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	if err := spec.CheckPlatform(executor.PlatformNative); err != nil {
		return err
	}
	for _, in := range spec.Inputs {
		if in.Target() != in.Host {
			return executor.Errorf(executor.Unsupported, "inputs cannot be moved without a sandbox; use their own paths")
		}
	}
	switch {
	case spec.Network == executor.NetworkControlled:
		return executor.Errorf(executor.Unsupported, "network %s needs a sandbox", spec.Network)
	case spec.Rootfs != "":
		return executor.Errorf(executor.Unsupported, "rootfs needs a sandbox")
	case spec.WorkdirMode == executor.WorkdirReadonly:
		return executor.Errorf(executor.Unsupported, "workdir mode %s needs a sandbox", spec.WorkdirMode)
	}
	if fi, err := os.Stat(spec.Workdir); spec.Workdir != "" && (err != nil || !fi.IsDir()) {
		return executor.FieldErrorf("workdir", "%q is no directory; make it first", spec.Workdir)
	}
	return nil
}

func (f *Fake) active(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Active += n
}

// events passes a task's events on, one at a time.
type events struct {
	mu sync.Mutex
	f  executor.EventFunc
}

func (e *events) send(ev executor.TaskEvent) {
	if e.f == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.f(ev)
}

// run is one task as a process.
type run struct {
	spec           *executor.TaskSpec
	dir, workdir   string
	events         *events
	cancel         context.CancelCauseFunc
	stdout, stderr bytes.Buffer
}

func (r *run) run(ctx context.Context) (*executor.TaskOutput, error) {
	argv, err := r.argv()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin = r.workdir, r.env(), bytes.NewReader(r.spec.Stdin)
	// Stdin is copied by a goroutine, which a task that reads none of it may outlast.
	cmd.WaitDelay = time.Second
	group(cmd)
	finish, err := r.capture(cmd)
	if err != nil {
		return nil, err
	}
	r.events.send(executor.TaskEvent{Kind: executor.EventStarted, Platform: executor.PlatformNative})
	began := time.Now()
	if err = cmd.Start(); err != nil {
		finish()
		if ctx.Err() != nil {
			return nil, executor.Errorf(executor.Canceled, "the task was canceled before it started: %w", context.Cause(ctx))
		}
		fmt.Fprintf(&r.stderr, "%v\n", err)
		return &executor.TaskOutput{Platform: executor.PlatformNative, Cause: executor.CauseExited, ExitCode: 127}, nil
	}
	timeout := r.spec.Timeout
	if timeout == 0 {
		timeout = executor.DefaultTimeout
	}
	timer := time.AfterFunc(timeout, func() { r.cancel(errTimeout) })
	defer timer.Stop()
	_ = cmd.Wait() // the ProcessState has all of it
	killGroup(cmd)
	finish()
	out := &executor.TaskOutput{Platform: executor.PlatformNative, Duration: time.Since(began)}
	out.Usage.CPUUser, out.Usage.CPUSystem = cmd.ProcessState.UserTime(), cmd.ProcessState.SystemTime()
	r.verdict(ctx, cmd.ProcessState, out)
	return out, nil
}

// argv names the command; a script is put into a file for it.
func (r *run) argv() ([]string, error) {
	if len(r.spec.Argv) > 0 {
		return r.spec.Argv, nil
	}
	file := filepath.Join(r.dir, ".script")
	if err := os.WriteFile(file, []byte(r.spec.Script), 0o600); err != nil {
		return nil, err
	}
	if first, _, _ := strings.Cut(r.spec.Script, "\n"); strings.HasPrefix(first, "#!") {
		if f := strings.Fields(first[2:]); len(f) > 0 {
			return append(f, file), nil
		}
	}
	return []string{"sh", "-e", file}, nil
}

func (r *run) env() []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir, "LANG=C.UTF-8", "TMPDIR=" + r.dir, "USER=build"}
	for k, v := range r.spec.Env {
		env = append(env, k+"="+v) // the last of a name holds
	}
	return env
}

// capture readies both streams of cmd; the returned function ends them, and is
// called when the task's processes are gone or to be given up.
func (r *run) capture(cmd *exec.Cmd) (finish func(), err error) {
	limit := r.spec.Limits.OutputBytes
	if limit <= 0 {
		limit = fakeLogBytes
	}
	var reads, writes []*os.File
	var wg sync.WaitGroup
	finish = func() {
		for _, w := range writes {
			_ = w.Close()
		}
		for _, p := range reads {
			// Whoever left the process group may hold the other end for ever.
			if p.SetReadDeadline(time.Now().Add(time.Second)) != nil {
				_ = p.Close()
			}
		}
		wg.Wait()
		for _, p := range reads {
			_ = p.Close()
		}
	}
	for _, s := range []struct {
		to   *io.Writer
		kind executor.EventKind
		buf  *bytes.Buffer
	}{{&cmd.Stdout, executor.EventStdout, &r.stdout}, {&cmd.Stderr, executor.EventStderr, &r.stderr}} {
		p, w, err := os.Pipe()
		if err != nil {
			finish()
			return nil, err
		}
		reads, writes = append(reads, p), append(writes, w)
		*s.to = w
		wg.Go(func() { r.copy(s.kind, s.buf, p, limit) })
	}
	return finish, nil
}

func (r *run) copy(kind executor.EventKind, buf *bytes.Buffer, from io.Reader, limit int64) {
	piece := make([]byte, 32<<10)
	for {
		n, err := from.Read(piece)
		if room := limit - int64(buf.Len()); int64(n) > room {
			n = int(room)
			r.cancel(errLimit)
		}
		if n > 0 {
			buf.Write(piece[:n])
			r.events.send(executor.TaskEvent{Kind: kind, Data: piece[:n]})
		}
		if err != nil {
			return
		}
	}
}

// verdict says how the task ended: by itself, or by the kill that ctx caused.
func (r *run) verdict(ctx context.Context, s *os.ProcessState, out *executor.TaskOutput) {
	out.Signal = signal(s)
	out.ExitCode, out.Cause = s.ExitCode(), executor.CauseExited
	if out.Signal != 0 {
		out.ExitCode, out.Cause = 128+out.Signal, executor.CauseSignaled
	}
	why := context.Cause(ctx)
	switch {
	case errors.Is(why, errLimit): // whatever it made of it
		out.Cause = executor.CauseOutputLimit
	case why == nil || out.Signal == 0 && runtime.GOOS != "windows":
		return
	case errors.Is(why, errTimeout):
		out.Cause = executor.CauseTimedOut
	default:
		out.Cause = executor.CauseCanceled
	}
	out.Evidence = why.Error()
}

// stream makes a Stream and keeps its blob.
func (f *Fake) stream(b []byte) executor.Stream {
	n := min(len(b), executor.InlineBytes)
	return executor.Stream{Inline: b[:n:n], Digest: f.keep(b), Truncated: n < len(b)}
}

func (f *Fake) keep(b []byte) executor.Digest {
	sum := sha256.Sum256(b)
	d := executor.Digest{Hash: hex.EncodeToString(sum[:]), Size: int64(len(b))}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blobs[d] = b
	return d
}

// collect takes the declared outputs of a task that succeeded.
func (f *Fake) collect(workdir string, spec *executor.TaskSpec, out *executor.TaskOutput) error {
	if !out.Success() {
		return nil
	}
	root, err := os.OpenRoot(workdir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for _, o := range spec.Outputs {
		if _, err := root.Lstat(o); err != nil {
			out.MissingOutputs = append(out.MissingOutputs, o)
			continue
		}
		err := fs.WalkDir(root.FS(), o, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			file, err := f.file(root, p)
			out.OutputFiles = append(out.OutputFiles, file)
			return err
		})
		if err != nil {
			return err
		}
	}
	if !out.Success() {
		out.OutputFiles = nil
	}
	slices.SortFunc(out.OutputFiles, func(a, b executor.OutputFile) int { return strings.Compare(a.Path, b.Path) })
	return nil
}

func (f *Fake) file(root *os.Root, p string) (executor.OutputFile, error) {
	fi, err := root.Lstat(p)
	if err != nil {
		return executor.OutputFile{}, err
	}
	out := executor.OutputFile{Path: p, Mode: uint32(fi.Mode().Perm())}
	switch {
	case fi.IsDir():
		out.Kind = executor.KindDir
	case fi.Mode()&fs.ModeSymlink != 0:
		out.Kind = executor.KindSymlink
		out.Target, err = root.Readlink(p)
	case fi.Mode().IsRegular():
		var b []byte
		out.Kind = executor.KindFile
		if b, err = root.ReadFile(p); err == nil {
			out.Digest = f.keep(b)
		}
	default:
		err = executor.FieldErrorf("outputs", "%q is neither file, directory nor symlink; leave it out", p)
	}
	return out, err
}

// OpenBlob opens a blob of a result.
func (f *Fake) OpenBlob(_ context.Context, d executor.Digest) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.blobs[d]
	if !ok {
		return nil, executor.Errorf(executor.Unavailable, "blob %v is not here; run its task again", d)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// Capabilities implements Executor.
func (f *Fake) Capabilities(context.Context) (executor.Capabilities, error) {
	return executor.Capabilities{
		MaxParallel: fakeParallel,
		Platforms:   []string{executor.PlatformNative},
		Version:     "fake",
		Networks:    []string{executor.NetworkFull.String()},
		Limits:      []string{"output_bytes"},
		Missing:     []string{"everything that keeps a task apart: this executor is for tests; use another for real tasks"},
	}, nil
}

// Status implements Executor.
func (f *Fake) Status(context.Context) (executor.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.status
	s.Healthy, s.Uptime = !f.closed, time.Since(f.began)
	return s, nil
}

// Close implements Executor.
func (f *Fake) Close(ctx context.Context) error {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	defer context.AfterFunc(ctx, func() { f.end(errClosed) })()
	f.tasks.Wait()
	return nil
}
