package executor

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

type blocker struct{ Executor }

func (blocker) Execute(ctx context.Context, s *TaskSpec) (*TaskOutput, error) {
	if s.Script == "panic" {
		panic("boom")
	}
	if s.Script == "talk" {
		EventsFrom(ctx)(TaskEvent{Kind: EventStarted})
		EventsFrom(ctx)(TaskEvent{Kind: EventStdout, Data: make([]byte, MaxEventBytes+1)})
		return &TaskOutput{}, nil
	}
	if s.Script == "flood" {
		tell, end := EventsFrom(ctx), time.Now().Add(s.Timeout)
		tell(TaskEvent{Kind: EventStarted})
		for ctx.Err() == nil && time.Now().Before(end) {
			tell(TaskEvent{Kind: EventStdout, Data: []byte("x")})
		}
		return &TaskOutput{Cause: CauseTimedOut}, nil
	}
	<-ctx.Done()
	return &TaskOutput{Cause: CauseCanceled}, nil
}
func (blocker) Close(context.Context) error { return nil }

func TestServe(t *testing.T) {
	tx, rx := Start(t.Context(), blocker{}, 0)
	tx <- Request{ID: 1, Body: ExecuteTask{Spec: &TaskSpec{Script: "panic"}}}
	e, ok := (<-rx).Body.(*Error)
	var p *PanicError
	if !ok || e.Kind != Internal || !errors.As(e, &p) || p.Value != "boom" || !strings.Contains(string(p.Stack), "blocker") {
		t.Fatalf("panic answered by %v", e)
	}
	tx <- Request{Body: Ping{}}
	if e, ok := (<-rx).Body.(*Error); !ok || e.Kind != Invalid {
		t.Fatalf("id 0 answered by %v", e)
	}
	tx <- Request{ID: 2, Body: ExecuteTask{Spec: &TaskSpec{Script: "x"}}}
	tx <- Request{ID: 3, Body: Shutdown{}}
	if r := <-rx; r.ID != 2 {
		t.Fatalf("first answer upon Shutdown is %v, not the task's", r)
	}
	if _, ok := (<-rx).Body.(ShutdownAck); !ok {
		t.Fatal("no ShutdownAck")
	}
	if r, ok := <-rx; ok {
		t.Fatalf("%v after ShutdownAck", r)
	}
}

func TestServeAnswersAReusedIDInOrder(t *testing.T) {
	tx, rx := Start(t.Context(), blocker{}, 0)
	for range 3 {
		tx <- Request{ID: 1, Body: Ping{}}
		tx <- Request{ID: 1, Body: ExecuteTask{Spec: &TaskSpec{}}} // its Ping may be unanswered, or being answered
		first, second := <-rx, <-rx
		if _, ok := first.Body.(Pong); !ok {
			first, second = second, first
		}
		if _, ok := first.Body.(Pong); !ok {
			t.Fatalf("no Pong but %v and %v", first.Body, second.Body)
		}
		if e, ok := second.Body.(*Error); !ok || e.Kind != Invalid {
			t.Fatalf("an empty spec, or a used id, answered by %v", second.Body)
		}
	}
}

func TestServeBoundsWhatAConnectionHolds(t *testing.T) {
	tx, rx := Start(t.Context(), blocker{}, 0)
	big := &TaskSpec{Argv: []string{"block"}, Stdin: bytes.Repeat([]byte("x"), MaxStdinBytes)}
	n := uint64(maxInFlightBytes / big.size())
	for id := uint64(1); id <= n+1; id++ {
		tx <- Request{ID: id, Body: ExecuteTask{Spec: big}}
	}
	r := <-rx
	if e, ok := r.Body.(*Error); !ok || e.Kind != Unavailable || r.ID != n+1 {
		t.Fatalf("one too much answered by %v", r)
	}
	tx <- Request{ID: 1, Body: CancelTask{}}
	if r := <-rx; r.ID != 1 {
		t.Fatalf("canceled 1, and %d was answered", r.ID)
	}
	tx <- Request{ID: 1, Body: ExecuteTask{Spec: big}}
	tx <- Request{ID: 1, Body: CancelTask{}}
	if _, ok := (<-rx).Body.(TaskResult); !ok {
		t.Fatal("what one task held was not given back")
	}
}

func TestServeDrains(t *testing.T) {
	tx, rx := Start(t.Context(), blocker{}, 0)
	tx <- Request{ID: 1, Body: ExecuteTask{Spec: &TaskSpec{Script: "x"}}}
	grace, over := context.WithCancel(t.Context())
	tx <- Request{Body: Drain{Grace: grace}}
	tx <- Request{ID: 2, Body: ExecuteTask{Spec: &TaskSpec{Script: "x"}}}
	if e, ok := (<-rx).Body.(*Error); !ok || e.Kind != Unavailable {
		t.Fatalf("a task after Drain answered by %v", e)
	}
	over()
	if r := <-rx; r.ID != 1 {
		t.Fatalf("%v is not the task's answer", r)
	}
	if r, ok := <-rx; ok {
		t.Fatalf("%v after the last answer", r)
	}
}

func TestServeSplitsEvents(t *testing.T) {
	tx, rx := Start(t.Context(), blocker{}, 0)
	tx <- Request{ID: 1, Body: ExecuteTask{Spec: &TaskSpec{Script: "talk"}, Events: true}}
	for _, n := range []int{0, MaxEventBytes, 1} {
		if ev, ok := (<-rx).Body.(TaskEvent); !ok || len(ev.Data) != n {
			t.Fatalf("an event of %d bytes; want %d", len(ev.Data), n)
		}
	}
	<-rx
}

