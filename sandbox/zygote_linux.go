package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// zygote is the container of libcontainer's whose process makes the first process of each sandbox. One that has died
// is replaced; what it had made died with it, since their pid namespaces are in its own. One that does not answer
// gets no more to do and ends with the last of its sandboxes, and another takes its place.
type zygote struct {
	mu      sync.Mutex // one may ask at a time
	timeout time.Duration
	now     *zygoteProcess
	n       int
	// running is how many have not ended.
	running atomic.Int32
}

type zygoteProcess struct {
	sock    *os.File
	process *libcontainer.Process
	stderr  limitedBuffer
	lost    chan struct{} // closed when it was reaped
	undo    []func() error
	// protected says that the kernel's OOM killer rather takes others, and that what it makes must not stay so.
	protected bool
	// end has it end, once.
	end func()

	mu       sync.Mutex // guards the following
	children int        // first processes that have not ended
	retired  bool       // it gets no more to do
}

const (
	// zygoteTime bounds a zygote's answer. It takes a millisecond.
	zygoteTime = 10 * time.Second
	// maxZygotes bounds those that have not ended.
	maxZygotes = 4
)

// newborn is a first process, which is its asker's to end.
type newborn struct {
	sock, pidfd *os.File
	of          *zygoteProcess
}

// clone makes a first process. Its asker calls of.release once that has ended.
func (z *zygote) clone(h *Host, r first.Request) (n newborn, err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if err := z.ready(h); err != nil {
		return n, err
	}
	n, err = z.ask(r)
	if err != nil && (gone(err) || silent(err)) {
		// It may have died a while ago: another is as good.
		if e := z.ready(h); e != nil {
			return n, errors.Join(err, e)
		}
		n, err = z.ask(r)
	}
	return n, err
}

// ask asks the present one, and gives that up if it does not answer. Each time with a socket of its own: who answers
// too late finds that closed, and what it has made ends.
func (z *zygote) ask(r first.Request) (n newborn, err error) {
	sock, inside, err := first.SocketPair()
	if err != nil {
		return n, err
	}
	defer inside.Close() // so that its end is seen
	p := z.now
	pidfd, err := first.Ask(p.sock, inside, r, z.timeout)
	if err == nil && pidfd == nil {
		err = errors.New("it made no process")
	}
	switch {
	case err == nil:
		p.mu.Lock()
		p.children++
		p.mu.Unlock()
		return newborn{sock, pidfd, p}, nil
	case gone(err):
		err = p.explain(err)
		z.now = nil
		p.end()
	case silent(err):
		err = fmt.Errorf("zygote: it does not answer: %w", err)
		z.now = nil
		p.retire()
	default: // to end it would end all sandboxes
		err = fmt.Errorf("zygote: %w", err)
	}
	return n, errors.Join(err, sock.Close())
}

// gone reports whether an error is that of a zygote that has died, and not what one says.
func gone(err error) bool {
	return slices.ContainsFunc([]error{io.EOF, unix.EPIPE, unix.ECONNRESET}, func(e error) bool { return errors.Is(err, e) })
}

// silent reports whether an error is that of a zygote that does not answer.
func silent(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// ready starts one where there is none that lives.
func (z *zygote) ready(h *Host) error {
	if z.now != nil {
		select {
		case <-z.now.lost:
			z.now.end()
			z.now = nil
		default:
			return nil
		}
	}
	if n := z.running.Load(); n >= maxZygotes {
		return fmt.Errorf("zygote: %d did not answer, or did not end, and still have tasks: wait for those, or end them", n)
	}
	z.n++
	p, err := h.startZygote(fmt.Sprintf("zygote-%d", z.n))
	if err != nil {
		return err
	}
	z.running.Add(1)
	// Nobody waits for its end: it ends once all that it made have, which a task's file system can keep from it.
	p.end = sync.OnceFunc(func() {
		h.keeper.stopped.Go(func() {
			defer z.running.Add(-1)
			h.note(p.close())
		})
	})
	z.now = p
	return nil
}

// retire has it end with the last of its children.
func (p *zygoteProcess) retire() {
	p.mu.Lock()
	p.retired = true
	last := p.children == 0
	p.mu.Unlock()
	if last {
		p.end()
	}
}

// release says that a first process that it made has ended.
func (p *zygoteProcess) release() error {
	p.mu.Lock()
	p.children--
	last := p.children == 0 && p.retired
	p.mu.Unlock()
	if last {
		p.end()
	}
	return nil
}

func (z *zygote) close() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.now == nil {
		return nil
	}
	now := z.now
	z.now = nil
	z.running.Add(-1)
	return now.close()
}

func (p *zygoteProcess) close() error {
	var errs []error
	for i := len(p.undo) - 1; i >= 0; i-- {
		errs = append(errs, p.undo[i]())
	}
	p.undo = nil
	return errors.Join(errs...)
}

func (p *zygoteProcess) explain(err error) error {
	if s := strings.TrimSpace(p.stderr.String()); s != "" {
		return fmt.Errorf("zygote: %w: %s", err, s)
	}
	return fmt.Errorf("zygote: %w", err)
}

