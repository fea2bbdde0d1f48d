package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/access"
	"github.com/sandboxd/sandboxd/executor/internal/action"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
	"github.com/sandboxd/sandboxd/executor/internal/flight"
	"github.com/sandboxd/sandboxd/executor/internal/placing"
	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/sandbox"
)

// grace is how long a task may take to end after SIGTERM.
const grace = 5 * time.Second

// task is one call of Execute.
type task struct {
	*Executor
	spec    *executor.TaskSpec
	granted access.Granted
	limits  executor.ResourceLimits
	caller  executor.Caller
	paths   *caller.Paths
	root    *rootfs.Rootfs
	router  netpolicy.RouterSpec // of a controlled network
	// leaveRoot is called once.
	leaveRoot func() error
	event     executor.EventFunc

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
	t := &task{Executor: e, spec: spec, caller: caller.Self(), event: executor.EventsFrom(ctx)}
	if c, ok := executor.CallerFrom(ctx); ok {
		t.caller = c
	}
	if err := e.life.Enter(); err != nil {
		return nil, err
	}
	defer func() { e.life.Leave(out) }()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(e.life.Context(), stop)()
	out, err = t.execute(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		err = executor.Errorf(executor.Canceled, "canceled before there was a result: %w", err)
	case executor.KindOf(err) == executor.Internal && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)):
		err = executor.Errorf(executor.Unavailable, "%w", err) // another may have room
	}
	return out, err
}

func (t *task) execute(ctx context.Context) (out *executor.TaskOutput, err error) {
	if err := t.admit(); err != nil {
		return nil, err
	}
	t.tell(executor.EventQueued)
	if t.paths, err = caller.Open(t.caller, t.spec); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.paths.Close()) }()
	if t.spec.WorkdirMode == executor.WorkdirOverlay {
		if err := placing.Check(t.caller, t.paths.Work, t.spec.Outputs); err != nil {
			return nil, err
		}
	}
	if err := t.openRoot(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.leaveRoot()) }()
	if t.spec.Cache == executor.CacheOff || t.spec.WorkdirMode == executor.WorkdirDirect || t.spec.Audit {
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
			e.Platform = executor.PlatformNative
		}
		t.event(e)
	}
}

// namespace keeps the results of users apart.
func (t *task) namespace() string { return "uid-" + strconv.FormatUint(uint64(t.caller.UID), 10) }

// admit refuses what this caller may not have, and what this machine cannot do.
func (t *task) admit() error {
	s := t.spec
	if err := s.CheckPlatform(executor.PlatformNative); err != nil {
		return err
	}
	if s.Network == executor.NetworkControlled {
		if err := t.admitNetwork(); err != nil {
			return err
		}
	}
	if !sandbox.Mappable(t.caller.UID) || !sandbox.Mappable(t.caller.GID) {
		return executor.Errorf(executor.Denied, "user %d with group %d is nobody, or in a sandbox; call as another", t.caller.UID, t.caller.GID)
	}
	memory, err := machineMemory()
	if err != nil {
		return err
	}
	if t.granted, err = t.access.Load().For(t.caller).Grant(t.caller, s, memory); err != nil {
		return err
	}
	t.limits = t.granted.Asked.WithDefaults()
	if err := t.Executor.limits.Check(t.groupLimits()); err != nil {
		return executor.Errorf(executor.Unsupported, "%w", err)
	}
	return nil
}

func machineMemory() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("the machine's memory: %w", err)
	}
	return int64(info.Totalram) * int64(info.Unit), nil
}

// groupLimits are what package limits enforces.
func (t *task) groupLimits() limits.Limits {
	l := limits.Limits{CPUQuotaUS: t.limits.CPUQuotaUS, MemoryBytes: t.limits.MemoryBytes, PidsMax: t.limits.PidsMax}
	if t.limits.IOWeight != executor.DefaultIOWeight {
		l.IOWeight = t.limits.IOWeight
	}
	return l
}

func (t *task) openRoot() (err error) {
	network := t.spec.Network.String()
	if t.spec.Rootfs == "" {
		t.root, t.leaveRoot, err = t.roots.host(network, t.router.Addresses.Router4)
		return placing.Full(err, "state directory", t.cfg.StateDir)
	}
	// Whether the caller may see it, before root looks at it.
	dir, err := caller.OpenAs(t.caller, t.spec.Rootfs, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return executor.FieldErrorf("rootfs", "%q: %w; name a directory that you may read", t.spec.Rootfs, err)
	}
	defer dir.Close()
	if t.root, err = t.roots.open(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), network, t.router.Addresses.Router4); err != nil {
		return executor.FieldErrorf("rootfs", "%q: %w", t.spec.Rootfs, err)
	}
	t.leaveRoot = t.root.Close
	return nil
}

