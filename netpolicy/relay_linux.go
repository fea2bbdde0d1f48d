package netpolicy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dialTime bounds a connection attempt.
	dialTime = time.Minute
	// idleUDP ends a flow that nothing passes by.
	idleUDP = time.Minute
	// goneUDP does so where an end was said to be closed.
	goneUDP = time.Second
	tooMany = "too many connections at once"
)

// allow checks a destination as the kernel's rules did, and against what they cannot know.
func (r *Router) allow(proto string, to netip.AddrPort) (rule string, ok bool) {
	rule, ok = r.permit(proto, to)
	reason := noRule
	if ok {
		if reason = r.m.refusal(to.Addr()); reason == "" {
			r.need(proto, to, rule)
			return rule, true
		}
	}
	r.refuse(proto, to, "", reason, 1)
	return "", false
}

// liveConns are the task's connections.
type liveConns struct {
	mu      sync.Mutex
	closed  bool
	all     map[net.Conn]bool
	sending int // how many of them the task may still send by
	// dialing are those that are not connected yet, with what gives up.
	dialing map[*net.TCPConn]context.CancelFunc
}

// accept waits for a connection, and counts it as one that the task may still send by: whoever
// has it calls sent. Taken and counted is one step, which drain relies upon.
func (l *liveConns) accept(from *os.File) (*net.TCPConn, error) {
	raw, err := from.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var failed error
	err = raw.Read(func(listener uintptr) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		if fd, _, failed = unix.Accept4(int(listener), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); failed == nil {
			l.sending++
		}
		return failed != unix.EAGAIN
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close() // FileConn has its own
	c, err := net.FileConn(f)
	if err != nil {
		l.sent()
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (l *liveConns) sent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sending--
}

// add reports whether there is still a place for c.
func (l *liveConns) add(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.all[c] = true
	return true
}

// dial connects to where the task's connection goes.
func (l *liveConns) dial(life context.Context, task *net.TCPConn, to string) (*net.TCPConn, error) {
	life, giveUp := context.WithTimeout(life, dialTime)
	defer giveUp()
	l.mu.Lock()
	l.dialing[task] = giveUp
	l.mu.Unlock()
	c, err := new(net.Dialer).DialContext(life, "tcp", to)
	l.mu.Lock()
	delete(l.dialing, task)
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// abandon gives up the connections of a task, which is dead by now, that it closed before there was
// anyone to send to, with nothing sent.
func (l *liveConns) abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for task, giveUp := range l.dialing {
		if ended(task) {
			giveUp()
		}
	}
}

// ended reports whether the end of a connection is what comes next.
func ended(c *net.TCPConn) (yes bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		yes = err == nil && n == 0 || err != nil && err != unix.EAGAIN
	})
	return yes || err != nil
}

func (l *liveConns) remove(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, c)
}

func (l *liveConns) pending(from []*os.File) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sending > 0 || slices.ContainsFunc(from, func(x *os.File) bool { return waiting(x) > 0 })
}

// waiting is how many connections wait to be accepted: tcp_get_info() has that of listeners.
func waiting(l *os.File) (n uint32) {
	c, err := l.SyscallConn()
	if err != nil {
		return 0
	}
	c.Control(func(fd uintptr) { //nolint:errcheck // closed: none waits
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = info.Unacked
		}
	})
	return n
}

func (l *liveConns) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for c := range l.all {
		c.Close()
	}
}

func (r *Router) acceptTCP(l *os.File) {
	for {
		c, err := r.live.accept(l)
		if err != nil {
			if r.life.Err() != nil {
				return
			}
			// Out of descriptors, perhaps; the task waits meanwhile.
			select {
			case <-time.After(10 * time.Millisecond):
			case <-r.life.Done():
			}
			continue
		}
		if r.tcp.Add(1) > maxTCP || !r.m.take() {
			r.tcp.Add(-1)
			r.refuse("tcp", destination(c), "", tooMany, 1)
			reset(c)
			r.live.sent()
			continue
		}
		r.work.Go(func() {
			defer r.tcp.Add(-1)
			defer r.m.give()
			r.relayTCP(c)
		})
	}
}

// destination is where a redirected connection was meant to go.
func destination(c net.Conn) netip.AddrPort {
	to := c.LocalAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
}

