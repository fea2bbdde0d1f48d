package executor_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// blocker runs "block" until it is canceled and answers all else at once.
type blocker struct{ started chan struct{} }

func (b blocker) Execute(ctx context.Context, s *executor.TaskSpec) (*executor.TaskOutput, error) {
	switch s.Script {
	case "block":
		b.started <- struct{}{}
		<-ctx.Done()
		return &executor.TaskOutput{Cause: executor.CauseCanceled}, nil
	case "panic":
		panic("secret")
	}
	if n, err := strconv.Atoi(s.Script); err == nil {
		for i := range n {
			executor.EventsFrom(ctx)(executor.TaskEvent{Kind: executor.EventStdout, Data: []byte(strconv.Itoa(i))})
		}
		return &executor.TaskOutput{}, nil
	}
	if f := executor.EventsFrom(ctx); f != nil {
		f(executor.TaskEvent{Kind: executor.EventStdout, Data: []byte(s.Script)})
	}
	return &executor.TaskOutput{Cause: executor.CauseExited, Stdout: executor.Stream{Inline: []byte(s.Script)}}, nil
}
func (blocker) Capabilities(context.Context) (executor.Capabilities, error) {
	return executor.Capabilities{MaxParallel: 7}, nil
}
func (blocker) Status(context.Context) (executor.Status, error) {
	return executor.Status{Healthy: true}, nil
}
func (blocker) Close(context.Context) error { return nil }

func start(t testing.TB) (*executor.Handle, blocker) {
	testutil.CheckLeaks(t)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	b := blocker{make(chan struct{}, 100)}
	return executor.NewHandle(executor.Start(ctx, b, 4)), b
}

func TestHandleAnswersManyAtOnce(t *testing.T) {
	h, _ := start(t)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			want := string(rune('a' + i))
			var got string
			ctx := executor.WithEvents(t.Context(), func(e executor.TaskEvent) { got += string(e.Data) })
			o, err := h.Execute(ctx, &executor.TaskSpec{Script: want})
			if err != nil || string(o.Stdout.Inline) != want || got != want {
				t.Errorf("task %q: output %v, events %q, error %v", want, o, got, err)
			}
		})
	}
	wg.Wait()
	if c, err := h.Capabilities(t.Context()); err != nil || c.MaxParallel != 7 {
		t.Errorf("capabilities: %+v, %v", c, err)
	}
	if s, err := h.Status(t.Context()); err != nil || !s.Healthy {
		t.Errorf("status: %+v, %v", s, err)
	}
	if err := h.Ping(t.Context()); err != nil {
		t.Errorf("ping: %v", err)
	}
}

func TestHandleCancelWaitsForTheAnswer(t *testing.T) {
	h, b := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-b.started; cancel() }()
	o, err := h.Execute(ctx, &executor.TaskSpec{Script: "block"})
	if err != nil || o.Cause != executor.CauseCanceled {
		t.Fatalf("got %v, %v; want a canceled output", o, err)
	}
	if _, err := h.Execute(ctx, &executor.TaskSpec{Script: "x"}); executor.KindOf(err) != executor.Canceled {
		t.Errorf("with an ended context: %v; want canceled", err)
	}
}

func TestHandleRefusesInvalidSpecs(t *testing.T) {
	h, _ := start(t)
	_, err := h.Execute(t.Context(), &executor.TaskSpec{})
	var e *executor.Error
	if !errors.As(err, &e) || e.Kind != executor.Invalid || e.Field != "script" {
		t.Errorf("got %v; want invalid script", err)
	}
	if _, err := h.Execute(t.Context(), nil); executor.KindOf(err) != executor.Invalid {
		t.Errorf("nil spec: %v; want invalid", err)
	}
}

func TestPanicTellsNothingOfTheInside(t *testing.T) {
	h, _ := start(t)
	_, err := h.Execute(t.Context(), &executor.TaskSpec{Script: "panic"})
	if executor.KindOf(err) != executor.Internal || err.Error() != "executor panicked; see the daemon's log" {
		t.Errorf("got %v", err)
	}
}

