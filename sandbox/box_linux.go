package sandbox

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// box is a sandbox without a task: namespaces, a control group without limits, a range of ids, and a root
// without work directory, inputs and script. It becomes one Sandbox, or is closed.
type box struct {
	host  *Host
	id    string
	group *limits.Group
	ids   *idRange
	sock  *os.File // to the first process
	hand  *os.File // to the process that will be the command
	found []string // what this process is
	pidfd *os.File
	pid   int           // see lives
	lost  chan struct{} // closed when the first process was reaped
	reach string        // what was found of the network; empty where that is yet to come
	undo  []func() error
}

// ownPids is how many processes a sandbox has that are not its command's: the first one. The one that will be the command
// is made with it, and counts as the command.
const ownPids = 1

// prepareTime bounds the preparation. It takes some milliseconds.
const prepareTime = 30 * time.Second

// later adds what unmakes the last thing made.
func (b *box) later(f func() error) { b.undo = append(b.undo, f) }

func (b *box) undoAll() error {
	var errs []error
	for _, f := range slices.Backward(b.undo) {
		errs = append(errs, f())
	}
	b.undo = nil
	return errors.Join(errs...)
}

// dir is the sandbox's directory.
func (b *box) dir() string { return filepath.Join(b.host.cfg.Dir, "layers", b.id) }

// prepare makes a box of a kind, x being the template of its root, with limits in force.
func (h *Host) prepare(x *template, k kindOf, l limits.Limits) (*box, error) {
	b := &box{host: h, id: "s-" + strings.ToLower(rand.Text()), lost: make(chan struct{})}
	if err := b.make(x, k, l); err != nil {
		return nil, errors.Join(b.explain(err), b.undoAll())
	}
	return b, nil
}

func (b *box) make(x *template, k kindOf, l limits.Limits) (err error) {
	h, network := b.host, k.network
	if b.ids, err = h.ranges.take(); err != nil {
		return err
	}
	b.later(func() error { return h.ranges.give(b.ids) })
	if err := b.makeDir(); err != nil {
		return err
	}
	if b.group, err = h.cfg.Limits.Create(b.id, l); err != nil {
		return err
	}
	b.later(b.group.Close)
	defer h.cfg.Limits.Expect()()
	if err := b.clone(k.network.Own()); err != nil {
		return err
	}
	root, err := b.namespace("user") // root's files are root's
	if err != nil {
		return err
	}
	defer root.Close()
	files, err := b.group.Doors() // of the preparation
	if err != nil {
		return err
	}
	defer func() { first.CloseAll(files) }()
	tree, err := x.clone(root)
	if err != nil {
		return err
	}
	files = append(files, tree)
	dev, err := makeDevices(root)
	if err != nil {
		return err
	}
	files = append(files, dev)
	hand, handInside, err := first.SocketPair()
	if err != nil {
		return err
	}
	files = append(files, handInside)
	b.hand = hand
	b.later(func() error {
		if err := hand.Close(); !errors.Is(err, os.ErrClosed) {
			return err
		}
		return nil // the command runs, or did
	})
	p := h.preparations[k.filter]
	if err := p.send(b.sock, files); err != nil {
		return err
	}
	first.CloseAll(files) // so that the end of those who have them is seen
	files = nil
	if network != netpolicy.Controlled {
		ns, err := b.namespace("net")
		if err != nil {
			return err
		}
		defer ns.Close()
		if b.reach, err = h.setUp(network, ns); err != nil {
			return err
		}
	}
	until := time.Now().Add(prepareTime)
	if err := errors.Join(b.sock.SetReadDeadline(until), b.hand.SetReadDeadline(until)); err != nil {
		return err
	}
	if _, err := b.reply(b.sock, p.program, first.Ready); err != nil {
		return err
	}
	status, err := b.reply(b.hand, p.program, first.Ready)
	if err != nil {
		return err
	}
	if err := errors.Join(b.sock.SetReadDeadline(time.Time{}), b.hand.SetReadDeadline(time.Time{})); err != nil {
		return err
	}
	if b.found, err = readBack(status); err != nil {
		return err
	}
	return b.seeGroup()
}

// seeGroup sees that the first process has put itself into its control group.
func (b *box) seeGroup() error {
	in, err := b.group.Holds(b.pid)
	if err = errors.Join(b.lives(), err); err != nil {
		return err
	}
	if !in {
		return fmt.Errorf("the first process is not in its control group %s", b.group.Path())
	}
	return nil
}

// namespace opens one of the first process's, by its name in /proc.
func (b *box) namespace(name string) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", b.pid, name))
	if err = errors.Join(b.lives(), err); err != nil {
		ns.Close()
		return nil, fmt.Errorf("the first process's %s namespace: %w", name, err)
	}
	return ns, nil
}

// lives returns io.EOF if the first process has ended, and its number may have been another's: also of what
// was found by that before.
func (b *box) lives() (err error) {
	withFD(b.pidfd, func(fd int) { err = unix.PidfdSendSignal(fd, 0, nil, 0) })
	if err == unix.ESRCH {
		return io.EOF
	}
	return err
}

// setUp readies a network namespace, and returns what was found in it.
func (h *Host) setUp(network netpolicy.Policy, ns *os.File) (found string, err error) {
	if !network.Own() {
		return network.Setup()
	}
	enter := func(ns *os.File) error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("the first process's network: %w", err)
		}
		return nil
	}
	err = h.visitor.do(func() error {
		if err := enter(ns); err != nil {
			return err
		}
		found, err = network.Setup()
		return errors.Join(err, enter(h.network)) // lest it hold the other
	})
	return found, err
}

