package executor

import (
	"context"
	"testing"
)

type blocker struct{ Executor }

func (blocker) Execute(ctx context.Context, s *TaskSpec) (*TaskOutput, error) {
	if s.Script == "panic" {
		panic("boom")
	}
	<-ctx.Done()
	return &TaskOutput{Cause: CauseCanceled}, nil
}
func (blocker) Close(context.Context) error { return nil }

func TestServe(t *testing.T) {
	tx, rx := Start(t.Context(), blocker{}, 0)
	tx <- Request{ID: 1, Body: ExecuteTask{Spec: &TaskSpec{Script: "panic"}}}
	if e, ok := (<-rx).Body.(*Error); !ok || e.Kind != Internal {
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
