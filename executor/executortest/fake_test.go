package executortest_test

import (
	"context"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/executortest"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

func TestFake(t *testing.T) {
	executortest.Conformance(t, func(t *testing.T) executor.Executor {
		testutil.CheckLeaks(t)
		return executortest.NewFake()
	})
}

func TestFakeOverChannels(t *testing.T) {
	executortest.Conformance(t, func(t *testing.T) executor.Executor {
		testutil.CheckLeaks(t)
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		return executor.NewHandle(executor.Start(ctx, executortest.NewFake(), 1))
	})
}

func TestFakeStopsATaskThatWritesTooMuch(t *testing.T) {
	testutil.CheckLeaks(t)
	f := executortest.NewFake()
	out, err := f.Execute(t.Context(), &executor.TaskSpec{Script: "cat /dev/zero", Limits: executor.ResourceLimits{OutputBytes: 1000}})
	if err != nil || out.Cause != executor.CauseOutputLimit || len(out.Stdout.Inline) != 1000 {
		t.Errorf("got %+v, %v; want 1000 bytes and output_limit", out, err)
	}
	if err := f.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
