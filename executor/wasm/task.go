package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/action"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
	"github.com/sandboxd/sandboxd/executor/internal/flight"
	"github.com/sandboxd/sandboxd/executor/internal/placing"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

const (
	// searchPath is what tasks have as PATH: all tools are the module's own, wherever they are looked for.
	searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// maxFiles bounds what a task makes of files, directories and links.
	maxFiles = 1 << 18
	// sigkill is what a worker is killed by.
	sigkill = 9
	// exitTrap is the exit code of a module that trapped: that of abort(3).
	exitTrap = 128 + 6
)

// task is one call of Execute.
type task struct {
	*Executor
	spec      *executor.TaskSpec
	granted   granted
	env       map[string]string
	event     executor.EventFunc
	caller    executor.Caller
	paths     *caller.Paths
	files     *files
	signature action.Signature
	kept      bool // the result is in the cache
	// strained says that a success met a limit, and may have done less than it would have else: it is not stored.
	strained bool
}

// Execute implements executor.Executor.
func (e *Executor) Execute(ctx context.Context, spec *executor.TaskSpec) (out *executor.TaskOutput, err error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if err := e.life.Enter(); err != nil {
		return nil, err
	}
	defer func() { e.life.Leave(out) }()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(e.life.Context(), stop)()
	t := &task{
		Executor: e, spec: spec, event: executor.EventsFrom(ctx), caller: caller.Self(),
		env: action.Environment(searchPath, tree.HomeDir, spec.Env),
	}
	if c, ok := executor.CallerFrom(ctx); ok {
		t.caller = c
	}
	out, err = t.execute(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		err = executor.Errorf(executor.Canceled, "canceled before there was a result: %w", err)
	case executor.KindOf(err) == executor.Internal && full(err):
		err = executor.Errorf(executor.Unavailable, "%w", err) // another may have room
	}
	return out, err
}

func (t *task) execute(ctx context.Context) (_ *executor.TaskOutput, err error) {
	if err := t.admit(); err != nil {
		return nil, err
	}
	t.tell(executor.EventQueued)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if t.paths, err = caller.Open(t.caller, t.spec); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.paths.Close()) }()
	if t.spec.WorkdirMode == executor.WorkdirOverlay {
		if err := placing.Check(t.caller, t.paths.Work, t.spec.Outputs); err != nil {
			return nil, err
		}
	}
	t.files = &files{paths: t.paths}
	defer t.files.close()
	if t.spec.Cache == executor.CacheOff {
		return t.run(ctx, false)
	}
	if t.signature, err = t.sign(ctx); err != nil {
		return nil, err
	}
	return t.flight.Do(ctx, &flight.Task{
		Namespace: t.namespace(), Signature: t.signature, Sign: t.sign, Spec: t.spec, Caller: t.caller, Granted: t.granted, Event: t.event,
		Cache: t.cfg.Cache, Log: t.log, Place: t.place,
		Run: func(ctx context.Context) (flight.Result, error) {
			out, err := t.run(ctx, true)
			return flight.Result{Output: out, Kept: t.kept, Strained: t.strained}, err
		},
	})
}

func (t *task) tell(k executor.EventKind) {
	if t.event != nil {
		e := executor.TaskEvent{Kind: k}
		if k == executor.EventStarted {
			e.Platform = executor.PlatformWasm
		}
		t.event(e)
	}
}

// namespace keeps the results of users apart, and from those that need a Linux sandbox.
func (t *task) namespace() string { return "wasm-uid-" + strconv.FormatUint(uint64(t.caller.UID), 10) }

// place puts the outputs of a success into the work directory.
func (t *task) place(ctx context.Context, out *executor.TaskOutput) error {
	if t.spec.WorkdirMode != executor.WorkdirOverlay || !out.Success() {
		return nil
	}
	return t.journal.Place(ctx, t.cfg.Cache, t.caller, t.paths.Work, t.spec.Outputs, out.OutputFiles)
}

func (t *task) sign(ctx context.Context) (action.Signature, error) {
	return action.Sign(ctx, t.cfg.Cache, t.spec, t.env, t.paths.Files(), action.Ground{Platform: executor.PlatformWasm, Root: t.root})
}

