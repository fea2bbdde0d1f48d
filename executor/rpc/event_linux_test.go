package rpc_test

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// sizes of pieces; each is filled with its number.
var sizes = []int{executor.MaxEventBytes, 1, 40 << 10, 100 << 10, 0, executor.MaxEventBytes + 5000, 3000}

// reuser is an Executor whose tasks write from one buffer, which is theirs again after each call.
type reuser struct{ executor.Executor }

func (reuser) Execute(ctx context.Context, s *executor.TaskSpec) (*executor.TaskOutput, error) {
	b := make([]byte, 2*executor.MaxEventBytes)
	for i := range 20 * len(sizes) {
		p := b[:sizes[i%len(sizes)]]
		copy(p, bytes.Repeat([]byte{byte(i) ^ s.Script[0]}, len(p)))
		executor.EventsFrom(ctx)(executor.TaskEvent{Kind: executor.EventStdout, Data: p})
		clear(b)
	}
	return &executor.TaskOutput{Cause: executor.CauseExited}, nil
}

// TestEventDataIsTheCallsOwn: the data of an event are what was written, in order, as long as the call lasts, though
// buffers are used again at both ends.
func TestEventDataIsTheCallsOwn(t *testing.T) {
	testutil.CheckLeaks(t)
	_, socket := serve(t, rpc.ServerConfig{Executor: reuser{}})
	tx, rx := executor.Start(t.Context(), reuser{}, 3)
	for name, e := range map[string]executor.Executor{"socket": dial(t, socket), "channels": executor.NewHandle(tx, rx)} {
		t.Run(name, func(t *testing.T) {
			var wg sync.WaitGroup
			for script := range byte(4) {
				wg.Go(func() {
					if err := readReused(t.Context(), e, 'a'+script); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		})
	}
	close(tx)
}

func readReused(ctx context.Context, e executor.Executor, script byte) (err error) {
	i, left := 0, sizes[0]
	_, failed := e.Execute(executor.WithEvents(ctx, func(ev executor.TaskEvent) {
		if len(ev.Data) != min(left, executor.MaxEventBytes) && err == nil {
			err = fmt.Errorf("piece %d: %d bytes of %d", i, len(ev.Data), left)
		}
		for range 3 {
			if n := bytes.Count(ev.Data, []byte{byte(i) ^ script}); n != len(ev.Data) && err == nil {
				err = fmt.Errorf("piece %d: %d bytes of %d are its own", i, n, len(ev.Data))
			}
			runtime.Gosched()
		}
		if left -= len(ev.Data); left <= 0 {
			i++
			left = sizes[i%len(sizes)]
		}
	}), &executor.TaskSpec{Script: string(script)})
	if i != 20*len(sizes) && err == nil {
		err = fmt.Errorf("%d pieces", i)
	}
	if failed != nil {
		return failed
	}
	return err
}
