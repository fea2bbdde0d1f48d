package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// Sandbox is a started command and what is around it. Close must be called.
type Sandbox struct {
	host  *Host
	id    string
	group *limits.Group
	ids   *idRange
	sock  *os.File
	first *firstProcess
	layer *os.File // our directory with upper and work
	// router is nil unless the network is controlled.
	router *netpolicy.Router
	undo   []func() error

	started time.Time
	found   []string
	network string
	ended   chan struct{}
	exit    Exit
	work    *os.File
	own     *first.Own // nil where the first process was lost
	err     error
	closing sync.Once
	closed  error
}

// Start makes a sandbox and starts its command. An error that lies in the task
// names what is wrong with it. ctx is for the making only.
func (h *Host) Start(ctx context.Context, spec Spec) (*Sandbox, error) {
	if spec.ID == "" || len(spec.ID) > 64 || strings.Trim(spec.ID, idChars) != "" {
		return nil, fmt.Errorf("sandbox: id %q: use 1 to 64 of a-z, 0-9 and -", spec.ID)
	}
	if (spec.Script == "") == (len(spec.Argv) == 0) {
		return nil, errors.New("sandbox: exactly one of Script and Argv must be set")
	}
	if err := spec.Network.Check(); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	if spec.Network == netpolicy.Controlled && h.cfg.Network == nil {
		return nil, fmt.Errorf("sandbox: %w: controlled: Config.Network is missing", netpolicy.ErrUnsupported)
	}
	if err := h.enter(spec.ID); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	s := &Sandbox{host: h, id: spec.ID, ended: make(chan struct{})}
	s.later(func() error { h.leave(spec.ID); return nil })
	if err := s.start(ctx, &spec); err != nil {
		return nil, errors.Join(fmt.Errorf("sandbox: %w", err), s.undoAll())
	}
	return s, nil
}

// later adds what unmakes the last thing made.
func (s *Sandbox) later(f func() error) { s.undo = append(s.undo, f) }

func (s *Sandbox) undoAll() error {
	var errs []error
	for _, f := range slices.Backward(s.undo) {
		errs = append(errs, f())
	}
	s.undo = nil
	return errors.Join(errs...)
}

func (s *Sandbox) start(ctx context.Context, spec *Spec) (err error) {
	if s.ids, err = s.host.ranges.take(); err != nil {
		return err
	}
	s.later(func() error { return s.host.ranges.give(s.ids) })
	if err := s.makeDir(); err != nil {
		return err
	}
	if err := s.makeLayer(spec.Work); err != nil {
		return err
	}
	sock, inside, err := first.SocketPair()
	if err != nil {
		return err
	}
	s.sock = sock
	s.later(sock.Close)
	defer inside.Close()
	// libcontainer mostly waits, and the order, the group and the router need nothing of what it makes.
	var o *first.Order
	var files *fileList
	var errs [4]error
	var made sync.WaitGroup
	ready := func() {} // of the kernel, for who comes into the group
	made.Go(func() {
		l := spec.Limits
		if l.PidsMax > 0 {
			l.PidsMax += ownPids
		}
		if s.group, errs[0] = s.host.cfg.Limits.Create(spec.ID, l); errs[0] == nil {
			ready = s.host.cfg.Limits.Expect()
		}
		o, files, errs[1] = s.order(spec)
	})
	if spec.Network == netpolicy.Controlled {
		made.Go(func() { s.router, errs[2] = s.host.cfg.Network.Start(spec.Router) })
	}
	errs[3] = s.startFirst(spec, inside)
	made.Wait()
	defer func() { ready() }()
	defer files.close()
	if s.router != nil {
		s.later(s.router.Close)
	}
	if s.group != nil {
		s.later(s.group.Close)
	}
	if s.first != nil {
		s.later(s.Kill)
	}
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	inside.Close() // so that its end is seen
	if err := ctx.Err(); err != nil {
		return err
	}
	// It has no order yet, and so has done nothing.
	if err := s.group.Add(s.first.pid); err != nil {
		return err
	}
	if err := s.setLimits(spec); err != nil {
		return err
	}
	link, err := s.attach()
	if err != nil {
		return err
	}
	if err := s.command(o, files); err != nil {
		return s.first.explain(err)
	}
	s.network = spec.Network.String() + link
	s.later(s.CloseWork)
	s.later(s.Kill)
	go s.watch()
	return nil
}

