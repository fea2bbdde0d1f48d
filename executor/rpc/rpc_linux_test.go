package rpc_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectpb "google.golang.org/grpc/reflection/grpc_reflection_v1"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/executortest"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// serve serves e on a socket until the test ends.
func serve(t testing.TB, c rpc.ServerConfig) (*rpc.Server, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rpc-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(c)
	served := make(chan error)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s, socket
}

func dial(t testing.TB, socket string) *rpc.Client {
	t.Helper()
	c, err := rpc.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

// fake serves a Fake.
func fake(t testing.TB) (*rpc.Server, string) {
	t.Helper()
	f := executortest.NewFake()
	t.Cleanup(func() { _ = f.Close(context.Background()) })
	return serve(t, rpc.ServerConfig{Executor: f, Blobs: f})
}

// whole is a Client whose Close shuts the daemon down.
type whole struct{ *rpc.Client }

func (w whole) Close(ctx context.Context) error { return w.Handle.Close(ctx) }

func TestFakeOverTheSocket(t *testing.T) {
	executortest.Conformance(t, func(t *testing.T) executor.Executor {
		testutil.CheckLeaks(t)
		_, socket := fake(t)
		return whole{dial(t, socket)}
	})
}

func TestDialSaysWhatIsWrong(t *testing.T) {
	testutil.CheckLeaks(t)
	dir := t.TempDir()
	if _, err := rpc.Dial(t.Context(), filepath.Join(dir, "none")); executor.KindOf(err) != executor.Unavailable || !strings.Contains(err.Error(), "no daemon at") {
		t.Errorf("no socket: %v", err)
	}
	_, socket := fake(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := rpc.Dial(ctx, socket); executor.KindOf(err) != executor.Canceled {
		t.Errorf("with an ended context: %v", err)
	}
}

// probe answers with what it was asked and by whom.
type probe struct {
	executor.Executor
	output func(ctx context.Context, s *executor.TaskSpec) (*executor.TaskOutput, error)
}

func (p probe) Execute(ctx context.Context, s *executor.TaskSpec) (*executor.TaskOutput, error) {
	return p.output(ctx, s)
}
func (probe) Close(context.Context) error { return nil }

func TestCallerComesFromTheKernel(t *testing.T) {
	testutil.CheckLeaks(t)
	var got executor.Caller
	_, socket := serve(t, rpc.ServerConfig{Executor: probe{output: func(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
		got, _ = executor.CallerFrom(ctx)
		return &executor.TaskOutput{}, nil
	}}})
	if _, err := dial(t, socket).Execute(t.Context(), &executor.TaskSpec{Script: "x"}); err != nil {
		t.Fatal(err)
	}
	groups, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	var have []int
	for _, g := range got.Groups {
		have = append(have, int(g))
	}
	slices.Sort(groups)
	slices.Sort(have)
	pid := os.Getpid()
	if !tellsProcesses(t) {
		pid = 0
	}
	if int(got.UID) != os.Geteuid() || int(got.GID) != os.Getegid() || int(got.PID) != pid || !slices.Equal(groups, have) {
		t.Errorf("caller %+v; want uid %d, gid %d, pid %d, groups %v", got, os.Geteuid(), os.Getegid(), pid, groups)
	}
}

func TestReadBlob(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	c := dial(t, socket)
	out, err := c.Execute(t.Context(), &executor.TaskSpec{Script: "head -c 3000000 /dev/zero"})
	if err != nil || !out.Stdout.Truncated {
		t.Fatalf("%+v, %v", out, err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var b bytes.Buffer
			if err := c.ReadBlob(t.Context(), out.Stdout.Digest, &b); err != nil || !bytes.Equal(b.Bytes(), make([]byte, 3_000_000)) {
				t.Errorf("%d bytes, %v", b.Len(), err)
			}
		})
	}
	wg.Wait()
	absent := out.Stdout.Digest
	absent.Size++
	if err := c.ReadBlob(t.Context(), absent, io.Discard); executor.KindOf(err) != executor.Unavailable {
		t.Errorf("a blob that is not there: %v", err)
	}
	if err := c.ReadBlob(t.Context(), executor.Digest{Hash: "../../etc/shadow"}, io.Discard); executor.KindOf(err) != executor.Invalid {
		t.Errorf("a digest that is none: %v", err)
	}
}

type liar struct{ *executortest.Fake }

func (liar) OpenBlob(context.Context, executor.Digest) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("something else")), nil
}

