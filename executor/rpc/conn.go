package rpc

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/sandboxd/sandboxd/executor"
)

// conn is a client's connection, whose caller the kernel named.
type conn struct {
	net.Conn
	caller  executor.Caller
	process process
	named   digests
	refused error // why none of its calls is served
	turned  bool  // refused because there are too many, and counted apart
	session atomic.Bool
	once    sync.Once
	conns   *connections
}

// Close closes the connection and gives its place to another.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.conns.drop(c)
		c.process.close()
	})
	return c.Conn.Close()
}

// by is the caller, with the number of its process only as long as that is no other's.
func (c *conn) by() executor.Caller {
	by := c.caller
	if !c.process.lives() {
		by.PID = 0
	}
	return by
}

// mayRead reports whether the client may have a blob: if a result that it was given names it.
// Root, and who the daemon runs as, may have any.
func (c *conn) mayRead(d executor.Digest) bool {
	return c.caller.UID == 0 || int(c.caller.UID) == os.Geteuid() || c.named.has(d)
}

// maxNamed is how many digests of results, the latest, a connection remembers at least;
// it is twice as many at most.
const maxNamed = 1 << 15

// digests is a set that forgets the oldest.
type digests struct {
	mu          sync.Mutex
	now, before map[string]bool
}

func (s *digests) add(d executor.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.now) == maxNamed {
		s.now, s.before = nil, s.now
	}
	if s.now == nil {
		s.now = map[string]bool{}
	}
	s.now[d.String()] = true
}

// addResult adds what a result names, what is asked for most at the end.
func (s *digests) addResult(o *executor.TaskOutput) {
	for _, f := range o.OutputFiles {
		if f.Kind == executor.KindFile {
			s.add(f.Digest)
		}
	}
	for _, x := range []executor.Stream{o.Stdout, o.Stderr} {
		if x.Digest != (executor.Digest{}) {
			s.add(x.Digest)
		}
	}
}

func (s *digests) has(d executor.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now[d.String()] || s.before[d.String()]
}

// connections counts what is open, in all and for each user.
type connections struct {
	mu      sync.Mutex
	all     map[*conn]bool
	perUser map[uint32]int // without those that are turned away
	turned  int
}

// take counts c. One too many is taken to be told why, unless of these too there are
// too many: then take reports false.
func (cs *connections) take(c *conn) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	full := cs.full(c.caller.UID)
	switch {
	case full == nil:
		cs.perUser[c.caller.UID]++
	case cs.turned == maxTurnedAway:
		return false
	default:
		c.refused, c.turned = full, true
		cs.turned++
	}
	cs.all[c] = true
	return true
}

// full says why user gets no further connection, if so.
func (cs *connections) full(user uint32) error {
	room := maxConns
	if user != 0 {
		room -= reservedConns
	}
	switch n := len(cs.all) - cs.turned; {
	case cs.perUser[user] >= maxConnsPerUser:
		return executor.Errorf(executor.Unavailable,
			"user %d has %d connections, and gets no more; close some, or send several tasks over one", user, cs.perUser[user])
	case n >= room:
		return executor.Errorf(executor.Unavailable, "the daemon has %d connections, and takes no more; try again later", n)
	}
	return nil
}

func (cs *connections) drop(c *conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if !cs.all[c] {
		return
	}
	delete(cs.all, c)
	if c.turned {
		cs.turned--
		return
	}
	if cs.perUser[c.caller.UID]--; cs.perUser[c.caller.UID] == 0 {
		delete(cs.perUser, c.caller.UID)
	}
}

// close closes all, those too that gRPC does not know yet.
func (cs *connections) close() {
	cs.mu.Lock()
	all := make([]*conn, 0, len(cs.all))
	for c := range cs.all {
		all = append(all, c)
	}
	cs.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

// listener gives connections with their callers. What is beyond all bounds is closed
// at once, so that it costs nothing and its client sees it.
type listener struct {
	net.Listener
	conns *connections
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		n, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: n, conns: l.conns}
		c.caller, c.process, c.refused = callerOf(n)
		switch {
		case c.refused != nil:
			c.caller.UID = overflowID // which is nobody's account
		case anybody(c.caller.UID, os.Geteuid(), "uid_map"):
			c.refused = executor.Errorf(executor.Denied,
				"your user has no id here, or is nobody (it shows as %d); call as another, from outside your user namespace", overflowID)
		case anybody(c.caller.GID, os.Getegid(), "gid_map"):
			c.refused = executor.Errorf(executor.Denied,
				"your group has no id here, or is nogroup (it shows as %d); call from outside your user namespace, or with another group (newgrp)", overflowID)
		}
		if !l.conns.take(c) {
			_ = c.Close()
			continue
		}
		if c.turned {
			time.AfterFunc(turnAwayTime, func() { _ = c.Close() })
		}
		return c, nil
	}
}

// overflowID is what the kernel reports for ids that have no mapping here: it is
// anybody, so nobody. The kernel's own default of it, which is user nobody's too.
const overflowID = 65534

// anybody reports whether id is overflowID and may stand for any. It is that of user nobody, or of that group, where all ids
// have a mapping; and only where it is our own is it admitted.
func anybody(id uint32, own int, file string) bool {
	if id != overflowID {
		return false
	}
	if own != overflowID {
		return true
	}
	if runtime.GOOS != "linux" {
		return false // where there are no user namespaces
	}
	b, err := os.ReadFile("/proc/self/" + file)
	return err != nil || !slices.Equal(strings.Fields(string(b)), []string{"0", "0", "4294967295"})
}

// authInfo is the conn of a call, as gRPC carries it.
type authInfo struct {
	credentials.CommonAuthInfo
	conn *conn
}

// AuthType implements credentials.AuthInfo.
func (authInfo) AuthType() string { return "peercred" }

// peerCredentials hands a listener's conn on to the calls over it.
type peerCredentials struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (peerCredentials) ServerHandshake(n net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := n.(*conn)
	if !ok {
		return nil, nil, errors.New("not a connection of this server's listener")
	}
	return c, authInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, c}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (peerCredentials) ClientHandshake(_ context.Context, _ string, n net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return n, authInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

// Info implements credentials.TransportCredentials.
func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone implements credentials.TransportCredentials.
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (peerCredentials) OverrideServerName(string) error { return nil }