func reset(c *net.TCPConn) {
	c.SetLinger(0) //nolint:errcheck // then it is only closed
	c.Close()
}

// relayTCP passes on one connection of the task's.
func (r *Router) relayTCP(task *net.TCPConn) {
	sentAll := sync.OnceFunc(r.live.sent)
	defer sentAll()
	to := destination(task)
	rule, ok := r.allow("tcp", to)
	if !ok || !r.live.add(task) {
		reset(task)
		return
	}
	defer r.live.remove(task)
	up, err := r.live.dial(r.life, task, to.String())
	if err != nil {
		reset(task)
		r.account(rule, 1, 0, 0)
		return
	}
	// Cut both off when the Router ends.
	stop := context.AfterFunc(r.life, func() { up.Close() })
	defer stop()
	var sent, received int64
	var upErr, downErr error
	var both sync.WaitGroup
	// Where one way breaks, so does the other. When the Router ends, though, what is on its way
	// from the task is left to the kernel.
	end := func(broken bool) {
		if broken && r.life.Err() == nil {
			reset(up)
			reset(task)
		}
		up.Close()
		task.Close()
	}
	both.Go(func() {
		defer sentAll()
		if sent, upErr = pass(up, task); upErr != nil {
			end(true)
		}
	})
	both.Go(func() {
		if received, downErr = pass(task, up); downErr != nil {
			end(true)
		}
	})
	both.Wait()
	end(false)
	r.account(rule, 1, sent, received)
}

// pass copies one way until its end, and passes that on as well.
func pass(to, from *net.TCPConn) (int64, error) {
	n, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
		if errors.Is(err, unix.ENOTCONN) { // it has gone meanwhile
			err = nil
		}
	}
	return n, err
}

// flowKey names a flow of UDP: from which port of the task's, to where.
type flowKey struct {
	from, to netip.AddrPort
}

// flows are those of one task.
type flows struct {
	mu     sync.Mutex
	closed bool
	all    map[flowKey]*flow
}

// flow relays datagrams between two sockets: that in the router's namespace is bound to the
// destination and connected to the task, so that later packets come to it.
type flow struct {
	task, up       *net.UDPConn
	rule           string
	sent, received atomic.Int64
	last           atomic.Int64 // when something passed, in Unix nanoseconds
}

// close ends the task's side first: that waits for a datagram that is being passed on.
func (f *flow) close() {
	f.task.Close()
	f.up.Close()
}

func (f *flows) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, x := range f.all {
		x.close()
	}
}

// pending reports whether anything of the task's waits to be passed on.
func (f *flows) pending() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.all {
		if readable(x.task) {
			return true
		}
	}
	return false
}

// bound ends the writing to where no more is taken.
func (f *flows) bound(until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.all {
		x.up.SetWriteDeadline(until) //nolint:errcheck // closed: nothing is written
	}
}

// readable reports whether a datagram waits.
func readable(c *net.UDPConn) (yes bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	raw.Control(func(fd uintptr) { //nolint:errcheck // closed: none waits
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		yes = err == nil && n > 0 && p[0].Revents&unix.POLLIN != 0
	})
	return yes
}

// readUDP takes the first packets of flows. Taken and passed on is one step, for whose end a closing
// socket waits.
func (r *Router) readUDP(l *net.UDPConn) {
	raw, err := l.SyscallConn()
	if err != nil {
		return
	}
	b, oob := make([]byte, 1<<16), make([]byte, 256)
	for {
		err := raw.Read(func(fd uintptr) bool {
			n, on, _, from, err := unix.Recvmsg(int(fd), b, oob, unix.MSG_DONTWAIT)
			if err == nil {
				r.first(b[:n], oob[:on], from)
			}
			return err != unix.EAGAIN
		})
		if err != nil { // closed
			return
		}
	}
}

func (r *Router) first(b, oob []byte, from unix.Sockaddr) {
	to, ok := originalDestination(oob)
	if !ok {
		return
	}
	if f := r.flow(flowKey{addrPort(from), to}); f != nil {
		f.pass(f.up, b, &f.sent)
	}
}

