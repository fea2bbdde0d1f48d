package pool

import (
	"context"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/executortest"
)

// openFakes makes a pool of three, one of them behind channels.
func openFakes(t testing.TB) *Pool {
	fake := func() (executor.Executor, error) { return executortest.NewFake(), nil }
	return newPool(t, defaultTimes, opener{"a": fake, "b": fake, "c": func() (executor.Executor, error) {
		return executor.NewHandle(executor.Start(context.Background(), executortest.NewFake(), 4)), nil
	}})
}

func TestConformance(t *testing.T) {
	executortest.Conformance(t, func(t *testing.T) executor.Executor { return openFakes(t) })
}

func TestConformanceOverChannels(t *testing.T) {
	executortest.Conformance(t, func(t *testing.T) executor.Executor {
		p := openFakes(t)
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		return executor.NewHandle(executor.Start(ctx, p, 0))
	})
}

// TestConformanceOfPools: one is an executor as any other.
func TestConformanceOfPools(t *testing.T) {
	executortest.Conformance(t, func(t *testing.T) executor.Executor {
		inner := func() (executor.Executor, error) { return openFakes(t), nil }
		return newPool(t, defaultTimes, opener{"x": inner, "y": inner})
	})
}

// BenchmarkPing is a question and its answer through the pool, in this process.
func BenchmarkPing(b *testing.B) {
	p, err := New(b.Context(), Config{Executors: []ExecutorConfig{{Name: "a"}}, Open: one(fresh(4, says("a"))).open})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close(context.Background())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	h := executor.NewHandle(executor.Start(ctx, p, 0))
	for b.Loop() {
		if err := h.Ping(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkExecute is what a pool adds to a task.
func BenchmarkExecute(b *testing.B) {
	for name, e := range map[string]*scripted{"place": fresh(4, says("a")), "turn": turner(4, says("a"))} {
		b.Run(name, func(b *testing.B) {
			p, err := New(b.Context(), Config{Executors: []ExecutorConfig{{Name: "a"}}, Open: one(e).open})
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close(context.Background())
			s := spec("t")
			for b.Loop() {
				if _, err := p.Execute(b.Context(), s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
