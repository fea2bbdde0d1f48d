package pool

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/executortest"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// serve offers p on a socket, and returns a client.
func serve(t testing.TB, p *Pool) *rpc.Client {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.ServerConfig{Executor: p, Blobs: p})
	served := make(chan error)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	c, err := rpc.Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// whole is a Client whose Close shuts the daemon down, as the suite wants it.
type whole struct{ *rpc.Client }

func (w whole) Close(ctx context.Context) error { return w.Handle.Close(ctx) }

func TestConformanceOverSocket(t *testing.T) {
	executortest.Conformance(t, func(t *testing.T) executor.Executor { return whole{serve(t, openFakes(t))} })
}

// TestFiguresCrossTheSocket: who asks by it is told the same.
func TestFiguresCrossTheSocket(t *testing.T) {
	testutil.CheckLeaks(t)
	g := newGate()
	p := newPool(t, slow, opener{"a": each(fresh(1, g.run)), "b": each(fresh(1, g.run))})
	c := serve(t, p)
	var all []<-chan answer
	for _, name := range []string{"0", "1", "2"} {
		all = append(all, sends(t, p, t.Context(), spec(name)))
	}
	s, err := c.Status(t.Context())
	if err != nil || s.Active != 2 || s.Queued != 1 || len(s.Members) != 2 || s.Members[0].Name != "a" || s.Members[1].Active != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	for i, name := range []string{"0", "1", "2"} {
		g.let(name)
		<-all[i]
	}
	if s, err = c.Status(t.Context()); err != nil || s.Executed != 3 || s.Members[0].Executed+s.Members[1].Executed != 3 || s.Waited <= 0 {
		t.Errorf("%+v, %v", s, err)
	}
	// A priority crosses as well, and is refused to whom it is not given.
	high := spec("high")
	high.Priority = 1
	g.let("high")
	if _, err := c.Execute(t.Context(), high); err != nil && executor.KindOf(err) != executor.Denied {
		t.Error(err)
	}
	high.Priority = 11
	if _, err := c.Execute(t.Context(), high); executor.KindOf(err) != executor.Invalid {
		t.Error(err)
	}
}

// BenchmarkPingOverSocket is a question and its answer through server and pool.
func BenchmarkPingOverSocket(b *testing.B) {
	p, err := New(b.Context(), Config{Executors: []ExecutorConfig{{Name: "a"}}, Open: one(fresh(4, says("a"))).open})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close(context.Background())
	c := serve(b, p)
	for b.Loop() {
		if err := c.Ping(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
