package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// Sandbox is a started command and what is around it. Close must be called.
type Sandbox struct {
	*box
	layer *os.File // our directory with upper and work
	// router is nil unless the network is controlled.
	router *netpolicy.Router

	started time.Time
	network string
	ended   chan struct{}
	exit    Exit
	work    *os.File
	own     *own // nil where the first process was lost
	err     error
	closing sync.Once
	closed  error
}

// own is what the first process itself has used, and of I/O what all have.
type own struct {
	user, system time.Duration
	read, write  int64 // bytes, of a storage device: proc_pid_io(5)
}

// Start makes a sandbox, or takes one that is prepared, and starts its command. An error that lies in the task
// names what is wrong with it. ctx is for the making only.
func (h *Host) Start(ctx context.Context, spec Spec) (*Sandbox, error) {
	if (spec.Script == "") == (len(spec.Argv) == 0) {
		return nil, errors.New("sandbox: exactly one of Script and Argv must be set")
	}
	if err := spec.Network.Check(); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	if spec.Network == netpolicy.Controlled && h.cfg.Network == nil {
		return nil, fmt.Errorf("sandbox: %w: controlled: Config.Network is missing", netpolicy.ErrUnsupported)
	}
	if err := h.starts(); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	s, err := h.try(ctx, &spec, false)
	if errors.Is(err, errEndedEarly) && ctx.Err() == nil {
		// No command ran. It, or what made it, may have been killed while it waited.
		s, err = h.try(ctx, &spec, true)
	}
	h.started()
	if err != nil {
		h.gone()
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	return s, nil
}

// try starts a task in a box that waits, or in a fresh one.
func (h *Host) try(ctx context.Context, spec *Spec, fresh bool) (*Sandbox, error) {
	b, err := h.obtain(spec, fresh)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{box: b, ended: make(chan struct{})}
	if err := s.start(ctx, spec); err != nil {
		return nil, errors.Join(err, s.undoAll())
	}
	return s, nil
}

func (s *Sandbox) start(ctx context.Context, spec *Spec) (err error) {
	if err := s.group.Limit(spec.groupLimits()); err != nil {
		return err
	}
	if err := s.readyLayer(spec.Work); err != nil {
		return err
	}
	if err := s.attach(spec); err != nil {
		return err
	}
	for _, f := range spec.Stdio {
		// Else the command, which has another user, could not open /dev/stdout.
		if err := giveTo(f, s.ids); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Kill() }) // Close tells what it could not
	err = s.command(ctx, spec)
	if !stop() {
		return ctx.Err() // what was begun is being killed
	}
	if err != nil {
		return s.explain(err)
	}
	s.later(s.CloseWork)
	s.later(s.end)
	s.host.runs(1)
	go s.watch()
	return nil
}

// readyLayer makes of the directories what takes the command's writes to /build.
func (s *Sandbox) readyLayer(w Work) error {
	if w.Dir != nil && w.Mode != WorkOverlay {
		return nil
	}
	mode := os.FileMode(0o755)
	if w.Dir != nil {
		st, err := w.Dir.Stat()
		if err != nil {
			return fmt.Errorf("work directory: %w", err)
		}
		mode = st.Mode().Perm()
	} else if w.Mode == WorkReadonly {
		mode = 0o555
	}
	dir := s.dir()
	for name, mode := range map[string]os.FileMode{"upper": mode, "work": layerMode} {
		p := dir + "/" + name
		var err error
		if w.UID != 0 || w.GID != 0 {
			err = os.Chown(p, int(w.UID), int(w.GID))
		}
		if mode != layerMode {
			err = errors.Join(err, os.Chmod(p, mode))
		}
		if err != nil {
			return fmt.Errorf("work layer: %w", err)
		}
	}
	var err error
	if s.layer, err = os.Open(dir); err != nil {
		return fmt.Errorf("work layer: %w", err)
	}
	s.later(s.layer.Close)
	return nil
}