// run runs the task, and stores the result if it may be.
func (t *task) run(ctx context.Context, store bool) (out *executor.TaskOutput, err error) {
	leave, err := flight.Take(ctx, t.caller, t.granted.Tasks, t.places)
	if err != nil {
		return nil, err
	}
	out, err = t.inWorker(ctx)
	leave()
	if err != nil {
		return nil, err
	}
	t.gc.Stored(action.BlobBytes(out))
	if store {
		out.Signature = executor.Signature(t.signature.String())
	}
	if store && out.Success() && !t.strained {
		err := t.store(ctx, out)
		if t.kept = err == nil; err != nil {
			// The task is done, and its caller has all that it asked for.
			t.log.WithError(err).WithField("signature", out.Signature).Warn("result is not cached")
		}
	}
	if err := t.place(ctx, out); err != nil {
		return nil, err
	}
	return out, nil
}

// store stores a success, if what it read is still what was hashed.
func (t *task) store(ctx context.Context, out *executor.TaskOutput) error {
	now, err := t.sign(ctx)
	if err != nil {
		return err
	}
	if now != t.signature {
		return errors.New("the work directory or an input changed while the task ran")
	}
	return action.Store(t.cfg.Cache, t.namespace(), t.signature, out)
}

// order is the task for a worker.
func (r *running) order(scratch string) (wire.Task, error) {
	t := r.task
	o := wire.Task{
		Argv: wire.Bytes(argv(t.spec)), Stdin: t.spec.Stdin, Outputs: wire.Bytes(t.spec.Outputs),
		WorkReadonly: t.spec.WorkdirMode == executor.WorkdirReadonly, Scratch: []byte(scratch),
		MemoryBytes: t.granted.memory, WorkBytes: t.granted.work, TmpBytes: t.granted.tmp, MaxFiles: t.cfg.files, MaxOpen: t.granted.openFiles,
	}
	env := maps.Clone(t.env)
	env["PWD"] = tree.WorkDir
	for _, k := range slices.Sorted(maps.Keys(env)) {
		o.Env = append(o.Env, []byte(k+"="+env[k]))
	}
	if t.paths.Work != nil {
		work, err := r.placeOf(t.spec.Workdir, t.paths.Work)
		if err != nil {
			return o, executor.FieldErrorf("workdir", "%w", err)
		}
		o.Work = &work
	}
	for i, in := range t.spec.Inputs {
		place, err := r.placeOf(in.Host, t.paths.Inputs[i])
		if err != nil {
			return o, executor.FieldErrorf("inputs", "%w", err)
		}
		o.Inputs = append(o.Inputs, wire.Input{Place: place, Target: []byte(in.Target())})
	}
	// The time of what is built, where whoever builds it has said so: see reproducible-builds.org.
	if s, err := strconv.ParseInt(env["SOURCE_DATE_EPOCH"], 10, 64); err == nil && s > 0 && s < 1<<33 {
		o.Epoch = s * int64(time.Second)
	}
	return o, nil
}

// placeOf tells a worker of what is open as f.
func (r *running) placeOf(host string, f *os.File) (p wire.Place, err error) {
	if !r.worker.asks {
		p.Host = []byte(host)
		return p, nil
	}
	fi, err := f.Stat()
	if err != nil {
		return p, err
	}
	p.Info = infoFor(infoOf(fi))
	return p, nil
}

