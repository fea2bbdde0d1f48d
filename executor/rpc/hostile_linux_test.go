package rpc_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
	"github.com/sandboxd/sandboxd/executor/executortest"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// patience bounds what a test awaits, so that a hang fails it rather than all.
const patience = 40 * time.Second

// healthy shows that a client that comes now is served.
func healthy(t *testing.T, socket string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := rpc.Dial(ctx, socket)
	if err != nil {
		t.Fatalf("a healthy client: %v", err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	out, err := c.Execute(ctx, &executor.TaskSpec{Script: "echo fine"})
	if err != nil || string(out.Stdout.Inline) != "fine\n" {
		t.Fatalf("a healthy client's task: %+v, %v", out, err)
	}
}

// ended is a task that is over.
type ended struct {
	name string
	out  *executor.TaskOutput
	err  error
}

// observed is a Fake that tells of every end of a task.
type observed struct {
	*executortest.Fake
	ends chan ended
}

func (o observed) Execute(ctx context.Context, s *executor.TaskSpec) (*executor.TaskOutput, error) {
	out, err := o.Fake.Execute(ctx, s)
	if s != nil {
		o.ends <- ended{s.Name, out, err}
	}
	return out, err
}

func (o observed) await(t *testing.T, name string) ended {
	t.Helper()
	for {
		select {
		case e := <-o.ends:
			if e.name == name {
				return e
			}
		case <-time.After(patience):
			t.Fatalf("the task %s does not end", name)
		}
	}
}

// observe serves an observed Fake.
func observe(t *testing.T) (observed, *rpc.Server, string) {
	t.Helper()
	o := observed{executortest.NewFake(), make(chan ended, 1000)}
	t.Cleanup(func() { _ = o.Fake.Close(canceled()) })
	s, socket := serve(t, rpc.ServerConfig{Executor: o, Blobs: o})
	return o, s, socket
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// connect is a gRPC client that is none of ours.
func connect(t testing.TB, socket string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	cc, err := grpc.NewClient("unix:"+socket, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// session is a client that sends what it likes.
type session struct {
	*testing.T
	pb.Executor_SessionClient
	cc *grpc.ClientConn
}

func open(t *testing.T, socket string, opts ...grpc.DialOption) *session {
	t.Helper()
	cc := connect(t, socket, opts...)
	s, err := pb.NewExecutorClient(cc).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &session{t, s, cc}
}

func (s *session) send(m *pb.Request) {
	s.Helper()
	if err := s.Send(m); err != nil {
		s.Fatalf("send: %v", err)
	}
}

func (s *session) recv() *pb.Response {
	s.Helper()
	m, err := s.Recv()
	if err != nil {
		s.Fatalf("receive: %v", err)
	}
	return m
}

// ping shows that the session goes on.
func (s *session) ping(id uint64) {
	s.Helper()
	s.send(&pb.Request{Id: id, Body: &pb.Request_Ping{Ping: &pb.Ping{}}})
	if m := s.recv(); m.GetId() != id || m.GetPong() == nil {
		s.Fatalf("ping %d answered by %v", id, m)
	}
}

func task(id uint64, spec *pb.TaskSpec) *pb.Request {
	return &pb.Request{Id: id, Body: &pb.Request_ExecuteTask{ExecuteTask: &pb.ExecuteTask{Spec: spec}}}
}

func script(s string) *pb.TaskSpec { return &pb.TaskSpec{Script: []byte(s)} }

func dialRaw(t *testing.T, socket string) net.Conn {
	t.Helper()
	n, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // an empty SETTINGS frame

func TestBytesThatAreNoProtocolAreHungUpOn(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	garbage := make([]byte, 1<<16)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(garbage)
	var wg sync.WaitGroup
	for name, bytes := range map[string]string{
		"nothing":                     "",
		"garbage":                     string(garbage),
		"zeros":                       strings.Repeat("\x00", 1<<16),
		"another protocol":            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"half a preface":              http2.ClientPreface[:11],
		"a preface, then nothing":     http2.ClientPreface,
		"a preface, then garbage":     http2.ClientPreface + string(garbage),
		"half of the first frame":     http2.ClientPreface + settings[:5],
		"garbage in place of frames":  http2.ClientPreface + settings + string(garbage),
		"a frame that is too large":   http2.ClientPreface + settings + "\xff\xff\xff\x00\x00\x00\x00\x00\x01" + string(garbage),
		"headers that do not decode":  http2.ClientPreface + settings + "\x00\x00\x04\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff",
		"a continuation of no header": http2.ClientPreface + settings + "\x00\x00\x01\x09\x00\x00\x00\x00\x01\x00",
	} {
		n := dialRaw(t, socket)
		// The server may close while we write.
		_, _ = io.WriteString(n, bytes)
		wg.Go(func() {
			_ = n.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, n); err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: not hung up on: %v", name, err)
			}
		})
	}
	healthy(t, socket)
	wg.Wait()
	healthy(t, socket)
}

// rawFrames is a client that speaks HTTP/2 itself, with a Session open as stream 1.
func rawFrames(t *testing.T, socket string) (net.Conn, *http2.Framer) {
	t.Helper()
	n := dialRaw(t, socket)
	if _, err := io.WriteString(n, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(n, n)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: headers(pb.Executor_Session_FullMethodName)}); err != nil {
		t.Fatal(err)
	}
	return n, f
}

func TestAMessageThatNeverEndsHoldsUpNobody(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	n, f := rawFrames(t, socket)
	// A message of a MiB is announced, some of it comes, and half a frame with more.
	head := binary.BigEndian.AppendUint32([]byte{0}, 1<<20)
	if err := f.WriteData(1, false, append(head, 1, 2, 3)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Write([]byte{0, 0x40, 0, 0, 0, 0, 0, 0, 1, 'h', 'a', 'l', 'f'}); err != nil {
		t.Fatal(err)
	}
	healthy(t, socket)
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	healthy(t, socket)
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) ([]byte, error) {
	if b, ok := v.([]byte); ok {
		return b, nil
	}
	return proto.Marshal(v.(proto.Message))
}
func (rawCodec) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }

func TestMessagesThatAreNoneEndTheSessionWithAReason(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"too large":        make([]byte, executor.MaxSpecBytes+1<<20),
		"not a message":    []byte("\xff\xff\xff\xff"),
		"cut short":        []byte("\x12\x0a\x0a\x08\x08\x01"),
		"no such wiretype": []byte("\x17"),
	} {
		t.Run(name, func(t *testing.T) {
			testutil.CheckLeaks(t)
			o, _, socket := observe(t)
			s := open(t, socket, grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
			s.ping(1)
			s.send(task(2, &pb.TaskSpec{Name: []byte("mine"), Script: []byte("sleep 1000")}))
			if err := s.SendMsg(bytes); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			for {
				m, err := s.Recv()
				if err == nil {
					t.Logf("answered: %v", m)
					continue
				}
				if !strings.Contains(err.Error(), "received message") {
					t.Errorf("the session ended with %v; want what is wrong with the message", err)
				}
				break
			}
			if e := o.await(t, "mine"); e.err == nil && e.out.Cause != executor.CauseCanceled {
				t.Errorf("the task of a broken session: %+v, %v; want canceled", e.out, e.err)
			}
			healthy(t, socket)
		})
	}
}

func TestNoMessageGrowsInDecompression(t *testing.T) {
	for _, name := range []string{"gzip", "deflate", "snappy", "zstd"} {
		if encoding.GetCompressor(name) != nil {
			t.Errorf("%s is linked in; a message of 4 MiB could grow without end", name)
		}
	}
}

func TestRequestsWithoutSense(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	s := open(t, socket)
	unknown := &pb.Request{Id: 7}
	unknown.ProtoReflect().SetUnknown(protoreflect.RawFields("\x9a\x06\x03abc")) // field 99
	deep := script("true")
	deep.ProtoReflect().SetUnknown(protoreflect.RawFields(strings.Repeat("\xa3\x06", 1000) + strings.Repeat("\xa4\x06", 1000)))
	for name, m := range map[string]*pb.Request{
		"no body":         {Id: 7},
		"an unknown body": unknown,
		"no id":           {Body: &pb.Request_Ping{Ping: &pb.Ping{}}},
		"no task":         {Id: 7, Body: &pb.Request_ExecuteTask{}},
		"no spec":         task(7, nil),
		"an empty spec":   task(7, &pb.TaskSpec{}),
		"workdir mode":    task(7, &pb.TaskSpec{Script: []byte("true"), WorkdirMode: []byte("write-through")}),
		"network":         task(7, &pb.TaskSpec{Script: []byte("true"), Network: []byte("everything")}),
		"cache":           task(7, &pb.TaskSpec{Script: []byte("true"), Cache: []byte("\x00")}),
		"timeout":         task(7, &pb.TaskSpec{Script: []byte("true"), TimeoutNs: math.MaxInt64}),
		"negative":        task(7, &pb.TaskSpec{Script: []byte("true"), TimeoutNs: math.MinInt64}),
	} {
		s.send(m)
		a := s.recv()
		if e := a.GetError(); a.GetId() != m.GetId() || executor.Kind(e.GetKind()) != executor.Invalid {
			t.Errorf("%s: answered by %v; want that it is invalid", name, a)
		}
	}
	s.send(task(8, deep))
	if a := s.recv(); a.GetId() != 8 {
		t.Errorf("deep unknown groups: %v", a)
	}
	s.send(talk(9))
	for _, n := range []int64{math.MinInt64, -1, math.MaxInt64, math.MaxInt64} {
		for _, id := range []uint64{0, 9, 10, math.MaxUint64} {
			s.send(&pb.Request{Id: id, Body: &pb.Request_EventsTaken{EventsTaken: &pb.EventsTaken{Events: n}}})
		}
	}
	if a := s.recv(); a.GetId() != 9 || a.GetTaskEvent() == nil && a.GetTaskResult() == nil {
		t.Errorf("a task whose events are not counted as they came: %v", a)
	}
	healthy(t, socket)
}

// TestEventsThatAreNotReportedStop: a client that reads, and does not say so, is sent no more.
func TestEventsThatAreNotReportedStop(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := serve(t, rpc.ServerConfig{Executor: &talker{}})
	s := open(t, socket)
	s.send(talk(1))
	for range executor.EventWindow {
		if m := s.recv(); m.GetTaskEvent() == nil {
			t.Fatalf("got %v; want an event", m)
		}
	}
	s.ping(2) // and no event between
	s.send(&pb.Request{Id: 1, Body: &pb.Request_EventsTaken{EventsTaken: &pb.EventsTaken{Events: 1}}})
	if m := s.recv(); m.GetTaskEvent() == nil {
		t.Fatalf("got %v; want one event more", m)
	}
	s.ping(3)
}

// hostileValues are what a field may not hold, by its type.
func hostileValues(f protoreflect.FieldDescriptor) []protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BytesKind:
		var vs []protoreflect.Value
		for _, s := range []string{"\xff\xfe", "\x00", "\xed\xa0\x80", "../../etc/shadow", "/proc/self/fd/1\n", strings.Repeat("x", 1<<20)} {
			vs = append(vs, protoreflect.ValueOfBytes([]byte(s)))
		}
		return vs
	case protoreflect.Int32Kind:
		return []protoreflect.Value{protoreflect.ValueOfInt32(math.MinInt32), protoreflect.ValueOfInt32(math.MaxInt32)}
	case protoreflect.Int64Kind:
		return []protoreflect.Value{
			protoreflect.ValueOfInt64(math.MinInt64), protoreflect.ValueOfInt64(math.MaxInt64), protoreflect.ValueOfInt64(-2),
		}
	case protoreflect.BoolKind:
		return []protoreflect.Value{protoreflect.ValueOfBool(true)}
	}
	return nil
}

// eachHostile calls f with the field's name and a message of which one field,
// at any depth, holds something hostile.
func eachHostile(t *testing.T, fresh func() (all, in protoreflect.Message), f func(name string, m protoreflect.Message)) {
	_, in := fresh()
	fields := in.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if fd.Message() != nil {
			eachHostile(t, func() (protoreflect.Message, protoreflect.Message) {
				all, in := fresh()
				if fd.IsList() {
					return all, in.Mutable(fd).List().AppendMutable().Message()
				}
				return all, in.Mutable(fd).Message()
			}, func(name string, m protoreflect.Message) { f(string(fd.Name())+"."+name, m) })
			continue
		}
		vs := hostileValues(fd)
		if vs == nil {
			t.Fatalf("no hostile value for %v; add one for its type", fd.FullName())
		}
		for _, v := range vs {
			all, in := fresh()
			if fd.IsList() {
				in.Mutable(fd).List().Append(v)
			} else {
				in.Set(fd, v)
			}
			f(string(fd.Name()), all)
		}
	}
}

