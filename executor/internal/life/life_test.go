package life

import (
	"context"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
)

func TestLife(t *testing.T) {
	l := New()
	ok, failed := &executor.TaskOutput{Cause: executor.CauseExited, Cached: true}, &executor.TaskOutput{Cause: executor.CauseExited, ExitCode: 1}
	for range 4 {
		if err := l.Enter(); err != nil {
			t.Fatal(err)
		}
	}
	l.Leave(ok)
	l.Leave(failed)
	l.Leave(nil)
	if s := l.Status(); s.Active != 1 || s.Executed != 3 || s.Successful != 1 || s.Failed != 2 || s.CacheHits != 1 || !s.Healthy || s.Uptime <= 0 {
		t.Errorf("%+v", s)
	}
	// The task that is in ends when it must, and Close waits for it.
	ctx, cancel := context.WithCancel(t.Context())
	closed := make(chan struct{})
	go func() {
		l.Close(ctx)
		close(closed)
	}()
	for l.Enter() == nil { // until Close has begun
		l.Leave(nil)
	}
	if executor.KindOf(l.Enter()) != executor.Unavailable || l.Status().Healthy || l.Context().Err() != nil {
		t.Errorf("%+v, %v", l.Status(), l.Context().Err())
	}
	cancel()
	<-l.Context().Done()
	l.Leave(ok)
	<-closed
	l.Close(ctx) // does nothing
}