func TestShutdownIsForTheOwner(t *testing.T) {
	tx, rx := Start(t.Context(), blocker{}, 0)
	tx <- Request{ID: 1, Body: Shutdown{}, Caller: &Caller{UID: 4_000_000_000}}
	if e, ok := (<-rx).Body.(*Error); !ok || e.Kind != Denied {
		t.Fatalf("a stranger's Shutdown answered by %v", e)
	}
	tx <- Request{ID: 1, Body: Shutdown{}, Caller: &Caller{}}
	if _, ok := (<-rx).Body.(ShutdownAck); !ok {
		t.Fatal("root's Shutdown was not done")
	}
}

// executed tells when a task is over for the executor, whoever reads its answer.
type executed struct {
	blocker
	over chan error
}

func (e executed) Execute(ctx context.Context, s *TaskSpec) (*TaskOutput, error) {
	o, err := e.blocker.Execute(ctx, s)
	e.over <- err
	return o, err
}

func TestATaskEndsThoughNobodyReadsItsEvents(t *testing.T) {
	for _, timeout := range []time.Duration{time.Minute, MaxTimeout} {
		synctest.Test(t, func(t *testing.T) {
			e := executed{over: make(chan error, 1)}
			tx, rx := Start(t.Context(), e, 0)
			tx <- Request{ID: 1, Body: ExecuteTask{Spec: &TaskSpec{Script: "flood", Timeout: timeout}, Events: true}}
			began := time.Now()
			if timeout == MaxTimeout {
				tx <- Request{ID: 1, Body: CancelTask{}}
				timeout = 0
			}
			<-e.over
			if took := time.Since(began); took != timeout+lastWords {
				t.Errorf("over after %v; want its time, and %v for its last words", took, lastWords)
			}
			if r := <-rx; r.ID != 1 {
				t.Errorf("got %v", r)
			} else if _, ok := r.Body.(TaskResult); !ok {
				t.Errorf("got %v after an event was dropped; want the result", r.Body)
			}
			close(tx)
		})
	}
}

func TestACanceledTasksEventsAreReadToTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tx, rx := Start(t.Context(), lastWord{}, 0)
		tx <- Request{ID: 1, Body: ExecuteTask{Spec: &TaskSpec{Script: "x"}, Events: true}}
		tx <- Request{ID: 1, Body: CancelTask{}}
		for i := range 100 {
			time.Sleep(lastWords / 2) // a slow reader, but one
			if ev, ok := (<-rx).Body.(TaskEvent); !ok || int(ev.Data[0]) != i {
				t.Fatalf("event %d is missing", i)
			}
			tx <- Request{ID: 1, Body: EventsTaken{Events: 1}}
		}
		if _, ok := (<-rx).Body.(TaskResult); !ok {
			t.Error("no result")
		}
		close(tx)
	})
}

// lastWord writes when it is canceled.
type lastWord struct{ blocker }

func (lastWord) Execute(ctx context.Context, _ *TaskSpec) (*TaskOutput, error) {
	<-ctx.Done()
	for i := range 100 {
		EventsFrom(ctx)(TaskEvent{Kind: EventStdout, Data: []byte{byte(i)}})
	}
	return &TaskOutput{Cause: CauseCanceled}, nil
}

// full makes the largest output that has no files.
type full struct{ blocker }

func (full) Execute(_ context.Context, s *TaskSpec) (*TaskOutput, error) {
	o := &TaskOutput{Stdout: Stream{Inline: make([]byte, InlineBytes)}, Stderr: Stream{Inline: make([]byte, InlineBytes)}}
	if s.Script == "list" {
		o.UndeclaredWrites = []string{string(make([]byte, 2*maxHeldBytes))}
	}
	return o, nil
}

func TestResultsThatNobodyReadsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tx, rx := Start(t.Context(), full{}, 0)
		const n = maxInFlight
		for id := range uint64(n) {
			tx <- Request{ID: id + 1, Body: ExecuteTask{Spec: &TaskSpec{Script: "x"}}}
		}
		time.Sleep(2 * lastWords)
		synctest.Wait()
		seen, held := map[uint64]bool{}, 0
		for range n {
			r := <-rx
			if seen[r.ID] {
				t.Fatalf("%d was answered twice", r.ID)
			}
			seen[r.ID] = true
			switch b := r.Body.(type) {
			case TaskResult:
				held += b.Output.size()
			case *Error:
				if b.Kind != Unavailable {
					t.Fatalf("answered by %v", b)
				}
			}
		}
		if held > maxHeldBytes || held < maxHeldBytes/2 {
			t.Errorf("%d bytes of results were held; want at most %d", held, maxHeldBytes)
		}
		// What one result takes was given back, and one alone may be as large as it likes.
		for id := range uint64(2) {
			tx <- Request{ID: id + 1, Body: ExecuteTask{Spec: &TaskSpec{Script: "list"}}}
			if _, ok := (<-rx).Body.(TaskResult); !ok {
				t.Error("a large result did not come")
			}
		}
		close(tx)
	})
}

func TestALargeResultWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tx, rx := Start(t.Context(), full{}, 0)
		for id := range uint64(3) {
			tx <- Request{ID: id + 1, Body: ExecuteTask{Spec: &TaskSpec{Script: "list"}}}
		}
		for range 3 {
			synctest.Wait()
			if r := <-rx; r.Body.(TaskResult).Output == nil {
				t.Error("a large result did not come")
			}
		}
		close(tx)
	})
}