func TestReadBlobNoticesOtherBytes(t *testing.T) {
	testutil.CheckLeaks(t)
	f := executortest.NewFake()
	_, socket := serve(t, rpc.ServerConfig{Executor: f, Blobs: liar{f}})
	c := dial(t, socket)
	for _, size := range []int64{0, 14, 1000} {
		d := executor.Digest{Hash: strings.Repeat("a", 64), Size: size}
		if err := c.ReadBlob(t.Context(), d, io.Discard); executor.KindOf(err) != executor.Internal {
			t.Errorf("size %d: %v", size, err)
		}
	}
}

func TestHealthAndReflection(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	cc, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cc.Close() }()
	r, err := healthpb.NewHealthClient(cc).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "sandboxd.executor.v1.Executor"})
	if err != nil || r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", r, err)
	}
	s, err := reflectpb.NewServerReflectionClient(cc).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&reflectpb.ServerReflectionRequest{MessageRequest: &reflectpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if a, err := s.Recv(); err != nil || !strings.Contains(a.String(), "sandboxd.executor.v1.Executor") {
		t.Errorf("reflection: %v, %v", a, err)
	}
}

func TestLargeResultsComeWhole(t *testing.T) {
	testutil.CheckLeaks(t)
	want := &executor.TaskOutput{Cause: executor.CauseExited, Evidence: "none"}
	for i := range 100_000 {
		want.OutputFiles = append(want.OutputFiles, executor.OutputFile{
			Path: fmt.Sprintf("a/\xff/%d", i), Kind: executor.KindFile, Digest: executor.Digest{Hash: strings.Repeat("a", 64), Size: 1}})
	}
	for i := range executor.MaxListed {
		want.UndeclaredWrites = append(want.UndeclaredWrites, strings.Repeat("\xfe", executor.MaxPathBytes-10)+fmt.Sprint(i))
	}
	_, socket := serve(t, rpc.ServerConfig{Executor: probe{output: func(_ context.Context, s *executor.TaskSpec) (*executor.TaskOutput, error) {
		if s.Script == "path" {
			return &executor.TaskOutput{UndeclaredWrites: []string{strings.Repeat("x", 5<<20)}}, nil
		}
		return want, nil
	}}})
	c := dial(t, socket)
	got, err := c.Execute(t.Context(), &executor.TaskSpec{Script: "x"})
	if err != nil || !slices.Equal(got.OutputFiles, want.OutputFiles) || !slices.Equal(got.UndeclaredWrites, want.UndeclaredWrites) || got.Evidence != "none" {
		t.Errorf("error %v", err)
	}
	if _, err := c.Execute(t.Context(), &executor.TaskSpec{Script: "path"}); executor.KindOf(err) != executor.Invalid {
		t.Errorf("a path of 5 MiB: %v; want an error", err)
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// BenchmarkPing prints the median, beside that of one byte there and back on a
// bare Unix socket.
func BenchmarkPing(b *testing.B) {
	_, socket := fake(b)
	c := dial(b, socket)
	echo := echoer(b)
	var pings, echoes []time.Duration
	took := func(f func() error) time.Duration {
		began := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		return time.Since(began)
	}
	for b.Loop() {
		pings = append(pings, took(func() error { return c.Ping(context.Background()) }))
		echoes = append(echoes, took(echo))
	}
	slices.Sort(pings)
	slices.Sort(echoes)
	p, e := pings[len(pings)/2], echoes[len(echoes)/2]
	b.ReportMetric(float64(p)/1e3, "ping-p50-µs")
	b.ReportMetric(float64(e)/1e3, "echo-p50-µs")
	b.ReportMetric(float64(p)/float64(e), "ping/echo")
}

func echoer(b *testing.B) func() error {
	l, err := net.Listen("unix", filepath.Join(b.TempDir(), "e"))
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		if n, err := l.Accept(); err == nil {
			_, _ = io.Copy(struct{ io.Writer }{n}, struct{ io.Reader }{n})
			_ = n.Close()
		}
	}()
	n, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = n.Close(); _ = l.Close() })
	buf := make([]byte, 1)
	return func() error {
		if _, err := n.Write(buf); err != nil {
			return err
		}
		_, err := io.ReadFull(n, buf)
		return err
	}
}