// attach gives the first process's network its link to the router, if it is to have one.
func (s *Sandbox) attach(spec *Spec) (err error) {
	s.network = spec.Network.String()
	if spec.Network != netpolicy.Controlled {
		return nil
	}
	if s.router, err = s.host.cfg.Network.Start(spec.Router); err != nil {
		return err
	}
	s.later(s.router.Close)
	s.later(s.await)
	s.later(s.Kill)
	ns, err := s.namespace("net")
	if err != nil {
		return s.explain(err)
	}
	defer ns.Close()
	found, err := s.router.Attach(ns)
	if err != nil {
		return err
	}
	s.network += ": " + found
	s.reach, err = s.host.setUp(spec.Network, ns)
	return err
}

// command sends what is to be done, and waits until the command runs.
func (s *Sandbox) command(ctx context.Context, spec *Spec) error {
	limit, err := openFiles(spec.OpenFiles)
	if err != nil {
		return err
	}
	p := newProgram()
	defer p.close()
	if err := s.tree(p, spec); err != nil {
		return err
	}
	if err := s.hide(ctx, &spec.Work); err != nil {
		return err
	}
	if err := s.inputs(p, spec); err != nil {
		return err
	}
	p.script(spec.Script)
	p.supervise(p.enterRoot())
	if err := p.send(s.sock); err != nil {
		return err
	}
	c := newProgram()
	c.become(spec, limit)
	err = c.send(s.hand)
	if err == nil {
		_, err = s.reply(s.hand, c, first.Started)
	}
	if err != nil {
		if ended(err) {
			// The first process may have taken it along, and says why.
			_, err = s.reply(s.sock, p, first.Ready)
		}
		return s.noRoom(err)
	}
	s.started = time.Now()
	if err := s.hand.Close(); err != nil {
		return err
	}
	s.found = append(s.found, "network="+s.reach)
	return nil
}

// noRoom adds to an error that the layer's file system is full, which an overlay does not say.
func (s *Sandbox) noRoom(err error) error {
	if s.layer == nil || errors.Is(err, unix.ENOSPC) {
		return err
	}
	defer runtime.KeepAlive(s.layer)
	var st unix.Statfs_t
	if e := unix.Fstatfs(int(s.layer.Fd()), &st); e != nil || st.Bavail > 0 && (st.Files == 0 || st.Ffree > 0) {
		return err
	}
	return fmt.Errorf("%w (%w)", err, unix.ENOSPC)
}

// defaultOpenFiles is the hard limit unless another is asked for, softOpenFiles the most of the soft one: what uses
// select can do no more, and other programs raise it.
const (
	defaultOpenFiles = 65536
	softOpenFiles    = 1024
)

// openFiles is the command's limit.
func openFiles(asked int64) (l unix.Rlimit, err error) {
	var ours unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &ours); err != nil {
		return l, fmt.Errorf("limit of open files: %w", err)
	}
	switch {
	case asked <= 0:
		l.Max = min(defaultOpenFiles, ours.Max)
	case uint64(asked) > ours.Max:
		return l, &OpenFilesError{Asked: asked, Most: ours.Max}
	default:
		l.Max = uint64(asked)
	}
	l.Cur = min(l.Max, softOpenFiles)
	return l, nil
}

// readBack is what the kernel says of the command, and an error unless it is what a command must have.
func readBack(status string) (found []string, err error) {
	want := map[string]string{
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2",
	}
	for line := range strings.Lines(status) {
		k, v, _ := strings.Cut(line, ":")
		v = strings.TrimSpace(v)
		if w, ok := want[k]; ok {
			if v != w {
				return nil, fmt.Errorf("read back: %s is %s, not %s", k, v, w)
			}
			found = append(found, k+"="+v)
			delete(want, k)
		}
	}
	if len(want) > 0 {
		return nil, fmt.Errorf("read back: /proc/self/status lacks %d lines", len(want))
	}
	slices.Sort(found)
	return found, nil
}