func TestEveryFieldMayBeHostile(t *testing.T) {
	testutil.CheckLeaks(t)
	// What is valid of it must do no harm, so nothing is run.
	_, socket := serve(t, rpc.ServerConfig{Executor: probe{output: func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
		return &executor.TaskOutput{Cause: executor.CauseExited}, nil
	}}})
	s := open(t, socket)
	id := uint64(0)
	eachHostile(t, func() (protoreflect.Message, protoreflect.Message) {
		m := script("true").ProtoReflect()
		return m, m
	}, func(name string, m protoreflect.Message) {
		id++
		s.send(task(id, m.Interface().(*pb.TaskSpec)))
		a := s.recv()
		e := a.GetError()
		if a.GetId() != id || a.GetTaskResult() == nil && executor.Kind(e.GetKind()) != executor.Invalid {
			t.Errorf("%s: answered by %v; want a result or that it is invalid", name, a)
		}
		if e != nil && (e.GetField() == "" || len(e.GetText()) > 16<<10) {
			t.Errorf("%s: field %q, %d bytes of text; want a field, and few", name, e.GetField(), len(e.GetText()))
		}
	})
	s.ping(id + 1)
}

func TestBlobsWithoutSense(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	cc := connect(t, socket, grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
	for name, m := range map[string]any{
		"empty":          &pb.Digest{},
		"negative":       &pb.Digest{Hash: strings.Repeat("a", 64), Size: -1},
		"a path":         &pb.Digest{Hash: "../../../../../../../../../../etc/shadow", Size: 1},
		"upper case":     &pb.Digest{Hash: strings.Repeat("A", 64), Size: 1},
		"a slash within": &pb.Digest{Hash: strings.Repeat("a", 64) + "/1", Size: 1},
		"not UTF-8":      []byte("\x0a\x02\xff\xfe"),
		"not a message":  []byte("\xff"),
		"too large":      make([]byte, executor.MaxSpecBytes+1<<20),
	} {
		stream, err := cc.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, pb.Executor_ReadBlob_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.SendMsg(m)
		_ = stream.CloseSend()
		if err := stream.RecvMsg(&pb.Blob{}); status.Code(err) == codes.OK || err == io.EOF || status.Code(err) == codes.Unavailable {
			t.Errorf("%s: %v; want an error that names the fault", name, err)
		}
	}
	healthy(t, socket)
}

func TestAnIDInUseIsRefused(t *testing.T) {
	testutil.CheckLeaks(t)
	o, _, socket := observe(t)
	s := open(t, socket)
	s.send(task(1, &pb.TaskSpec{Name: []byte("first"), Script: []byte("sleep 1000")}))
	for range 100 {
		s.send(task(1, &pb.TaskSpec{Name: []byte("again"), Script: []byte("true")}))
		if m := s.recv(); m.GetId() != 1 || executor.Kind(m.GetError().GetKind()) != executor.Invalid {
			t.Fatalf("an id in use: %v", m)
		}
	}
	s.ping(2)
	s.send(&pb.Request{Id: 1, Body: &pb.Request_CancelTask{}})
	m := s.recv()
	if m.GetId() != 1 || m.GetTaskResult() == nil && executor.Kind(m.GetError().GetKind()) != executor.Canceled {
		t.Errorf("the first task: %v; want canceled", m)
	}
	if e := o.await(t, "first"); e.err == nil && e.out.Cause != executor.CauseCanceled {
		t.Errorf("the first task: %+v", e)
	}
	healthy(t, socket)
}

func TestCancelTaskReachesOnlyItsOwn(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	mine, other := open(t, socket), open(t, socket)
	spec := script("echo ready; read line; echo end")
	release := hold(t, spec)
	m := task(5, spec)
	m.GetExecuteTask().Events = true
	mine.send(m)
	for mine.recv().GetTaskEvent().GetKind() != string(executor.EventStdout) {
	}
	for _, id := range []uint64{5, 6, 0, math.MaxUint64} {
		other.send(&pb.Request{Id: id, Body: &pb.Request_CancelTask{CancelTask: &pb.CancelTask{}}})
	}
	other.ping(1)
	mine.send(&pb.Request{Id: 6, Body: &pb.Request_CancelTask{}})
	mine.ping(7)
	release()
	for {
		a := mine.recv()
		if a.GetTaskEvent() != nil {
			continue
		}
		if o := a.GetTaskResult(); a.GetId() != 5 || o.GetCause() != string(executor.CauseExited) || string(o.GetStdout().GetInline()) != "ready\nend\n" {
			t.Errorf("the task that another named: %v", a)
		}
		break
	}
	healthy(t, socket)
}

func TestSecondSessionOfAConnectionIsRefused(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	s := open(t, socket)
	s.ping(1)
	second, err := pb.NewExecutorClient(s.cc).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "has a session") {
		t.Errorf("a second session: %v", err)
	}
	s.ping(2)
}
