package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// Router is a controlled task's way out. Close must be called.
type Router struct {
	*ledger
	m     *Manager
	spec  RouterSpec
	ns    *namespace
	rules ruleset

	life    context.Context // of what it relays
	cancel  context.CancelFunc
	work    sync.WaitGroup
	undo    []func() error
	tcp     atomic.Int64 // connections
	relayed []*os.File   // sockets that listen for what the relay is to take
	firsts  []*net.UDPConn
	flows   flows
	live    liveConns

	ending sync.Once
	report Report
	ended  error
}

// Start makes a Router, in a namespace of its own. The task's end of the link comes with Attach.
func (m *Manager) Start(spec RouterSpec) (_ *Router, err error) {
	r := &Router{m: m, spec: spec, ledger: newLedger(&spec)}
	r.flows.all, r.live.all, r.live.dialing = map[flowKey]*flow{}, map[net.Conn]bool{}, map[*net.TCPConn]context.CancelFunc{}
	r.life, r.cancel = context.WithCancel(context.Background())
	if r.ns, err = newNamespace(); err != nil {
		r.cancel()
		return nil, fmt.Errorf("netpolicy: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("netpolicy: %w", err), r.unmake())
		}
	}()
	if err := r.ns.do(func() error { return readyRouter(spec.Addresses) }); err != nil {
		return nil, err
	}
	own, err := m.own()
	if err != nil {
		return nil, err
	}
	r.rules.ns = r.ns.file
	if err := r.rules.install(&spec, append(own, m.cfg.Deny...)); err != nil {
		return nil, err
	}
	if err := r.listen(); err != nil {
		return nil, err
	}
	return r, nil
}

// listen opens the sockets of the relay and the resolver, in the namespace, and serves them.
func (r *Router) listen() error {
	slots := make(chan struct{}, maxQueries)
	for _, a := range r.spec.Addresses.routers() {
		network, all := "4", "0.0.0.0"
		if a.Is6() {
			network, all = "6", "::"
		}
		var relayed, questions *net.TCPListener
		var datagrams, queries *net.UDPConn
		err := r.ns.do(func() (err error) {
			relay, resolver := net.JoinHostPort(all, strconv.Itoa(relayPort)), net.JoinHostPort(a.String(), "53")
			if relayed, err = listenTCP("tcp"+network, relay); err != nil {
				return err
			}
			r.later(closing(relayed))
			if datagrams, err = listenUDP("udp"+network, relay); err != nil {
				return err
			}
			r.later(closing(datagrams))
			if questions, err = listenTCP("tcp"+network, resolver); err != nil {
				return err
			}
			r.later(closing(questions))
			if queries, err = listenUDP("udp"+network, resolver); err != nil {
				return err
			}
			r.later(closing(queries))
			return nil
		})
		if err != nil {
			return fmt.Errorf("listen for the task: %w", err)
		}
		// A net.Listener does not let others accept.
		f, err := relayed.File()
		if err != nil {
			return fmt.Errorf("listen for the task: %w", err)
		}
		r.later(f.Close)
		r.relayed, r.firsts = append(r.relayed, f), append(r.firsts, datagrams)
		r.work.Go(func() { r.acceptTCP(f) })
		r.work.Go(func() { r.readUDP(datagrams) })
		r.serveDNS(slots, queries, netutil.LimitListener(questions, maxConsumers))
	}
	return nil
}

func (r *Router) later(f func() error) { r.undo = append(r.undo, f) }

// closing closes what a server may have closed already.
func closing(c io.Closer) func() error {
	return func() error {
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// undoAll closes what listens.
func (r *Router) undoAll() error {
	var errs []error
	for _, f := range slices.Backward(r.undo) {
		errs = append(errs, f())
	}
	r.undo = nil
	return errors.Join(errs...)
}

// transparent lets a socket be for destinations that are not its namespace's.
func transparent(network, _ string, c syscall.RawConn) (err error) {
	e := c.Control(func(fd uintptr) {
		if network[len(network)-1] == '6' {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_V6ONLY, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1))
		} else {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1))
		}
	})
	return errors.Join(e, err)
}

func listenTCP(network, address string) (*net.TCPListener, error) {
	l, err := (&net.ListenConfig{Control: transparent}).Listen(context.Background(), network, address)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

func listenUDP(network, address string) (*net.UDPConn, error) {
	l, err := (&net.ListenConfig{Control: transparent}).ListenPacket(context.Background(), network, address)
	if err != nil {
		return nil, err
	}
	return l.(*net.UDPConn), nil
}

// Attach makes the link to a task's network namespace, readies both ends, and says what was found there.
// The file stays the caller's.
func (r *Router) Attach(task *os.File) (found string, err error) {
	err = r.ns.do(func() error {
		found, err = link(r.spec.Addresses, task)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("netpolicy: link: %w", err)
	}
	return found, nil
}

// drainTime is how long Finish waits for what the task has sent to be passed on.
const drainTime = time.Second

// Finish ends all connections, once the task has: what it sent is passed on first, within
// bounds. It returns what the Router saw; later calls return the same.
func (r *Router) Finish() (Report, error) {
	r.ending.Do(func() { r.report, r.ended = r.finish() })
	return r.report, r.ended
}

func (r *Router) finish() (Report, error) {
	r.drain()
	r.cancel()
	r.flows.bound(time.Now().Add(drainTime))
	err := r.undoAll()
	r.flows.close()
	r.live.close()
	r.work.Wait()
	if err != nil {
		return Report{}, fmt.Errorf("netpolicy: %w", err)
	}
	all, total, err := r.rules.read()
	if err != nil {
		return Report{}, fmt.Errorf("netpolicy: %w", err)
	}
	for _, x := range all {
		reason := noRule
		if p := r.m.refusal(x.addr); p != "" {
			reason = p
		} else if slices.Contains(r.spec.Addresses.routers(), x.addr) {
			reason = linksOwn
		}
		r.refuse(protocol(x.proto), netip.AddrPortFrom(x.addr, x.port), "", reason, x.count)
		total -= x.count
	}
	report := r.ledger.report()
	report.DeniedTotal += max(0, total) // of destinations that are too many to list
	return report, nil
}

// drain waits a while until all that a task has sent, which is dead by now, is passed on.
func (r *Router) drain() {
	pending := func() bool {
		r.live.abandon()
		return r.live.pending(r.relayed) || slices.ContainsFunc(r.firsts, readable) || r.flows.pending()
	}
	for end := time.Now().Add(drainTime); pending() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

func protocol(p byte) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	}
	return strconv.Itoa(int(p))
}

// Close ends the Router; nothing of it is left.
func (r *Router) Close() error {
	_, err := r.Finish()
	return errors.Join(err, r.unmake())
}

// unmake undoes Start, as far as it came.
func (r *Router) unmake() error {
	r.cancel()
	err := r.undoAll()
	r.work.Wait()
	if r.ns != nil {
		err = errors.Join(err, r.ns.close())
		r.ns = nil
	}
	return err
}