// tree has the first process make the work directory.
func (s *Sandbox) tree(p *program, spec *Spec) error {
	p.sizeOwn(spec.TmpBytes, spec.Script)
	ids, err := s.files(owner{spec.Work.UID, spec.Work.GID, spec.Work.Groups})
	if err != nil {
		return err
	}
	var lower, layer, direct *os.File
	if s.layer != nil {
		if layer, err = cloneTree(s.layer, ids, cloneOptions{writable: true, mustMap: true}); err != nil {
			return err
		}
		p.own = append(p.own, layer)
	}
	if spec.Work.Dir != nil {
		if err := noMountsBelow(spec.Work.Dir); err != nil {
			return fmt.Errorf("work directory: %w", err)
		}
		t, err := cloneTree(spec.Work.Dir, ids, cloneOptions{writable: spec.Work.Mode == WorkDirect, mustMap: true})
		if err != nil {
			return err
		}
		p.own = append(p.own, t)
		if spec.Work.Mode == WorkDirect {
			direct = t
		} else {
			lower = t
		}
	}
	p.workTree(lower, layer, direct)
	return nil
}

// inputs has the first process attach them.
func (s *Sandbox) inputs(p *program, spec *Spec) error {
	for _, in := range spec.Inputs {
		st, err := in.File.Stat()
		if err != nil {
			return fmt.Errorf("input %s: %w", in.Target, err)
		}
		if !st.IsDir() && !st.Mode().IsRegular() {
			return &TargetError{Target: in.Target, Reason: "is not a file or directory"}
		}
		if st.IsDir() {
			below := &MountBelowError{}
			if err := noMountsBelow(in.File); errors.As(err, &below) {
				below.Input = true
				return below
			} else if err != nil {
				return fmt.Errorf("input %s: %w", in.Target, err)
			}
		}
		ids, err := s.files(owner{in.UID, in.GID, nil})
		if err != nil {
			return fmt.Errorf("input %s: %w", in.Target, err)
		}
		t, err := cloneTree(in.File, ids, cloneOptions{})
		if err != nil {
			return fmt.Errorf("input %s: %w", in.Target, err)
		}
		if !st.IsDir() { // a directory is seen through an overlay that has no place for writes
			open := t
			t, err = s.host.templates.lock(open)
			if err = errors.Join(err, open.Close()); err != nil {
				return fmt.Errorf("input %s: %w", in.Target, err)
			}
		}
		p.input(in.Target, t, st.IsDir())
	}
	return nil
}

// giveTo makes the command the owner of a pipe or of a file without a name.
// Others keep theirs.
func giveTo(f *os.File, ids *idRange) error {
	defer runtime.KeepAlive(f)
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("standard file: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO && st.Nlink != 0 {
		return nil
	}
	if err := unix.Fchown(int(f.Fd()), ids.host(UID), ids.host(GID)); err != nil {
		return fmt.Errorf("standard file: %w", err)
	}
	return nil
}

// watch waits for the end of the command.
func (s *Sandbox) watch() {
	defer close(s.ended)
	defer s.host.runs(-1)
	s.exit.Started = s.started
	r, text, files, err := first.Receive(s.sock)
	s.exit.Duration = time.Since(s.started)
	if len(files) == 1 {
		s.work = files[0]
	} else {
		first.CloseAll(files)
	}
	switch {
	case errors.Is(err, io.EOF):
		s.exit.Lost, s.exit.Signal = true, int(unix.SIGKILL)
	case err != nil:
		s.err = err
	case r.Kind != first.Ended || s.work == nil:
		s.err = fmt.Errorf("the first process reports no end: step %d: %w", r.Op, syscall.Errno(r.Errno))
	default:
		s.exit.of(syscall.WaitStatus(r.Status))
		s.own, s.err = ownUsage(r, string(text))
	}
	if s.exit.Signal != 0 {
		s.exit.Code = 128 + s.exit.Signal
	}
	if s.err != nil {
		s.err = errors.Join(s.err, s.Kill())
	}
	if s.err != nil || s.exit.Lost {
		// With the first process reaped, the pid namespace is empty (pid_namespaces(7)). Else
		// it has reaped all others, and ends: nobody need wait for the kernel to unmake its namespaces.
		<-s.lost
		if s.work != nil {
			s.work.Close()
			s.work = nil
		}
	}
}

