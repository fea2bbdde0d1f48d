package rpc_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

const (
	connsPerUser = 64
	conns        = 512
	streams      = 8
)

// as runs f on a thread that has the effective user id uid, which connections made by f have.
func as(t *testing.T, uid int, f func()) {
	t.Helper()
	var errno syscall.Errno
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for ever, so that the thread ends with this function
		const keep = ^uintptr(0)
		if _, _, errno = syscall.RawSyscall(syscall.SYS_SETRESUID, keep, uintptr(uid), keep); errno == 0 {
			f()
		}
	}()
	<-done
	if errno != 0 {
		t.Fatalf("become user %d: %v", uid, errno)
	}
}

// public lets every user connect to socket.
func public(t *testing.T, socket string) {
	t.Helper()
	for p, mode := range map[string]os.FileMode{filepath.Dir(socket): 0o755, socket: 0o666} {
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
	}
}

// idle makes n connections that speak HTTP/2 and then say nothing, and gives those
// that the server keeps.
func idle(t *testing.T, socket string, n int) (kept []net.Conn) {
	t.Helper()
	for range n {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Errorf("connect: %v", err)
			return kept
		}
		t.Cleanup(func() { _ = c.Close() })
		_, _ = io.WriteString(c, http2.ClientPreface+settings)
		if _, err := io.ReadFull(c, make([]byte, len(settings))); err == nil {
			kept = append(kept, c)
		}
	}
	return kept
}

func dialAs(t *testing.T, uid int, socket string) (c *rpc.Client, err error) {
	t.Helper()
	as(t, uid, func() { c, err = rpc.Dial(t.Context(), socket) })
	return c, err
}

func TestOneUserHasABoundedNumberOfConnections(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	var all []*rpc.Client
	for range connsPerUser {
		all = append(all, dial(t, socket))
	}
	for range 10 {
		_, err := rpc.Dial(t.Context(), socket)
		if executor.KindOf(err) != executor.Unavailable || !strings.Contains(err.Error(), "64 connections") {
			t.Fatalf("one connection too many: %v; want the bound named", err)
		}
	}
	for _, c := range all[:connsPerUser-1] {
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := all[connsPerUser-1].Ping(t.Context()); err != nil {
		t.Errorf("one of the connections: %v", err)
	}
	await(t, "the server does not take connections again", func() bool {
		c, err := rpc.Dial(t.Context(), socket)
		return err == nil && c.Close(t.Context()) == nil
	})
	healthy(t, socket)
}

// TestManyConnectionsAreCutOff: those beyond what can be told why are just closed.
func TestManyConnectionsAreCutOff(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	kept := idle(t, socket, 300)
	if n := len(kept); n < connsPerUser || n > 2*connsPerUser {
		t.Errorf("of 300 connections %d are open; want about %d", n, connsPerUser)
	}
	// Those that are told why may have had their time, so that one of these is next.
	if _, err := rpc.Dial(t.Context(), socket); executor.KindOf(err) != executor.Unavailable || !strings.Contains(err.Error(), "connections") {
		t.Errorf("one connection more: %v; want what is wrong", err)
	}
	for _, c := range kept {
		_ = c.Close()
	}
	await(t, "the server does not take connections again", func() bool {
		c, err := rpc.Dial(t.Context(), socket)
		return err == nil && c.Close(t.Context()) == nil
	})
	healthy(t, socket)
}

func TestUsersCannotKeepOthersOut(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	public(t, socket)
	var kept []net.Conn
	for uid := range 2 * conns / connsPerUser {
		as(t, 4000+uid, func() { kept = append(kept, idle(t, socket, connsPerUser)...) })
	}
	if len(kept) > conns {
		t.Errorf("%d connections are open; want at most %d", len(kept), conns)
	}
	if _, err := dialAs(t, 5000, socket); executor.KindOf(err) != executor.Unavailable {
		t.Errorf("one user more: %v", err)
	}
	healthy(t, socket) // root can look and stop it
	for _, c := range kept {
		_ = c.Close()
	}
	await(t, "the server does not take connections again", func() bool {
		c, err := dialAs(t, 5000, socket)
		return err == nil && c.Close(t.Context()) == nil
	})
}

func TestAUserWithoutAnIDIsRefused(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	ran := false
	_, socket := serve(t, rpc.ServerConfig{Executor: probe{output: func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
		ran = true
		return &executor.TaskOutput{}, nil
	}}})
	public(t, socket)
	if _, err := dialAs(t, 65534, socket); executor.KindOf(err) != executor.Denied || !strings.Contains(err.Error(), "65534") {
		t.Errorf("user 65534: %v; want denied, and why", err)
	}
	refuses(t, socket, 65534)
	c, err := dialAs(t, 1000, socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Execute(t.Context(), &executor.TaskSpec{Script: "x"}); err != nil || !ran {
		t.Errorf("user 1000: %v", err)
	}
	if err := c.Shutdown(t.Context(), 0); executor.KindOf(err) != executor.Denied {
		t.Errorf("shutdown by user 1000: %v; want denied", err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// refuses shows that no call at all of user uid is served.
func refuses(t *testing.T, socket string, uid int) {
	t.Helper()
	var n net.Conn
	var err error
	as(t, uid, func() { n, err = net.Dial("unix", socket) })
	if err != nil {
		t.Fatal(err)
	}
	cc := connect(t, socket, grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return n, nil }))
	for _, method := range []string{
		pb.Executor_Session_FullMethodName, pb.Executor_ReadBlob_FullMethodName, "/grpc.health.v1.Health/Check",
		"/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
	} {
		s, err := cc.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.SendMsg(&pb.Digest{})
		_ = s.CloseSend()
		if err := s.RecvMsg(&pb.Blob{}); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s by user %d: %v; want denied", method, uid, err)
		}
	}
	_ = cc.Close()
}

func TestStreamsOfAConnectionAreBounded(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	n, f := rawFrames(t, socket)
	h := headers(pb.Executor_ReadBlob_FullMethodName)
	for i := range uint32(4 * streams) {
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 3 + 2*i, EndHeaders: true, BlockFragment: h}); err != nil {
			t.Fatal(err)
		}
	}
	for refused := 0; refused <= 3*streams; {
		m, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("%d streams refused: %v", refused, err)
		}
		if r, ok := m.(*http2.RSTStreamFrame); ok {
			if r.ErrCode != http2.ErrCodeRefusedStream || r.StreamID < 2*streams {
				t.Fatalf("stream %d: %v; want those beyond the bound refused", r.StreamID, r.ErrCode)
			}
			refused++
		}
	}
	healthy(t, socket)
	_ = n.Close()
}