func TestABlockedEventFuncHoldsUpItsOwnTaskAlone(t *testing.T) {
	h, _ := start(t)
	const n = 10 * executor.EventWindow
	release, blocked := make(chan struct{}), make(chan struct{})
	var got []string
	var slow sync.WaitGroup
	slow.Go(func() {
		ctx := executor.WithEvents(t.Context(), func(e executor.TaskEvent) {
			if got = append(got, string(e.Data)); len(got) == 1 {
				close(blocked)
				<-release
			}
		})
		if _, err := h.Execute(ctx, &executor.TaskSpec{Script: strconv.Itoa(n)}); err != nil {
			t.Errorf("the slow one's task: %v", err)
		}
		for i, s := range got {
			if s != strconv.Itoa(i) {
				t.Fatalf("event %d is %q", i, s)
			}
		}
		if len(got) != n {
			t.Errorf("%d events; want %d", len(got), n)
		}
	})
	<-blocked
	for range 3 {
		events := 0
		ctx := executor.WithEvents(t.Context(), func(executor.TaskEvent) { events++ })
		if _, err := h.Execute(ctx, &executor.TaskSpec{Script: strconv.Itoa(n)}); err != nil || events != n {
			t.Errorf("another task: %d events, %v; want %d", events, err, n)
		}
		if err := h.Ping(t.Context()); err != nil {
			t.Error(err)
		}
	}
	close(release)
	slow.Wait()
}

func TestEventsComeThoughTheExecutorIsGone(t *testing.T) {
	testutil.CheckLeaks(t)
	tx, rx := make(chan executor.Request), make(chan executor.Response)
	h := executor.NewHandle(tx, rx)
	go func() {
		r := <-tx
		for range executor.EventWindow {
			rx <- executor.Response{ID: r.ID, Body: executor.TaskEvent{Kind: executor.EventStdout}}
		}
		close(rx)
	}()
	n := 0
	ctx := executor.WithEvents(t.Context(), func(executor.TaskEvent) { n++ })
	if _, err := h.Execute(ctx, &executor.TaskSpec{Script: "x"}); executor.KindOf(err) != executor.Unavailable || n != executor.EventWindow {
		t.Errorf("%d events, %v; want %d, and that it is gone", n, err, executor.EventWindow)
	}
}

func TestShutdownAnswersAll(t *testing.T) {
	h, b := start(t)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			o, err := h.Execute(t.Context(), &executor.TaskSpec{Script: "block"})
			if err != nil || o.Cause != executor.CauseCanceled {
				t.Errorf("got %v, %v; want a canceled output", o, err)
			}
		})
	}
	for range 10 {
		<-b.started
	}
	if err := h.Shutdown(t.Context(), time.Millisecond); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	wg.Wait()
	for range 2 {
		if err := h.Close(t.Context()); err != nil {
			t.Errorf("close after shutdown: %v", err)
		}
	}
	if err := h.Ping(t.Context()); executor.KindOf(err) != executor.Unavailable {
		t.Errorf("ping after shutdown: %v; want unavailable", err)
	}
}

func TestLostConnectionCancelsTasks(t *testing.T) {
	testutil.CheckLeaks(t)
	b := blocker{make(chan struct{}, 1)}
	tx, rx := executor.Start(t.Context(), b, 0)
	h := executor.NewHandle(tx, rx)
	go func() { <-b.started; close(tx) }()
	// Its answer may still come through or not; that it comes back at all shows
	// that the task was canceled.
	o, err := h.Execute(t.Context(), &executor.TaskSpec{Script: "block"})
	if executor.KindOf(err) != executor.Unavailable && (err != nil || o.Cause != executor.CauseCanceled) {
		t.Errorf("got %v, %v; want unavailable, or a canceled output", o, err)
	}
}

func BenchmarkPing(b *testing.B) {
	h, _ := start(b)
	for b.Loop() {
		if err := h.Ping(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
