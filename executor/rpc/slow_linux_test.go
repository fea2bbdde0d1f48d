package rpc_test

import (
	"context"
	"io"
	"math"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// heap is what this process holds, stacks too, the server and its clients together.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// grown fails the test if more than most bytes came to what was held before.
func grown(t *testing.T, before, most uint64) {
	t.Helper()
	if now := heap(); now > before+most {
		t.Errorf("memory grew by %d KiB; want at most %d", (now-before)>>10, most>>10)
	}
}

// talker has tasks that write events without end, and counts their bytes.
type talker struct {
	executor.Executor
	sent atomic.Int64
	done atomic.Int64
}

func (k *talker) Execute(ctx context.Context, s *executor.TaskSpec) (*executor.TaskOutput, error) {
	defer k.done.Add(1)
	if s.Script != "talk" {
		return &executor.TaskOutput{Cause: executor.CauseExited, Stdout: executor.Stream{Inline: []byte("fine\n")}}, nil
	}
	tell, data := executor.EventsFrom(ctx), make([]byte, executor.MaxEventBytes)
	for ctx.Err() == nil {
		tell(executor.TaskEvent{Kind: executor.EventStdout, Data: data})
		k.sent.Add(int64(len(data)))
	}
	return &executor.TaskOutput{Cause: executor.CauseCanceled}, nil
}

func talk(id uint64) *pb.Request {
	m := task(id, script("talk"))
	m.GetExecuteTask().Events = true
	return m
}

// data is m as a session sends it in HTTP/2 frames.
func data(t *testing.T, f *http2.Framer, m proto.Message) {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	n := len(b)
	if err := f.WriteData(1, false, append([]byte{0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, b...)); err != nil {
		t.Fatal(err)
	}
}

// TestWhoDoesNotReadHoldsUpOnlyItself: one client does not take what comes, though it
// has room for it; another gave the server leave to send all that it likes, and does
// not read from its socket at all.
func TestWhoDoesNotReadHoldsUpOnlyItself(t *testing.T) {
	const tasks = 16
	for name, attack := range map[string]func(t *testing.T, socket string) io.Closer{
		"messages": func(t *testing.T, socket string) io.Closer {
			s := open(t, socket)
			for id := range uint64(tasks) {
				s.send(talk(id + 1))
			}
			return s.cc
		},
		"socket": func(t *testing.T, socket string) io.Closer {
			n, f := rawFrames(t, socket)
			for _, err := range []error{
				f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: math.MaxInt32}),
				f.WriteWindowUpdate(0, math.MaxInt32-65535),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			for id := range uint64(tasks) {
				data(t, f, talk(id+1))
			}
			return n
		},
	} {
		t.Run(name, func(t *testing.T) {
			testutil.CheckLeaks(t)
			k := &talker{}
			_, socket := serve(t, rpc.ServerConfig{Executor: k})
			before := heap()
			client := attack(t, socket)
			for range 20 {
				healthy(t, socket)
			}
			if n := k.sent.Load(); n > 4<<20 {
				t.Errorf("the tasks wrote %d bytes that nobody read", n)
			}
			grown(t, before, 64<<20)
			if err := client.Close(); err != nil {
				t.Error(err)
			}
			await(t, "the tasks of a client that is gone go on", func() bool { return k.done.Load() == tasks+20 })
		})
	}
}

// await yields until ok.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestRequestsWhoseAnswersAreNotReadAreBounded: the server stops reading in the end.
func TestRequestsWhoseAnswersAreNotReadAreBounded(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	before := heap()
	s := open(t, socket)
	var sent atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for id := uint64(1); ; id++ {
			if s.Send(&pb.Request{Id: id, Body: &pb.Request_Ping{}}) != nil {
				return
			}
			sent.Add(1)
		}
	}()
	await(t, "no requests are taken", func() bool { return sent.Load() > 20_000 })
	for range 20 {
		healthy(t, socket)
	}
	t.Logf("%d requests sent", sent.Load())
	grown(t, before, 128<<20)
	if err := s.cc.Close(); err != nil {
		t.Error(err)
	}
	within(t, "the flood does not end", done)
}

// zeros is a store whose blobs never end.
type zeros struct{ opened, closed atomic.Int64 }

func (z *zeros) OpenBlob(context.Context, executor.Digest) (io.ReadCloser, error) {
	z.opened.Add(1)
	return z, nil
}
func (*zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
func (z *zeros) Close() error             { z.closed.Add(1); return nil }

func TestBlobsThatAreNotReadAreBounded(t *testing.T) {
	testutil.CheckLeaks(t)
	z := &zeros{}
	_, socket := serve(t, rpc.ServerConfig{Executor: &talker{}, Blobs: z})
	before := heap()
	cc := connect(t, socket)
	for range 7 {
		s, err := pb.NewExecutorClient(cc).ReadBlob(t.Context(), &pb.Digest{Hash: strings.Repeat("a", 64), Size: 1 << 40})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		healthy(t, socket)
	}
	grown(t, before, 64<<20)
	if err := cc.Close(); err != nil {
		t.Error(err)
	}
	await(t, "blobs that nobody reads stay open", func() bool { return z.closed.Load() == z.opened.Load() })
}

// TestWhoDoesNotReadKeepsNoPlace: a task whose time is over gives its place to
// another's, though its client does not take its output.
func TestWhoDoesNotReadKeepsNoPlace(t *testing.T) {
	testutil.CheckLeaks(t)
	o, _, socket := observe(t)
	c, err := o.Capabilities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, socket)
	for id := range uint64(c.MaxParallel) {
		m := task(id+1, script("cat /dev/zero"))
		m.GetExecuteTask().Events = true
		m.GetExecuteTask().GetSpec().TimeoutNs = int64(2 * time.Second)
		s.send(m)
	}
	await(t, "the tasks do not start", func() bool {
		st, err := o.Status(t.Context())
		// On a slow machine the first have had their time before the last are read.
		return err == nil && (st.Active == int64(c.MaxParallel) || st.Executed > 0)
	})
	healthy(t, socket)
}

// TestASlowReaderOfOneTaskHoldsUpNoOther: of the same client, over the same stream.
func TestASlowReaderOfOneTaskHoldsUpNoOther(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	c := dial(t, socket)
	const size = 20_000_000
	blocked, release := make(chan struct{}), make(chan struct{})
	got := 0
	ctx := executor.WithEvents(t.Context(), func(e executor.TaskEvent) {
		if e.Kind == executor.EventStdout && got == 0 {
			close(blocked)
			<-release
		}
		got += len(e.Data)
	})
	result := make(chan ended, 1)
	go func() {
		out, err := c.Execute(ctx, &executor.TaskSpec{Script: "head -c 20000000 /dev/zero"})
		result <- ended{"", out, err}
	}()
	within(t, "no event", blocked)
	for range 10 {
		events := 0
		ctx := executor.WithEvents(t.Context(), func(e executor.TaskEvent) { events += len(e.Data) })
		out, err := c.Execute(ctx, &executor.TaskSpec{Script: "head -c 5000000 /dev/zero"})
		if err != nil || !out.Success() || events != 5_000_000 {
			t.Fatalf("another task: %d bytes of events, %v", events, err)
		}
	}
	close(release)
	if r := within(t, "no answer", result); r.err != nil || !r.out.Success() || got != size {
		t.Errorf("the slow one's task: %d bytes of events, %v; want %d", got, r.err, size)
	}
}