// ownUsage reads /proc/PID/io of the first process. The I/O of those it waited for is in its own.
func ownUsage(r first.Reply, text string) (*own, error) {
	o := &own{user: time.Duration(r.User) * time.Microsecond, system: time.Duration(r.System) * time.Microsecond}
	for line := range strings.Lines(text) {
		k, v, _ := strings.Cut(line, ":")
		want := map[string]*int64{"read_bytes": &o.read, "write_bytes": &o.write}[k]
		if want == nil {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("own usage: %s: %w", k, err)
		}
		*want = n
	}
	return o, nil
}

func (e *Exit) of(ws syscall.WaitStatus) {
	if ws.Signaled() {
		e.Signal = int(ws.Signal())
	} else {
		e.Code = ws.ExitStatus()
	}
}

// Wait returns how the command ended, once no process of the sandbox's is left
// that could write: or ctx's error if that comes first.
func (s *Sandbox) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-s.ended:
		return s.exit, s.err
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Terminate sends SIGTERM to every process in the sandbox.
func (s *Sandbox) Terminate() error {
	return first.Terminate(s.sock)
}

// Usage is what the sandbox has used, without its first process if that could tell, after Wait.
// Of memory the first process has less than 2 MB of its own, which stay in.
func (s *Sandbox) Usage() (limits.Usage, error) {
	u, err := s.group.Usage()
	if err != nil || s.own == nil {
		return u, err
	}
	u.CPUUser = max(0, u.CPUUser-s.own.user)
	u.CPUSystem = max(0, u.CPUSystem-s.own.system)
	if u.PeakPids != nil {
		*u.PeakPids = max(1, *u.PeakPids-ownPids)
	}
	if u.IORead == nil {
		u.IORead, u.IOWrite = &s.own.read, &s.own.write
	}
	return u, nil
}

// Group is the control group, to read from. It is the Sandbox's.
func (s *Sandbox) Group() *limits.Group { return s.group }

// Found is what was read back from the kernel before the command began.
func (s *Sandbox) Found() []string { return slices.Clone(s.found) }

// Network is the policy, and of a controlled network what was found of the link.
func (s *Sandbox) Network() string { return s.network }

// Traffic ends what a controlled network lets through, after Wait, and tells of it. Of other networks it
// knows nothing.
func (s *Sandbox) Traffic() (netpolicy.Report, error) {
	if s.router == nil {
		return netpolicy.Report{}, nil
	}
	return s.router.Finish()
}

// Work is the work directory as the command left it, after Wait; nil where
// Exit.Lost. It is the Sandbox's. All that is in it is hostile.
func (s *Sandbox) Work() *os.File { return s.work }

// endTime bounds how long a first process that has told its end may take for it.
const endTime = time.Second

// end kills all that is left. A first process that has told of the end is alone, and about to exit: to kill it, and to
// look for others in its group, would only cost.
func (s *Sandbox) end() error {
	select {
	case <-s.ended:
		if s.own != nil {
			select {
			case <-s.lost:
				return nil
			case <-time.After(endTime):
			}
		}
	default:
	}
	return s.Kill()
}

// CloseWork waits for the end and closes Work, and with it the last hold on the work
// directory and the inputs. Close does it, too; the two must not be called at once.
func (s *Sandbox) CloseWork() error {
	<-s.ended
	work := s.work
	s.work = nil
	if work == nil {
		return nil
	}
	if err := work.Close(); err != nil {
		return fmt.Errorf("sandbox: work directory: %w", err)
	}
	return nil
}

// Upper is the layer that took the command's writes, after Wait; an error where
// Work.Mode had none. The caller closes it.
func (s *Sandbox) Upper() (*os.File, error) {
	if s.layer == nil {
		return nil, errors.New("sandbox: the work directory has no layer")
	}
	fd, err := unix.Openat(int(s.layer.Fd()), "upper", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("sandbox: upper layer: %w", err)
	}
	return os.NewFile(uintptr(fd), "upper"), nil
}

// Close kills what is left and unmakes all. It returns when nothing is left, and
// may be called again.
func (s *Sandbox) Close() error {
	s.closing.Do(func() {
		if err := s.undoAll(); err != nil {
			s.closed = fmt.Errorf("sandbox: %w", err)
		}
		s.host.gone()
	})
	return s.closed
}
