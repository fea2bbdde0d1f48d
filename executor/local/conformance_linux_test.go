package local

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/executortest"
	"github.com/sandboxd/sandboxd/executor/rpc"
)

// conform runs the conformance suite over what wrap puts before an Executor of this
// package.
func conform(t *testing.T, wrap func(*testing.T, *Executor) executor.Executor) {
	newExecutor(t) // for the leak check
	executortest.Conformance(t, func(t *testing.T) executor.Executor { return wrap(t, openExecutor(t)) })
}

// skipInVM is for what TestConformanceOverSocket does as well, by a way through more of the
// program: a guest's kernel would see the same tasks again, for a minute.
func skipInVM(t *testing.T) {
	t.Helper()
	if os.Getenv("SANDBOXD_VM") == "1" {
		t.Skip("in the test VM the suite runs over the socket alone")
	}
}

func TestConformance(t *testing.T) {
	skipInVM(t)
	conform(t, func(_ *testing.T, e *Executor) executor.Executor { return e })
}

func TestConformanceOverChannels(t *testing.T) {
	skipInVM(t)
	conform(t, func(t *testing.T, e *Executor) executor.Executor {
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		in, out := executor.Start(ctx, e, 0)
		return executor.NewHandle(in, out)
	})
}

// TestConformanceOfPool is of a pool of two, each with a state and a cache of its own.
func TestConformanceOfPool(t *testing.T) {
	skipInVM(t)
	conform(t, func(t *testing.T, e *Executor) executor.Executor { return pooled(t, e, openExecutor(t)) })
}

// whole is a Client whose Close shuts the daemon down, as the suite wants it.
type whole struct{ *rpc.Client }

func (w whole) Close(ctx context.Context) error { return w.Handle.Close(ctx) }

// TestConformanceOverSocket is of all that is between a client and its sandbox.
func TestConformanceOverSocket(t *testing.T) {
	conform(t, func(t *testing.T, e *Executor) executor.Executor {
		l, err := net.Listen("unix", filepath.Join(openDir(t), "s"))
		must(t, err)
		p := pooled(t, e)
		s := rpc.NewServer(rpc.ServerConfig{Executor: p, Blobs: p})
		served := make(chan error)
		go func() { served <- s.Serve(l) }()
		t.Cleanup(func() {
			must(t, s.Shutdown(context.Background()))
			must(t, <-served)
		})
		c, err := rpc.Dial(t.Context(), l.Addr().String())
		must(t, err)
		t.Cleanup(func() { must(t, c.Close(context.Background())) })
		return whole{c}
	})
}
