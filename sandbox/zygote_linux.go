package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// zygote is the container of libcontainer's whose process makes the first process of each sandbox. One that has died,
// or does not answer, is replaced; what it had made died with it, since their pid namespaces are in its own.
type zygote struct {
	mu      sync.Mutex // one may ask at a time
	timeout time.Duration
	now     *zygoteProcess
	n       int
}

type zygoteProcess struct {
	sock    *os.File
	process *libcontainer.Process
	stderr  limitedBuffer
	lost    chan struct{} // closed when it was reaped
	undo    []func() error
}

// zygoteTime bounds a zygote's answer. It takes a millisecond.
const zygoteTime = 10 * time.Second

// clone makes a first process at the other end of inside.
func (z *zygote) clone(h *Host, inside *os.File, r first.Request) (*os.File, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if err := z.ready(h); err != nil {
		return nil, err
	}
	pidfd, err := first.Ask(z.now.sock, inside, r, z.timeout)
	if err != nil && !gone(err) {
		return nil, fmt.Errorf("zygote: %w", err) // to end it would end all sandboxes
	}
	if err != nil {
		// It may have died a while ago: another is as good.
		err = z.now.explain(err)
		z.replace(h)
		if e := z.ready(h); e != nil {
			return nil, errors.Join(err, e)
		}
		if pidfd, err = first.Ask(z.now.sock, inside, r, z.timeout); err != nil {
			err = z.now.explain(err)
			z.replace(h)
			return nil, err
		}
	}
	if pidfd == nil {
		return nil, errors.New("the zygote made no process")
	}
	return pidfd, nil
}

// gone reports whether an error is that of a zygote that has died, or does not answer, and not what one says.
func gone(err error) bool {
	return slices.ContainsFunc([]error{io.EOF, unix.EPIPE, unix.ECONNRESET, os.ErrDeadlineExceeded}, func(e error) bool { return errors.Is(err, e) })
}

// ready starts one where there is none that lives.
func (z *zygote) ready(h *Host) (err error) {
	if z.now != nil {
		select {
		case <-z.now.lost:
			z.replace(h)
		default:
			return nil
		}
	}
	z.n++
	z.now, err = h.startZygote(fmt.Sprintf("zygote-%d", z.n))
	return err
}

// replace ends the one there is, and waits for none: it ends once all that it made have, which
// a task's file system can keep from it.
func (z *zygote) replace(h *Host) {
	now := z.now
	z.now = nil
	h.keeper.stopped.Go(func() { h.note(now.close()) })
}

func (z *zygote) close() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.now == nil {
		return nil
	}
	now := z.now
	z.now = nil
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
		err = setLimits(pid) // before it is waited for: the number is its own until then
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

// zygoteEnv is the environment of a zygote, and of no command.
func zygoteEnv() []string {
	// Its children must find it at rest: a collector that runs would go on in none of them.
	env := []string{"GOMAXPROCS=2", "GOGC=off"}
	if v, ok := os.LookupEnv("GORACE"); ok {
		env = append(env, "GORACE="+v) // else one of a race detector's build sleeps for a second at its end
	}
	return env
}