// run runs the task, and stores the result if it may be.
func (t *task) run(ctx context.Context, store bool) (*executor.TaskOutput, error) {
	leave, err := flight.Take(ctx, t.caller, t.granted.Tasks, t.slots)
	if err != nil {
		return nil, err
	}
	out, box, err := t.inSandbox(ctx)
	t.unmakeLater(box, leave)
	if err != nil {
		return nil, err
	}
	t.gc.Stored(action.BlobBytes(out))
	if store {
		out.Signature = executor.Signature(t.signature.String())
	}
	if store && out.Success() && !t.strained {
		stored := t.store(ctx, out)
		defer func() {
			if err := stored(); err != nil {
				// The task is done, and its caller has all that it asked for.
				t.log.WithError(err).WithField("signature", out.Signature).Warn("result is not cached")
				return
			}
			t.kept = true
		}()
	}
	if err := t.place(ctx, out); err != nil {
		return nil, err
	}
	return out, nil
}

// unmakeLater unmakes a sandbox, if there is one, and gives back the slot then: a task's
// answer need not wait for the removal of all that the task has written. No process
// is left, and nothing that holds the caller's directories.
func (t *task) unmakeLater(box *sandbox.Sandbox, leave func()) {
	t.unmaking.Go(func() {
		defer leave()
		if box == nil {
			return
		}
		if err := box.Close(); err != nil {
			t.log.WithError(err).Error("what a task left could not be removed; what is named is still there")
		}
	})
}

// inSandbox runs the task and collects what it made. The caller closes the sandbox.
func (t *task) inSandbox(ctx context.Context) (out *executor.TaskOutput, box *sandbox.Sandbox, err error) {
	stops := &stops{task: t, ended: make(chan struct{})}
	l, err := openLogs(t.cfg.Cache, t.granted.LogBytes, t.event, func() { stops.now(executor.CauseOutputLimit) })
	if err != nil {
		return nil, nil, err
	}
	box, err = t.start(ctx, l)
	if err = errors.Join(err, l.closeWriters()); err != nil {
		return nil, box, errors.Join(err, l.abandon())
	}
	defer func() {
		if e := box.CloseWork(); e != nil {
			out, err = nil, errors.Join(err, e)
		}
	}()
	exit, err := stops.watch(ctx, box, func() {
		t.tell(executor.EventStarted)
		l.begin()
	})
	stdout, stderr, err2 := l.finish()
	if err = errors.Join(err, err2); err != nil {
		return nil, box, err
	}
	if out, err = t.judge(box, exit, stops); err != nil {
		return nil, box, err
	}
	out.Stdout, out.Stderr = stdout, stderr
	return out, box, t.collect(ctx, box, exit, out)
}

// start starts the sandbox.
func (t *task) start(ctx context.Context, l *logs) (*sandbox.Sandbox, error) {
	stdin, err := standardInput(t.spec.Stdin)
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	s := sandbox.Spec{
		Root: t.root, Shared: t.spec.Rootfs == "", Script: t.spec.Script, Argv: t.spec.Argv,
		Stdio:   [3]*os.File{stdin, l.outW, l.errW},
		Network: netpolicy.Policy(t.spec.Network), Router: t.router, Limits: t.groupLimits(),
		TmpBytes: max(t.limits.TmpBytes, 0), OpenFiles: t.granted.Asked.OpenFiles, Debug: t.spec.Debug,
		Work: sandbox.Work{Dir: t.paths.Work, Hide: t.spec.Outputs, Mode: map[executor.WorkdirMode]sandbox.WorkMode{
			executor.WorkdirDirect: sandbox.WorkDirect, executor.WorkdirReadonly: sandbox.WorkReadonly,
		}[t.spec.WorkdirMode]},
	}
	if s.Work.UID, s.Work.GID, err = t.owner(t.paths.Work); err != nil {
		return nil, err
	}
	if t.caller.UID != 0 {
		s.Work.Groups = t.caller.Groups
	}
	for k, v := range environment(t.spec.Env) {
		s.Env = append(s.Env, k+"="+v)
	}
	slices.Sort(s.Env)
	for i, f := range t.paths.Inputs {
		b := sandbox.Bind{File: f, Target: t.spec.Inputs[i].Target()}
		if b.UID, b.GID, err = t.owner(f); err != nil {
			return nil, err
		}
		s.Inputs = append(s.Inputs, b)
	}
	box, err := t.host.Start(ctx, s)
	return box, placing.Full(refused(err), "state directory", t.cfg.StateDir)
}