// layerMode is the mode of a layer's directories, unless a work directory has another.
const layerMode = 0o755

// makeDir makes the sandbox's directory, which a later Host on the same directory removes, and in it those of the
// work layer.
func (b *box) makeDir() error {
	if err := os.Mkdir(b.dir(), 0o755); err != nil {
		return fmt.Errorf("work layer: %w", err)
	}
	b.later(func() error { return removeBelow(filepath.Dir(b.dir()), b.id) })
	for _, d := range []string{"", "/upper", "/work"} {
		p := b.dir() + d
		if d != "" {
			if err := os.Mkdir(p, layerMode); err != nil {
				return fmt.Errorf("work layer: %w", err)
			}
		}
		// Whatever the umask: the sandbox's first process, who is nobody here, passes through.
		if err := os.Chmod(p, layerMode); err != nil {
			return fmt.Errorf("work layer: %w", err)
		}
	}
	return nil
}

// clone makes the first process.
func (b *box) clone(network bool) error {
	line := fmt.Sprintf("0 %d %d\n", b.ids.base, rangeSize)
	n, err := b.host.zygote.clone(b.host, first.Request{Network: network, UIDs: line, GIDs: line})
	if err != nil {
		return err
	}
	b.later(n.of.release)
	b.sock = n.sock
	b.later(n.sock.Close)
	if err := unix.SetNonblock(int(n.pidfd.Fd()), true); err != nil {
		return errors.Join(err, n.pidfd.Close())
	}
	fd, err := unix.FcntlInt(n.pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	n.pidfd.Close()
	if err != nil {
		return err
	}
	b.pidfd = os.NewFile(uintptr(fd), "first process") // one that can be waited for without a thread
	b.later(b.pidfd.Close)
	go awaitEnd(b.pidfd, b.lost)
	b.later(b.await)
	b.later(b.Kill)
	if b.pid, err = pidOf(b.pidfd); err != nil {
		return err
	}
	if n.of.protected {
		return b.expose()
	}
	return nil
}

// expose takes from the first process, and what it will make, the zygote's protection from the OOM killer, for good: where
// this program has CAP_SYS_RESOURCE, the value is also the lowest that they can set.
func (b *box) expose() error {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/oom_score_adj", b.pid), os.O_WRONLY, 0)
	if err = errors.Join(b.lives(), err); err == nil {
		_, err = f.WriteString("0")
	}
	if f != nil {
		err = errors.Join(err, f.Close())
	}
	return err
}

// awaitEnd closes lost when a process has ended, and with it its pid namespace.
func awaitEnd(pidfd *os.File, lost chan struct{}) {
	defer close(lost)
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return
	}
	// Its error would be that of a closed file, which waits for us.
	_ = conn.Read(func(fd uintptr) bool {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, 0)
		return n == 1 || err != nil && err != unix.EINTR
	})
}

// pidOf is a process's id in our pid namespace.
func pidOf(pidfd *os.File) (int, error) {
	var b []byte
	var err error
	withFD(pidfd, func(fd int) { b, err = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd)) })
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			if pid, err := strconv.Atoi(strings.TrimSpace(v)); err == nil && pid > 0 {
				return pid, nil
			}
		}
	}
	return 0, errors.New("the first process ended early")
}

// withFD calls f with the descriptor of a file that stays fit for waiting without a thread, as Fd would not have it.
func withFD(f *os.File, do func(fd int)) {
	if conn, err := f.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { do(int(fd)) })
	}
}

// await waits for the end of the first process.
func (b *box) await() error {
	<-b.lost
	return nil
}

// signalKill kills the first process, and with it its pid namespace.
func (b *box) signalKill() (err error) {
	withFD(b.pidfd, func(fd int) { err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
	if err == unix.ESRCH {
		return nil
	}
	return err
}

// Kill kills every process in the sandbox: the first, and with it its pid
// namespace, and whatever is in the control group.
func (b *box) Kill() error {
	select {
	case <-b.lost:
		return nil // its pid namespace is empty; the group's Close sees to anything else
	default:
	}
	return errors.Join(b.signalKill(), b.group.Kill())
}

// run has the first process run a program, and waits for its word.
func (b *box) run(p *program, want first.ReplyKind) (text string, files []*os.File, err error) {
	if err := p.send(b.sock); err != nil {
		return "", nil, err
	}
	return b.answer(b.sock, p, want)
}

// reply is answer for who expects no files.
func (b *box) reply(sock *os.File, p *program, want first.ReplyKind) (text string, err error) {
	text, files, err := b.answer(sock, p, want)
	first.CloseAll(files)
	return text, err
}

// answer waits for the word of a process on a program.
func (b *box) answer(sock *os.File, p *program, want first.ReplyKind) (text string, files []*os.File, err error) {
	r, body, files, err := first.Receive(sock)
	if err != nil {
		return "", nil, err
	}
	if r.Kind != want {
		first.CloseAll(files)
		switch r.Kind {
		case first.Failed:
			return "", nil, p.failed(r)
		case first.Ended: // the command's process was killed before it could tell of its start
			return "", nil, io.EOF
		}
		return "", nil, fmt.Errorf("a sandbox's process replies %d, not %d", r.Kind, want)
	}
	return string(body), files, nil
}

var errEndedEarly = errors.New("its first process ended early")

// ended reports whether an error is that of a process that has.
func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// explain makes words of an error that comes from the first process's death.
func (b *box) explain(err error) error {
	if !ended(err) {
		return err
	}
	return fmt.Errorf("%w, killed for want of memory or by somebody: try again (%w)", errEndedEarly, err)
}