// inWorker waits for a worker, has it run the task, and collects what it made.
func (t *task) inWorker(ctx context.Context) (*executor.TaskOutput, error) {
	var s *seat
	select {
	case s = <-t.seats:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { t.seats <- s }()
	for tries := 0; ; tries++ {
		if err := t.wait(ctx, s); err != nil {
			return nil, err
		}
		if s.err != nil {
			err := s.err
			s.fill(t.Executor, nil, nil)
			if bad := (*ModuleError)(nil); errors.As(err, &bad) {
				return nil, executor.Errorf(executor.Unsupported, "%w", bad)
			}
			return nil, executor.Errorf(executor.Unavailable, "%w", err)
		}
		out, err := t.with(ctx, s)
		if !errors.Is(err, errGone) || tries > 0 {
			return out, err
		}
	}
}

// patience is how long a task waits for a worker without a word: several times what one takes to load what was compiled.
const patience = 500 * time.Millisecond

// wait waits for a seat's worker, and says so where that takes long.
func (t *task) wait(ctx context.Context, s *seat) error {
	long := time.NewTimer(patience)
	defer long.Stop()
	for {
		select {
		case <-s.ready:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-long.C:
			if t.event != nil {
				t.event(executor.TaskEvent{Kind: executor.EventNotice, Text: "waiting for the WebAssembly module to be loaded; the first time it is compiled, which takes some seconds"})
			}
		}
	}
}

// canceled is the evidence of that.
const canceled = "the caller canceled it, or went away, or the executor stopped"

// errGone says that a worker had died before it was given the task.
var errGone = errors.New("a worker died while it had nothing to do")

// with runs the task with the worker of a seat.
func (t *task) with(ctx context.Context, s *seat) (out *executor.TaskOutput, err error) {
	if t.stranger() && len(s.worker.missing) > 0 {
		return nil, executor.Errorf(executor.Unsupported, "tasks of other users take a worker that is kept from the machine, and this system has not all that takes: %s (%s); "+
			"use an executor with sandboxes, or one of user %d", strings.Join(s.worker.missing, ", "), s.worker.lacks, t.caller.UID)
	}
	if s.worker.world {
		if err := t.forComponent(); err != nil {
			return nil, err
		}
	}
	r := &running{task: t, worker: s.worker, stdout: stream{t: t, kind: executor.EventStdout}, stderr: stream{t: t, kind: executor.EventStderr}}
	r.ctx, r.stop = context.WithCancel(ctx)
	defer r.stop()
	r.blobs = &blobs{task: t, ctx: r.ctx}
	if s.scratch == "" {
		if s.scratch, err = t.cfg.Cache.TempDir(); err != nil {
			return nil, err
		}
	}
	out, err = r.run(ctx, s.scratch)
	err = errors.Join(err, s.sweep())
	if r.lost {
		err = errors.Join(err, s.worker.reap())
		s.fill(t.Executor, nil, nil)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// running is a task in a worker.
type running struct {
	*task
	ctx            context.Context // ends with the task, for what the executor does for the worker
	stop           context.CancelFunc
	worker         *worker
	stdout, stderr stream
	outputs        []output
	names          int    // the bytes of the outputs'
	unkept         error  // why there are none in the cache
	blobs          *blobs // of a component
	undeclared     []string
	scratches      int  // files in the scratch directory
	begun          bool // the worker has taken it
	lost           bool // the worker is, and can run no more

	mu   sync.Mutex
	why  executor.Cause // the first reason for which we ended it
	text string
}

// end ends the task by killing its worker.
func (r *running) end(c executor.Cause, text string) {
	r.mu.Lock()
	if r.why == "" {
		r.why, r.text = c, text
	}
	r.mu.Unlock()
	r.stop()
	r.worker.kill()
}

// ended is why we ended it; empty if we did not.
func (r *running) ended() (executor.Cause, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.why, r.text
}

// run runs the task to its end.
func (r *running) run(ctx context.Context, scratch string) (*executor.TaskOutput, error) {
	limit := r.granted.Timeout
	r.tell(executor.EventStarted)
	began := time.Now()
	over := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		select {
		case <-over:
		case <-timer.C:
			r.end(executor.CauseTimedOut, fmt.Sprintf("still running after %v", limit))
		case <-ctx.Done():
			r.end(executor.CauseCanceled, canceled)
		}
	})
	done, err := r.converse(scratch)
	took := time.Since(began)
	close(over)
	watch.Wait()
	if err != nil && ctx.Err() != nil {
		r.end(executor.CauseCanceled, canceled)
	}
	why, text := r.ended()
	signal := sigkill
	if err != nil || why != "" {
		// What it is that a worker died of is the worker's to tell, unless we end it.
		itself := why == "" && !errors.Is(err, errGone) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF))
		r.lost = true
		r.worker.kill()
		err = errors.Join(err, r.worker.reap())
		if itself {
			why, text, signal = r.worker.died()
		}
	}
	if err != nil && why == "" {
		r.abort()
		return nil, fmt.Errorf("worker: %w; %s", err, r.worker.stderr)
	}
	out := &executor.TaskOutput{Platform: executor.PlatformWasm, Duration: took, UndeclaredWrites: r.undeclared}
	r.applied(out)
	if out.Stdout, out.Stderr, err = r.finish(); err != nil {
		return nil, err
	}
	if why != "" {
		if r.begun {
			out.Usage.CPUUser, out.Usage.CPUSystem = r.worker.used()
		}
		out.Cause, out.Evidence, out.Signal, out.ExitCode = why, text, signal, 128+signal
		return out, nil
	}
	return out, r.judge(ctx, scratch, done, out)
}