// owner is whose files in a directory of the caller's are the task's: the caller's, but root,
// who may do anything to anyone's, works for who owns the directory.
func (t *task) owner(dir *os.File) (uid, gid uint32, err error) {
	if t.caller.UID != 0 || dir == nil {
		return t.caller.UID, t.caller.GID, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("owner of %s: %w", dir.Name(), err)
	}
	if !sandbox.Mappable(st.Uid) || !sandbox.Mappable(st.Gid) {
		return t.caller.UID, t.caller.GID, nil
	}
	return st.Uid, st.Gid, nil
}

// refused gives errors of the sandbox that lie in the task their kind.
func refused(err error) error {
	var unmappable *sandbox.UnmappableError
	var mounts *sandbox.MountBelowError
	var target *sandbox.TargetError
	var output *sandbox.OutputError
	var limit *sandbox.OpenFilesError
	switch {
	case errors.As(err, &unmappable):
		return &executor.Error{Kind: executor.Unsupported, Field: "workdir", Text: unmappable.Error()}
	case errors.As(err, &mounts) && mounts.Input:
		return executor.FieldErrorf("inputs", "%w", mounts)
	case errors.As(err, &mounts):
		return executor.FieldErrorf("workdir", "%w", mounts)
	case errors.As(err, &output):
		return executor.FieldErrorf("outputs", "%w", output)
	case errors.As(err, &target):
		return executor.FieldErrorf("inputs", "%w", target)
	case errors.As(err, &limit):
		return &executor.Error{Kind: executor.Unsupported, Field: "limits.open_files", Text: limit.Error()}
	}
	return err
}

// standardInput is a file of the task's own, also where it is empty: what many tasks share, as the
// machine's /dev/null, they could signal by. Nobody can write to it.
func standardInput(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("stdin", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	f := os.NewFile(uintptr(fd), "stdin")
	_, err = f.Write(b)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err == nil {
		const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("standard input: %w", err), f.Close())
	}
	return f, nil
}

// judge says why the task ended, and what it used.
func (t *task) judge(box *sandbox.Sandbox, exit sandbox.Exit, s *stops) (*executor.TaskOutput, error) {
	events, err := box.Group().Events()
	if err != nil {
		return nil, err
	}
	used, err := box.Usage()
	if err != nil {
		return nil, err
	}
	out := &executor.TaskOutput{Platform: executor.PlatformNative, ExitCode: exit.Code, Signal: exit.Signal, Duration: exit.Duration, Usage: executor.Usage(used)}
	if err := t.reportNetwork(box, out); err != nil {
		return nil, err
	}
	out.Applied = executor.Applied{Network: box.Network(), Limits: box.Group().Applied(), Sandbox: box.Found()}
	cause := s.cause()
	switch {
	case events.OOMKills > 0:
		out.Cause, out.Evidence = executor.CauseOOMKilled, fmt.Sprintf("the kernel's oom_kill counter of the task's control group is %d", events.OOMKills)
	case cause != "":
		out.Cause, out.Evidence = cause, s.evidence()
	case events.PidsMaxHits > 0 && exit.Code != 0:
		out.Cause, out.Evidence = executor.CausePidsLimit, fmt.Sprintf("the pids controller refused %d forks", events.PidsMaxHits)
	case exit.Signal != 0:
		out.Cause, out.Evidence = executor.CauseSignaled, fmt.Sprintf("wait status: %s", unix.SignalName(unix.Signal(exit.Signal)))
	default:
		out.Cause, out.Evidence = executor.CauseExited, fmt.Sprintf("wait status: exit code %d", exit.Code)
		if n := events.PidsMaxHits; n > 0 {
			out.Evidence += fmt.Sprintf("; the pids controller refused %d forks", n)
			t.strained = true
		}
	}
	return out, nil
}

// collect takes the outputs of a success into the cache, and lists all other writes.
func (t *task) collect(ctx context.Context, box *sandbox.Sandbox, exit sandbox.Exit, out *executor.TaskOutput) error {
	var upper *os.File
	if t.spec.WorkdirMode == executor.WorkdirOverlay {
		var err error
		if upper, err = box.Upper(); err != nil {
			return err
		}
		defer upper.Close()
	}
	if out.Cause == executor.CauseExited && exit.Code == 0 {
		switch err := t.collectOutputs(ctx, box.Work(), upper, out); {
		case err != nil && ctx.Err() != nil:
			out.Cause, out.Evidence, out.OutputFiles = executor.CauseCanceled, "the caller canceled it, or went away, or the executor stopped, while its outputs were collected", nil
		case err != nil:
			return err
		}
	}
	if upper == nil {
		return nil
	}
	// The context may be done; the task is, too, and its caller waits for a list that is bounded.
	var err error
	out.UndeclaredWrites, out.UndeclaredTotal, err = rootfs.Undeclared(context.Background(), upper, t.spec.Outputs, executor.MaxListed)
	return err
}
