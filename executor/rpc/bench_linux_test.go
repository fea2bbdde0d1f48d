package rpc_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/rpc"
)

// writer is an Executor whose tasks write n pieces to standard output.
type writer struct {
	executor.Executor
	n     int
	piece []byte
}

func (w writer) Execute(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
	for range w.n {
		executor.EventsFrom(ctx)(executor.TaskEvent{Kind: executor.EventStdout, Data: w.piece})
	}
	return &executor.TaskOutput{Cause: executor.CauseExited}, nil
}

// BenchmarkEvents is what a task writes, on its way over the socket.
func BenchmarkEvents(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, executor.MaxEventBytes} {
		b.Run(fmt.Sprintf("piece=%dKiB", size>>10), func(b *testing.B) {
			w := writer{n: b.N, piece: bytes.Repeat([]byte("0123456789abcde\n"), size/16)}
			_, socket := serve(b, rpc.ServerConfig{Executor: w})
			c := dial(b, socket)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			got := 0
			b.ResetTimer()
			_, err := c.Execute(executor.WithEvents(b.Context(), func(e executor.TaskEvent) { got += len(e.Data) }),
				&executor.TaskSpec{Script: "true"})
			if err != nil || got != b.N*size {
				b.Fatalf("%d bytes, %v", got, err)
			}
		})
	}
}