// TestMessagesThatNeverEndAreBounded: each stream of a connection holds a message at most.
func TestMessagesThatNeverEndAreBounded(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	before := heap()
	n, f := rawFrames(t, socket)
	_ = f.WriteWindowUpdate(0, 1<<30)
	go func() { _, _ = io.Copy(io.Discard, n) }()
	piece := make([]byte, 16<<10)
	for id := uint32(1); id < 2*streams; id += 2 {
		if id > 1 {
			if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: headers("/grpc.health.v1.Health/Check")}); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.WriteData(id, false, binary.BigEndian.AppendUint32([]byte{0}, executor.MaxSpecBytes)); err != nil {
			t.Fatal(err)
		}
	}
	for range executor.MaxSpecBytes/len(piece) - 1 {
		for id := uint32(1); id < 2*streams; id += 2 {
			// Flow control is not heeded: what comes too early may end the connection.
			if f.WriteData(id, false, piece) != nil {
				break
			}
		}
	}
	healthy(t, socket)
	grown(t, before, 2*streams*executor.MaxSpecBytes)
	_ = n.Close()
}

// TestLongListsAreRefused: entries of two bytes each take a hundred when they are
// unpacked, so their number is bounded before they are.
func TestLongListsAreRefused(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	fields := (&pb.TaskSpec{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !f.IsList() {
			continue
		}
		entry := protowire.AppendBytes(protowire.AppendTag(nil, f.Number(), protowire.BytesType), nil)
		spec := bytes.Repeat(entry, executor.MaxSpecBytes/len(entry))
		body := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), spec)
		message := protowire.AppendBytes(protowire.AppendTag([]byte{8, 2}, 2, protowire.BytesType), body)
		s := open(t, socket, grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
		s.ping(1)
		var was, now runtime.MemStats
		runtime.ReadMemStats(&was)
		if err := s.SendMsg(message); err != nil {
			t.Fatal(err)
		}
		if m, err := s.Recv(); err == nil || !strings.Contains(err.Error(), "entries") {
			t.Errorf("%s: %v, %v; want the session ended, and why", f.Name(), m, err)
		}
		runtime.ReadMemStats(&now)
		// The copies of the bytes on their way, and no more.
		if grew := now.TotalAlloc - was.TotalAlloc; grew > 10*executor.MaxSpecBytes {
			t.Errorf("%s: %d MiB were made of one message", f.Name(), grew>>20)
		}
	}
	healthy(t, socket)
}