func (h *Host) startZygote(id string) (_ *zygoteProcess, err error) {
	p := &zygoteProcess{lost: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(p.explain(err), p.close())
		}
	}()
	ids, err := h.ranges.take()
	if err != nil {
		return nil, err
	}
	p.undo = append(p.undo, func() error { return h.ranges.give(ids) })
	sock, inside, err := first.SocketPair()
	if err != nil {
		return nil, err
	}
	p.sock = sock
	p.undo = append(p.undo, sock.Close)
	defer inside.Close()
	p.process = &libcontainer.Process{
		Args: []string{fmt.Sprintf("/proc/self/fd/%d", first.ProgramFD), first.Name}, Env: zygoteEnv(),
		Init: true, Cwd: "/", LogLevel: fmt.Sprint(uint32(logrus.ErrorLevel)), Stderr: &p.stderr, ExtraFiles: []*os.File{h.exe, inside},
	}
	err = h.inSpace(func() error {
		c, err := libcontainer.Create(h.stateDir(), id, h.container(id, ids))
		if err != nil {
			return err
		}
		p.undo = append(p.undo, func() error {
			if err := c.Destroy(); err != nil {
				return fmt.Errorf("libcontainer: destroy: %w", err)
			}
			return nil
		})
		return c.Run(p.process)
	})
	if err != nil {
		return nil, fmt.Errorf("libcontainer: %w", err)
	}
	p.undo = append(p.undo, func() error {
		err := p.process.Signal(os.Kill)
		if errors.Is(err, os.ErrProcessDone) {
			err = nil
		}
		<-p.lost
		return err
	})
	inside.Close() // so that its end is seen
	pid, err := p.process.Pid()
	if err != nil {
		err = fmt.Errorf("libcontainer: %w", err)
	} else {
		// Before it is waited for: the number is its own until then.
		if err = setLimits(pid); err == nil {
			p.protected, err = protect(pid)
		}
	}
	go func() {
		defer close(p.lost)
		p.process.Wait() //nolint:errcheck // it was killed, or says why on its standard error
	}()
	if err != nil {
		return nil, err
	}
	return p, first.AwaitServe(sock, zygoteTime)
}

const noGroup = "/sandboxd-none"

// container is what libcontainer is to make: namespaces, and a root with little more than mount points. Its user
// namespace has all ranges, so that a zygote can give each sandbox its own; for itself it has one of them.
func (h *Host) container(id string, ids *idRange) *configs.Config {
	all := capabilities.KnownCapabilities()
	base := filepath.Join(h.cfg.Dir, "base")
	zero := 0
	mine, end := int64(ids.base), int64(rangeBase)+rangeCount*rangeSize
	maps := []configs.IDMap{{ContainerID: 0, HostID: mine, Size: rangeSize}}
	for _, x := range [][2]int64{{rangeBase, mine}, {mine + rangeSize, end}} {
		if x[0] < x[1] {
			maps = append(maps, configs.IDMap{ContainerID: x[0], HostID: x[0], Size: x[1] - x[0]})
		}
	}
	mounts := []*configs.Mount{
		{Source: "proc", Device: "proc", Destination: "/proc", Flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		// A bind, so that libcontainer puts no devices there.
		{Source: filepath.Join(base, "dev"), Device: "bind", Destination: "/dev", Flags: unix.MS_BIND},
	}
	for _, d := range h.libs {
		mounts = append(mounts, &configs.Mount{Source: d, Device: "bind", Destination: d, Flags: unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV})
	}
	return &configs.Config{
		Rootfs: base, Readonlyfs: false, Hostname: Hostname,
		// The cgroup namespace comes with the command.
		Namespaces:      configs.Namespaces{{Type: configs.NEWUSER}, {Type: configs.NEWNS}, {Type: configs.NEWPID}, {Type: configs.NEWIPC}, {Type: configs.NEWUTS}},
		RootPropagation: unix.MS_PRIVATE | unix.MS_REC,
		UIDMappings:     maps, GIDMappings: maps, OomScoreAdj: &zero,
		Capabilities: &configs.Capabilities{Bounding: all, Effective: all, Permitted: all},
		// A group that is never made, see newSpace: libcontainer goes on without, as for callers without rights.
		Cgroups: &cgroups.Cgroup{Rootless: true, Parent: noGroup, Name: id, Resources: &cgroups.Resources{}},
		Mounts:  mounts,
	}
}

// setLimits sets the limits of a zygote, which all others inherit, to
// values that do not depend on the daemon's.
func setLimits(pid int) error {
	const no = unix.RLIM_INFINITY
	for what, want := range map[int]unix.Rlimit{
		// A command's is set later, and may be as large as ours.
		unix.RLIMIT_CORE: {}, unix.RLIMIT_NOFILE: {Cur: no, Max: no},
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
		// Raising a hard limit takes CAP_SYS_RESOURCE, which root may lack in a container.
		want.Max = min(want.Max, now.Max)
		want.Cur = min(want.Cur, want.Max)
		if err := unix.Prlimit(pid, what, &want, nil); err != nil {
			return fmt.Errorf("resource limit %d: %w", what, err)
		}
	}
	return nil
}

// protect has the kernel's OOM killer treat a process that has no tasks' memory as it does this one, if that is better: with a
// zygote all its tasks end. It reports false where that is not needed, or not permitted.
func protect(pid int) (bool, error) {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return false, err
	}
	ours, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || ours >= 0 {
		return false, err
	}
	err = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(ours)), 0)
	if errors.Is(err, unix.EACCES) { // that takes CAP_SYS_RESOURCE
		return false, nil
	}
	return err == nil, err
}

// zygoteEnv is the environment of a zygote, and of no command.
func zygoteEnv() []string {
	// Its children must find it at rest: a collector that runs would go on in none of them.
	env := []string{"GOMAXPROCS=2", "GOGC=off"}
	if v, ok := os.LookupEnv("GORACE"); ok {
		env = append(env, "GORACE="+v) // else one of a race detector's build sleeps for a second at its end
	}
	return env
}