// applied says what the task ran under.
func (r *running) applied(out *executor.TaskOutput) {
	out.Applied = executor.Applied{
		Network: "none: a WebAssembly module has no network",
		Limits: map[string]string{
			"linear memory": strconv.FormatInt(r.granted.memory, 10), "/tmp": strconv.FormatInt(r.granted.tmp, 10),
			"/build": strconv.FormatInt(r.granted.work, 10), "open files": strconv.Itoa(r.granted.openFiles), "files": strconv.Itoa(r.cfg.files),
		},
		Sandbox: append([]string{"WebAssembly module in an instance of its own", "file system of its own"}, r.worker.stands...),
	}
}

// converse sends the order and takes what comes until the end of the task, or of the worker.
func (r *running) converse(scratch string) (*wire.Done, error) {
	o, err := r.order(scratch)
	if err != nil {
		return nil, err
	}
	if r.worker.cmd != nil {
		if err := r.worker.bound(r.granted); err != nil {
			return nil, errors.Join(errGone, err)
		}
	}
	if r.worker.world {
		o.Spec = r.componentSpec()
	}
	if err := wire.WriteJSON(r.worker.in, wire.KindTask, o); err != nil {
		return nil, errors.Join(errGone, err)
	}
	if err := r.worker.begin(); err != nil {
		return nil, errors.Join(errGone, err)
	}
	r.begun = true
	for {
		k, body, err := r.worker.next()
		if err != nil {
			return nil, err
		}
		switch k {
		case wire.KindStdout:
			err = r.take(&r.stdout, body)
		case wire.KindStderr:
			err = r.take(&r.stderr, body)
		case wire.KindFetch:
			err = r.reply(r.blobs.fetch(string(body)))
		case wire.KindStore:
			err = r.reply(r.blobs.store(body))
		case wire.KindFile:
			err = r.file(scratch, body)
		case wire.KindOutput:
			err = r.output(body)
		case wire.KindUndeclared:
			err = r.undeclare(body)
		case wire.KindDone:
			d := &wire.Done{}
			return d, json.Unmarshal(body, d)
		default:
			err = fmt.Errorf("a frame %q has no place here", k)
		}
		if err != nil {
			return nil, err
		}
	}
}

// undeclare takes note of a write that is dropped: a path, and a word of what became of it.
func (r *running) undeclare(body []byte) error {
	if len(body) > 2*executor.MaxPathBytes {
		return fmt.Errorf("a path of %d bytes", len(body))
	}
	if len(r.undeclared) < executor.MaxListed {
		r.undeclared = append(r.undeclared, string(body))
	}
	return nil
}

// visible is a module's text without what a terminal would obey.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return '?'
		}
		return r
	}, s)
}

// take takes a piece of a stream.
func (r *running) take(s *stream, p []byte) error {
	full := int64(len(p)) > r.granted.LogBytes-s.n
	if err := s.take(p[:min(int64(len(p)), r.granted.LogBytes-s.n)]); err != nil {
		return err
	}
	if full {
		r.end(executor.CauseOutputLimit, fmt.Sprintf("standard output or error was longer than %d bytes", r.granted.LogBytes))
	}
	return nil
}

func (r *running) abort() {
	r.stdout.abort()
	r.stderr.abort()
}

func (r *running) finish() (stdout, stderr executor.Stream, err error) {
	stdout, err = r.stdout.finish()
	stderr, err2 := r.stderr.finish()
	return stdout, stderr, errors.Join(err, err2)
}

// stream is standard output or error.
type stream struct {
	t    *task
	kind executor.EventKind
	head []byte
	n    int64
	blob *cache.Writer // the whole, once it is more than head
}

// take tells of p, and keeps it.
func (s *stream) take(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if s.t.event != nil {
		s.t.event(executor.TaskEvent{Kind: s.kind, Data: p})
	}
	s.n += int64(len(p))
	var err error
	if s.blob == nil && s.n > executor.InlineBytes {
		if s.blob, err = s.t.cfg.Cache.Create(); err != nil {
			s.blob = nil
			return err
		}
		if _, err = s.blob.Write(s.head); err != nil {
			return err
		}
	}
	s.head = append(s.head, p[:min(len(p), executor.InlineBytes-len(s.head))]...)
	if s.blob != nil {
		_, err = s.blob.Write(p)
	}
	return err
}

func (s *stream) abort() {
	if s.blob != nil {
		s.blob.Abort()
	}
}

func (s *stream) finish() (executor.Stream, error) {
	out := executor.Stream{Inline: s.head}
	if s.blob == nil {
		return out, nil
	}
	d, err := s.blob.Commit()
	out.Digest, out.Truncated = executor.Digest(d), true
	return out, err
}