func originalDestination(oob []byte) (to netip.AddrPort, ok bool) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return to, false
	}
	for _, m := range msgs {
		if sa, err := unix.ParseOrigDstAddr(&m); err == nil {
			to = addrPort(sa)
			return to, to.IsValid()
		}
	}
	return to, false
}

func addrPort(sa unix.Sockaddr) (a netip.AddrPort) {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return a
}

// flow finds a flow or begins it; nil if it may not be.
func (r *Router) flow(key flowKey) *flow {
	r.flows.mu.Lock()
	defer r.flows.mu.Unlock()
	if f := r.flows.all[key]; f != nil {
		return f
	}
	rule, ok := r.allow("udp", key.to)
	if !ok || r.flows.closed {
		return nil
	}
	if len(r.flows.all) >= maxUDP || !r.m.take() {
		r.refuse("udp", key.to, "", tooMany, 1)
		return nil
	}
	f, err := r.open(key)
	if err != nil {
		r.m.give()
		return nil // as on any network: no answer comes
	}
	f.rule = rule
	f.last.Store(time.Now().UnixNano())
	r.flows.all[key] = f
	r.work.Go(func() {
		defer r.m.give()
		var both sync.WaitGroup
		// What comes next is another flow's.
		end := func() {
			r.flows.mu.Lock()
			if r.flows.all[key] == f {
				delete(r.flows.all, key)
			}
			r.flows.mu.Unlock()
			f.close()
		}
		both.Go(func() { defer end(); f.copy(f.up, f.task, &f.sent) })
		both.Go(func() { defer end(); f.copy(f.task, f.up, &f.received) })
		both.Wait()
		r.account(rule, 1, f.sent.Load(), f.received.Load())
	})
	return f
}

// open makes the sockets of a flow.
func (r *Router) open(key flowKey) (*flow, error) {
	up, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(key.to))
	if err != nil {
		return nil, err
	}
	f := &flow{up: up}
	if err := r.ns.do(func() (err error) { f.task, err = answerer(key); return err }); err != nil {
		return nil, errors.Join(err, up.Close())
	}
	return f, nil
}

// answerer makes the socket that a flow's answers come from. It runs in the router's namespace.
func answerer(key flowKey) (*net.UDPConn, error) {
	fam, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	if key.to.Addr().Is6() {
		fam, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	fd, err := unix.Socket(fam, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "udp")
	defer f.Close() // FileConn has its own
	err = errors.Join(unix.SetsockoptInt(fd, level, option, 1), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	if err == nil {
		err = unix.Bind(fd, sockaddr(key.to))
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(key.from))
	}
	// The rules lead to it by its mark, so not before it is connected: it would take what is another flow's.
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, permitted)
	}
	if err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// pass sends one datagram on, and counts it. One that is too large for the way is lost, as on
// any network.
func (f *flow) pass(to *net.UDPConn, b []byte, count *atomic.Int64) {
	f.last.Store(time.Now().UnixNano())
	if _, err := to.Write(b); err == nil {
		count.Add(int64(len(b)))
	}
}

// copy passes datagrams on until the flow was idle, which is soon once either end has gone.
func (f *flow) copy(to, from *net.UDPConn, count *atomic.Int64) {
	raw, err := from.SyscallConn()
	if err != nil {
		return
	}
	for limit := idleUDP; ; {
		idle := time.Since(time.Unix(0, f.last.Load()))
		if idle >= limit {
			return
		}
		if err := from.SetReadDeadline(time.Now().Add(limit - idle)); err != nil {
			return
		}
		err := receive(raw, func(b []byte) { f.pass(to, b, count) })
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			limit = goneUDP // more may be queued, or on its way
		}
	}
}

// datagrams are buffers, of which a flow has one only while it has something to pass on.
var datagrams = sync.Pool{New: func() any { return new([1 << 16]byte) }}

// receive waits for one datagram.
func receive(c syscall.RawConn, use func([]byte)) error {
	var failed error
	err := c.Read(func(fd uintptr) bool {
		b := datagrams.Get().(*[1 << 16]byte)
		defer datagrams.Put(b)
		n, err := unix.Read(int(fd), b[:])
		if err == nil {
			use(b[:n])
		}
		failed = err
		return err != unix.EAGAIN && err != unix.EINTR
	})
	return errors.Join(err, failed)
}
