package rpc_test

import (
	"context"
	"strings"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// run is Execute in the background; started is closed when the task runs.
func run(t *testing.T, c *rpc.Client, script string) (started chan struct{}, result chan ended) {
	started, result = make(chan struct{}), make(chan ended, 1)
	ctx := executor.WithEvents(t.Context(), func(e executor.TaskEvent) {
		if e.Kind == executor.EventStarted {
			close(started)
		}
	})
	go func() {
		out, err := c.Execute(ctx, &executor.TaskSpec{Script: script})
		result <- ended{"", out, err}
	}()
	return started, result
}

// shutdown is Shutdown in the background.
func shutdown(t *testing.T, s *rpc.Server, ctx context.Context) (done chan struct{}) {
	done = make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	}()
	return done
}

func within[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatal(what)
	}
	return v
}

func TestShutdownLetsTasksEnd(t *testing.T) {
	testutil.CheckLeaks(t)
	_, s, socket := observe(t)
	c := dial(t, socket)
	spec := script("read line; echo end")
	release := hold(t, spec)
	started, result := run(t, c, string(spec.GetScript()))
	within(t, "the task does not start", started)
	down := shutdown(t, s, t.Context())
	// It is under way once tasks are refused.
	await(t, "tasks are still taken", func() bool {
		_, err := c.Execute(t.Context(), &executor.TaskSpec{Script: "true"})
		return executor.KindOf(err) == executor.Unavailable && strings.Contains(err.Error(), "shutting down")
	})
	select {
	case <-down:
		t.Error("Shutdown did not wait for the task")
	default:
	}
	release()
	if r := within(t, "no answer", result); r.err != nil || string(r.out.Stdout.Inline) != "end\n" {
		t.Errorf("the task that Shutdown had time for: %+v, %v", r.out, r.err)
	}
	within(t, "Shutdown does not end", down)
	if _, err := rpc.Dial(t.Context(), socket); executor.KindOf(err) != executor.Unavailable {
		t.Errorf("a connection after Shutdown: %v", err)
	}
}

// slowEnd has tasks that take their time to go when they are canceled.
type slowEnd struct {
	executor.Executor
	takes time.Duration
}

func (e slowEnd) Execute(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
	executor.EventsFrom(ctx)(executor.TaskEvent{Kind: executor.EventStarted})
	<-ctx.Done()
	time.Sleep(e.takes)
	return &executor.TaskOutput{Cause: executor.CauseCanceled}, nil
}

func TestShutdownAnswersWhatItCancels(t *testing.T) {
	testutil.CheckLeaks(t)
	// Longer than it would wait for a reader: a task has seconds to end by SIGTERM.
	s, socket := serve(t, rpc.ServerConfig{Executor: slowEnd{takes: 4 * time.Second}})
	var results []chan ended
	for range 4 {
		c := dial(t, socket)
		for range 4 {
			started, result := run(t, c, "x")
			within(t, "the task does not start", started)
			results = append(results, result)
		}
	}
	down := shutdown(t, s, canceled())
	for _, result := range results {
		if r := within(t, "no answer", result); r.err != nil || r.out.Cause != executor.CauseCanceled {
			t.Errorf("a task that Shutdown canceled: %+v, %v", r.out, r.err)
		}
	}
	within(t, "Shutdown does not end", down)
}

// TestShutdownWaitsForNoIdler: with no task left, whoever holds a call open holds up nothing.
func TestShutdownWaitsForNoIdler(t *testing.T) {
	testutil.CheckLeaks(t)
	s, socket := serve(t, rpc.ServerConfig{Executor: &talker{}, Blobs: &zeros{}})
	cc := connect(t, socket)
	watch, err := healthpb.NewHealthClient(cc).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := reflectpb.NewServerReflectionClient(cc).ServerReflectionInfo(t.Context()); err != nil {
		t.Fatal(err)
	}
	open(t, socket).ping(1)
	dialRaw(t, socket)
	rawFrames(t, socket)
	// No end of its own: only that nothing is left to do ends it.
	within(t, "Shutdown does not end", shutdown(t, s, context.Background()))
}

func TestShutdownEndsThoughNobodyReads(t *testing.T) {
	testutil.CheckLeaks(t)
	k, z := &talker{}, &zeros{}
	s, socket := serve(t, rpc.ServerConfig{Executor: k, Blobs: z})
	for range 3 {
		m := open(t, socket)
		for id := range uint64(10) {
			m.send(talk(id + 1))
		}
		for id := range uint64(100) {
			m.send(&pb.Request{Id: id + 100, Body: &pb.Request_Ping{}})
		}
		b, err := pb.NewExecutorClient(m.cc).ReadBlob(t.Context(), &pb.Digest{Hash: strings.Repeat("a", 64), Size: 1 << 40})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the tasks do not start", func() bool { return k.sent.Load() > 0 })
	within(t, "Shutdown does not end", shutdown(t, s, canceled()))
	if o, c := z.opened.Load(), z.closed.Load(); o != 3 || c != 3 {
		t.Errorf("%d blobs opened, %d closed", o, c)
	}
}

func TestAClientsShutdownIsAnswered(t *testing.T) {
	testutil.CheckLeaks(t)
	_, _, socket := observe(t)
	c, other := dial(t, socket), dial(t, socket)
	started, result := run(t, other, "sleep 1000")
	within(t, "the task does not start", started)
	if err := c.Shutdown(t.Context(), time.Millisecond); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	if r := within(t, "no answer", result); r.err != nil || r.out.Cause != executor.CauseCanceled {
		t.Errorf("another's task: %+v, %v; want canceled", r.out, r.err)
	}
	await(t, "connections are still taken", func() bool {
		n, err := rpc.Dial(t.Context(), socket)
		if err == nil {
			_ = n.Close(t.Context())
		}
		return executor.KindOf(err) == executor.Unavailable
	})
}
