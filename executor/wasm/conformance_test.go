package wasm

import (
	"context"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/executortest"
)

func TestConformance(t *testing.T) {
	executortest.Conformance(t, func(t *testing.T) executor.Executor { return openShell(t, Config{MaxParallel: 2}) })
}

func TestConformanceOverChannels(t *testing.T) {
	executortest.Conformance(t, func(t *testing.T) executor.Executor {
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		in, out := executor.Start(ctx, openShell(t, Config{MaxParallel: 2}), 0)
		return executor.NewHandle(in, out)
	})
}