// makeDir makes the sandbox's directory, which a later Host on the same directory removes.
func (s *Sandbox) makeDir() error {
	layers := filepath.Join(s.host.cfg.Dir, "layers")
	if err := os.Mkdir(filepath.Join(layers, s.id), 0o755); err != nil {
		return fmt.Errorf("work layer: %w", err)
	}
	s.later(func() error { return removeBelow(layers, s.id) })
	// Whatever the umask: the sandbox's first process, who is nobody here, passes through.
	if err := os.Chmod(filepath.Join(layers, s.id), 0o755); err != nil {
		return fmt.Errorf("work layer: %w", err)
	}
	return nil
}

// makeLayer makes in the directory what takes the command's writes to /build.
func (s *Sandbox) makeLayer(w Work) error {
	if w.Dir != nil && w.Mode != WorkOverlay {
		return nil
	}
	dir := filepath.Join(s.host.cfg.Dir, "layers", s.id)
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
	dirs := map[string]os.FileMode{"upper": mode}
	if w.Dir != nil {
		dirs["work"] = 0o700 // an overlay's
	}
	for name, mode := range dirs {
		p := filepath.Join(dir, name)
		if err := os.Mkdir(p, 0o700); err != nil {
			return fmt.Errorf("work layer: %w", err)
		}
		if err := errors.Join(os.Chown(p, int(w.UID), int(w.GID)), os.Chmod(p, mode)); err != nil {
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

// firstProcess is a sandbox's first process, as the host sees it.
type firstProcess struct {
	pid     int
	process *libcontainer.Process
	stderr  limitedBuffer
	lost    chan struct{} // closed when it was reaped
}

// explain adds what the process said to an error that may come from its death.
func (f *firstProcess) explain(err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	<-f.lost
	return fmt.Errorf("its first process ended early; is the memory limit below 32 MiB? %s", strings.TrimSpace(f.stderr.String()))
}

func (s *Sandbox) startFirst(spec *Spec, inside *os.File) error {
	f := &firstProcess{lost: make(chan struct{})}
	f.process = &libcontainer.Process{
		Args: []string{fmt.Sprintf("/proc/self/fd/%d", first.ProgramFD), first.Name}, Env: firstEnv(),
		Init: true, Cwd: "/", LogLevel: fmt.Sprint(uint32(logrus.ErrorLevel)), Stderr: &f.stderr, ExtraFiles: []*os.File{s.host.exe, inside},
	}
	err := s.host.inSpace(func() error {
		c, err := libcontainer.Create(s.host.stateDir(), spec.ID, s.container(spec))
		if err != nil {
			return err
		}
		s.later(func() error {
			if err := c.Destroy(); err != nil {
				return fmt.Errorf("libcontainer: destroy: %w", err)
			}
			return nil
		})
		return c.Run(f.process)
	})
	if err != nil {
		return fmt.Errorf("libcontainer: %w", err)
	}
	s.first = f
	s.later(func() error { <-f.lost; return nil })
	go func() {
		defer close(f.lost)
		f.process.Wait() //nolint:errcheck // its status says nothing that the reports do not
	}()
	if f.pid, err = f.process.Pid(); err != nil {
		return fmt.Errorf("libcontainer: %w", err)
	}
	return nil
}

const noGroup = "/sandboxd-none"

// container is what libcontainer is to make: namespaces, a group, and a root with
// little more than mount points.
func (s *Sandbox) container(spec *Spec) *configs.Config {
	all := capabilities.KnownCapabilities()
	base := filepath.Join(s.host.cfg.Dir, "base")
	zero := 0
	spaces := configs.Namespaces{
		{Type: configs.NEWUSER}, {Type: configs.NEWNS}, {Type: configs.NEWPID},
		{Type: configs.NEWIPC}, {Type: configs.NEWUTS}, // the cgroup namespace comes with the order
	}
	if spec.Network.Own() {
		spaces = append(spaces, configs.Namespace{Type: configs.NEWNET})
	}
	ids := []configs.IDMap{{ContainerID: 0, HostID: int64(s.ids.base), Size: rangeSize}}
	mounts := []*configs.Mount{
		{Source: "proc", Device: "proc", Destination: "/proc", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		// A bind, so that libcontainer puts no devices there.
		{Source: filepath.Join(base, "dev"), Device: "bind", Destination: "/dev", Flags: unix.MS_BIND},
	}
	for _, d := range s.host.libs {
		mounts = append(mounts, &configs.Mount{Source: d, Device: "bind", Destination: d, Flags: unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV})
	}
	return &configs.Config{
		Rootfs: base, Readonlyfs: false, Hostname: Hostname, Namespaces: spaces,
		RootPropagation: unix.MS_PRIVATE | unix.MS_REC,
		UIDMappings:     ids, GIDMappings: ids, OomScoreAdj: &zero,
		Capabilities: &configs.Capabilities{Bounding: all, Effective: all, Permitted: all},
		// A group that is never made, see newSpace: libcontainer goes on without, as for callers without rights.
		Cgroups: &cgroups.Cgroup{Rootless: true, Parent: noGroup, Name: spec.ID, Resources: &cgroups.Resources{}},
		Mounts:  mounts,
	}
}

// setLimits sets the limits of the first process, which all others inherit, to
// values that do not depend on the daemon's.
func (s *Sandbox) setLimits(spec *Spec) error {
	pid := s.first.pid
	in, err := s.group.Holds(pid)
	if err != nil {
		return err
	}
	if !in {
		return fmt.Errorf("the first process is not in its control group %s", s.group.Path())
	}
	const no = unix.RLIM_INFINITY
	// Of its own files the first process needs more at first, see limitFiles.
	most := max(noFile(spec), 2*first.MaxMounts)
	for what, want := range map[int]unix.Rlimit{
		unix.RLIMIT_CORE: {}, unix.RLIMIT_NOFILE: {Cur: most, Max: most},
		unix.RLIMIT_STACK: {Cur: 8 << 20, Max: no}, unix.RLIMIT_MEMLOCK: {Cur: 8 << 20, Max: 8 << 20},
		unix.RLIMIT_NPROC: {Cur: no, Max: no}, unix.RLIMIT_FSIZE: {Cur: no, Max: no}, unix.RLIMIT_CPU: {Cur: no, Max: no},
		unix.RLIMIT_AS: {Cur: no, Max: no}, unix.RLIMIT_DATA: {Cur: no, Max: no}, unix.RLIMIT_RSS: {Cur: no, Max: no},
		unix.RLIMIT_LOCKS: {Cur: no, Max: no}, unix.RLIMIT_NICE: {}, unix.RLIMIT_RTPRIO: {}, unix.RLIMIT_RTTIME: {Cur: no, Max: no},
		unix.RLIMIT_MSGQUEUE: {Cur: 819200, Max: 819200}, unix.RLIMIT_SIGPENDING: {Cur: 16384, Max: 16384},
	} {
		var now unix.Rlimit
		if err := unix.Prlimit(pid, what, nil, &now); err != nil {
			return fmt.Errorf("resource limit %d: %w", what, err)
		}
		if what == unix.RLIMIT_NOFILE && spec.OpenFiles > 0 && uint64(spec.OpenFiles) > now.Max {
			return &OpenFilesError{Asked: spec.OpenFiles, Most: now.Max}
		}
		// Raising a hard limit takes CAP_SYS_RESOURCE, which root may lack in a container.
		want.Max = min(want.Max, now.Max)
		want.Cur = min(want.Cur, want.Max)
		if err := unix.Prlimit(pid, what, &want, nil); err != nil {
			return fmt.Errorf("resource limit %d: %w", what, err)
		}
	}
	return nil
}

// ownPids is how many processes and threads a sandbox has at most that are not its
// command's: the threads of the first process.
const ownPids = 12

// defaultOpenFiles is the hard limit unless another is asked for.
const defaultOpenFiles = 65536

func noFile(spec *Spec) uint64 {
	if spec.OpenFiles > 0 {
		return uint64(spec.OpenFiles)
	}
	return defaultOpenFiles
}

// attach gives the first process's network its link to the router, if it is to have one. It
// returns what to say of that.
func (s *Sandbox) attach() (found string, err error) {
	if s.router == nil {
		return "", nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", s.first.pid))
	if err != nil {
		return "", fmt.Errorf("the first process's network: %w", err)
	}
	defer ns.Close()
	if found, err = s.router.Attach(ns); err != nil {
		return "", err
	}
	return ": " + found, nil
}

// command sends the order, and waits until the command runs.
func (s *Sandbox) command(o *first.Order, files *fileList) error {
	if err := first.SendOrder(s.sock, o, files.all); err != nil {
		return err
	}
	r, more, err := first.ReceiveReport(s.sock)
	first.CloseAll(more)
	switch {
	case err != nil:
		return err
	case r.Output != "":
		return &OutputError{Output: r.Output, Reason: r.Error}
	case r.Target != "":
		return &TargetError{Target: r.Target, Reason: r.Error}
	case r.Error != "":
		return errors.New(r.Error)
	case !r.Started:
		return errors.New("the first process reports no start")
	}
	s.started = time.Now()
	s.found = append(r.Found, "network="+r.Network)
	return nil
}

// fileList are files to send; own are those to close afterwards.
type fileList struct{ all, own []*os.File }

func (l *fileList) add(f *os.File) int {
	l.all = append(l.all, f)
	return len(l.all) - 1
}

// made adds a file that the list closes.
func (l *fileList) made(f *os.File) int {
	l.own = append(l.own, f)
	return l.add(f)
}

func (l *fileList) close() { first.CloseAll(l.own) }

// order puts together what the first process must do.
func (s *Sandbox) order(spec *Spec) (*first.Order, *fileList, error) {
	files := &fileList{}
	o := &first.Order{
		Network: spec.Network, Script: spec.Script, Argv: spec.Argv,
		Env: spec.Env, TmpBytes: spec.TmpBytes, OpenFiles: noFile(spec),
		Filter: s.host.filters[FilterOptions{Debug: spec.Debug, Direct: spec.Work.Mode == WorkDirect}],
		Work:   first.WorkOrder{Lower: -1, Layer: -1, Direct: -1},
	}
	var err error
	if o.Tree, err = tree(spec.Root.Dir()); err != nil {
		return nil, files, err
	}
	for i, f := range spec.Stdio {
		// Else the command, which has another user, could not open /dev/stdout.
		if err := giveTo(f, s.ids); err != nil {
			return nil, files, err
		}
		o.Stdio[i] = files.add(f)
	}
	root, err := s.ids.root()
	if err != nil {
		return nil, files, err
	}
	dev, err := makeDevices(root)
	if err != nil {
		return nil, files, err
	}
	o.Dev = files.made(dev)
	for _, m := range spec.Root.Mounts() {
		t, err := cloneTree(m.FD, root, cloneOptions{recursive: true})
		if err != nil {
			return nil, files, err
		}
		o.Mounts = append(o.Mounts, first.MountOrder{FD: files.made(t), Target: m.Target, Dir: m.Dir})
	}
	return o, files, s.orderFiles(spec, o, files)
}

// orderFiles adds what has the caller's owner: the work directory and the inputs.
func (s *Sandbox) orderFiles(spec *Spec, o *first.Order, files *fileList) error {
	ids, err := s.ids.files(owner{spec.Work.UID, spec.Work.GID, spec.Work.Groups})
	if err != nil {
		return err
	}
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
		ids, err := s.ids.files(owner{in.UID, in.GID, nil})
		if err != nil {
			return fmt.Errorf("input %s: %w", in.Target, err)
		}
		t, err := cloneTree(in.File, ids, cloneOptions{})
		if err != nil {
			return fmt.Errorf("input %s: %w", in.Target, err)
		}
		o.Inputs = append(o.Inputs, first.MountOrder{FD: files.made(t), Target: in.Target, Dir: st.IsDir()})
	}
	if s.layer != nil {
		t, err := cloneTree(s.layer, ids, cloneOptions{writable: true, mustMap: true})
		if err != nil {
			return err
		}
		o.Work.Layer = files.made(t)
	}
	if spec.Work.Dir == nil {
		return nil
	}
	if err := noMountsBelow(spec.Work.Dir); err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	t, err := cloneTree(spec.Work.Dir, ids, cloneOptions{writable: spec.Work.Mode == WorkDirect, mustMap: true})
	if err != nil {
		return err
	}
	switch i := files.made(t); spec.Work.Mode {
	case WorkDirect:
		o.Work.Direct = i
	case WorkReadonly:
		o.Work.Lower = i
	default:
		o.Work.Lower, o.Remove = i, spec.Work.Hide
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
	s.exit.Started = s.started
	r, files, err := first.ReceiveReport(s.sock)
	s.exit.Duration = time.Since(s.started)
	switch {
	case errors.Is(err, io.EOF):
		s.exit.Lost, s.exit.Signal = true, int(unix.SIGKILL)
	case err != nil:
		s.err = err
	case r.Error != "":
		s.err = errors.New(r.Error)
	case !r.Ended || len(files) != 1:
		s.err = errors.New("the first process reports no end")
	default:
		s.exit.of(syscall.WaitStatus(r.Status))
		s.own = &r.Own
		s.work, files = files[0], nil
	}
	first.CloseAll(files)
	if s.exit.Signal != 0 {
		s.exit.Code = 128 + s.exit.Signal
	}
	if s.err != nil {
		s.err = errors.Join(s.err, s.Kill())
	}
	if s.err != nil || s.exit.Lost {
		// With the first process reaped, the pid namespace is empty (pid_namespaces(7)). Else
		// it has reaped all others, and ends: nobody need wait for the kernel to unmake its namespaces.
		<-s.first.lost
	}
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
	return first.SendTerminate(s.sock)
}

// Kill kills every process in the sandbox: the first, and with it its pid
// namespace, and whatever is in the control group.
func (s *Sandbox) Kill() error {
	select {
	case <-s.first.lost:
		return nil // its pid namespace is empty; the group's Close sees to anything else
	default:
	}
	err := s.first.process.Signal(os.Kill)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	if s.group == nil {
		return err
	}
	return errors.Join(err, s.group.Kill())
}

// Group is the control group, to read from. It is the Sandbox's.
func (s *Sandbox) Group() *limits.Group { return s.group }

// Usage is what the sandbox has used, without its first process if that could tell, after Wait.
// Of memory the first process has some 10 MB of its own at the most, which stay in.
func (s *Sandbox) Usage() (limits.Usage, error) {
	u, err := s.group.Usage()
	if err != nil || s.own == nil {
		return u, err
	}
	u.CPUUser = max(0, u.CPUUser-time.Duration(s.own.UserUS)*time.Microsecond)
	u.CPUSystem = max(0, u.CPUSystem-time.Duration(s.own.SystemUS)*time.Microsecond)
	if u.PeakPids != nil {
		*u.PeakPids = max(1, *u.PeakPids-s.own.Threads)
	}
	if u.IORead == nil {
		u.IORead, u.IOWrite = &s.own.Read, &s.own.Write
	}
	return u, nil
}

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
	})
	return s.closed
}

// firstEnv is the environment of a first process, not of its command.
func firstEnv() []string {
	// It does little and lives as long as one task: a collector costs more than it gives.
	env := []string{"GOMAXPROCS=2", "GOGC=off", "GOMEMLIMIT=16MiB"}
	if v, ok := os.LookupEnv("GORACE"); ok {
		env = append(env, "GORACE="+v) // else one of a race detector's build sleeps for a second at its end
	}
	return env
}
