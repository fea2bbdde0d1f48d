package local

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// asker takes places of one queue and notes who gets them, in order.
type asker struct {
	t *testing.T
	q *queue

	mu    sync.Mutex
	order []string
	leave map[string]func()
	all   sync.WaitGroup
}

func ask(t *testing.T, q *queue) *asker {
	testutil.CheckLeaks(t)
	a := &asker{t: t, q: q, leave: map[string]func(){}}
	t.Cleanup(func() {
		a.all.Wait()
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.taken != 0 || q.waiting != 0 || len(q.lines) != 0 || q.turns.Len() != 0 {
			t.Errorf("left in the queue: %d taken, %d waiting, %d lines, %d turns", q.taken, q.waiting, len(q.lines), q.turns.Len())
		}
	})
	return a
}

// wants has a user ask, and returns once it has a place or waits.
func (a *asker) wants(ctx context.Context, user uint32, name string, most int) {
	before := a.waiting()
	var got bool
	done := make(chan struct{})
	a.all.Go(func() {
		leave, err := a.q.take(ctx, user, most)
		a.mu.Lock()
		if err != nil {
			a.order = append(a.order, name+"!")
		} else {
			a.order = append(a.order, name)
			a.leave[name] = leave
		}
		got = true
		a.mu.Unlock()
		close(done)
	})
	for a.waiting() == before {
		select {
		case <-done:
			return
		default:
		}
		a.mu.Lock()
		over := got
		a.mu.Unlock()
		if over {
			return
		}
		time.Sleep(10 * time.Microsecond)
	}
}

func (a *asker) waiting() int { return a.q.length() }

// length is how many wait.
func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting
}

// leaves has name give its place back.
func (a *asker) leaves(name string) {
	a.t.Helper()
	a.mu.Lock()
	leave := a.leave[name]
	a.mu.Unlock()
	if leave == nil {
		a.t.Fatalf("%s has no place; so far: %v", name, a.got())
	}
	leave()
	leave() // which does nothing
}

func (a *asker) got() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.order)
}

// wait waits until so many have been answered.
func (a *asker) wait(n int) {
	a.t.Helper()
	for end := time.Now().Add(10 * time.Second); len(a.got()) < n; time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			a.t.Fatalf("%d are to be answered; so far: %v", n, a.got())
		}
	}
}

func (a *asker) want(order string) {
	a.t.Helper()
	a.wait(len(strings.Fields(order)))
	if got := strings.Join(a.got(), " "); got != order {
		a.t.Errorf("order %s; want %s", got, order)
	}
}

const ann, ben, cal = 1000, 1001, 1002

// TestQueueTakesTurns: one who asks for a thousand does not hold up one who asks once.
func TestQueueTakesTurns(t *testing.T) {
	a := ask(t, newQueue(1, 0))
	ctx := t.Context()
	for i := range 1000 {
		a.wants(ctx, ann, fmt.Sprintf("a%d", i), 0)
	}
	a.wants(ctx, ben, "b0", 0)
	a.wants(ctx, ben, "b1", 0)
	a.wants(ctx, cal, "c0", 0)
	order := []string{"a0", "a1", "b0", "c0", "a2", "b1", "a3", "a4"}
	for i, name := range order[:7] {
		a.want(strings.Join(order[:i+1], " "))
		a.leaves(name)
	}
	a.want(strings.Join(order, " "))
	for i := 4; i < 1000; i++ {
		a.wait(i + 4)
		a.leaves(fmt.Sprintf("a%d", i))
	}
}

// TestQueueSharesPlaces: who holds fewer comes before who holds more, however long each holds.
func TestQueueSharesPlaces(t *testing.T) {
	a := ask(t, newQueue(4, 0))
	ctx := t.Context()
	for i := range 8 {
		a.wants(ctx, ann, fmt.Sprintf("a%d", i), 0)
	}
	for i := range 3 {
		a.wants(ctx, ben, fmt.Sprintf("b%d", i), 0)
	}
	a.wait(4)
	a.leaves("a0") // b0 is next: it holds none
	a.wait(5)
	a.leaves("a1") // b1: it holds one of a's two
	a.wait(6)
	a.leaves("a2") // both hold alike now, less one of ann's
	a.wait(7)
	a.leaves("b0")
	a.wait(8)
	got := a.got()
	slices.Sort(got[:4]) // at once
	if s := strings.Join(got, " "); s != "a0 a1 a2 a3 b0 b1 a4 b2" {
		t.Errorf("order %s", s)
	}
	for i, name := range []string{"a3", "b1", "b2", "a4", "a5", "a6", "a7"} {
		a.wait(min(8+i, 11))
		a.leaves(name)
	}
}

func TestQueueBoundsAUsersPlaces(t *testing.T) {
	a := ask(t, newQueue(4, 3))
	ctx := t.Context()
	for i := range 3 {
		a.wants(ctx, ann, fmt.Sprintf("a%d", i), 2)
	}
	a.wants(ctx, ben, "b0", 0)
	a.wants(ctx, ben, "b1", 0)
	a.want("a0 a1 b0 b1")
	a.leaves("b0") // a2 may not have it
	a.wants(ctx, ben, "b2", 0)
	a.want("a0 a1 b0 b1 b2")
	a.leaves("a1")
	a.want("a0 a1 b0 b1 b2 a2")
	for _, n := range []string{"b1", "b2", "a0", "a2"} {
		a.leaves(n)
	}
	for i := range 4 { // the queue's own bound
		a.wants(ctx, cal, fmt.Sprintf("c%d", i), 0)
	}
	a.wait(9)
	if a.waiting() != 1 {
		t.Errorf("%d wait; want one beyond three places", a.waiting())
	}
	a.leaves("c0")
	a.wait(10)
	for _, n := range []string{"c1", "c2", "c3"} {
		a.leaves(n)
	}
}

// TestQueueForgetsWhoLeaves: one that is canceled goes at once, also from the head of a line that others
// wait behind.
func TestQueueForgetsWhoLeaves(t *testing.T) {
	a := ask(t, newQueue(1, 0))
	a.wants(t.Context(), ann, "a0", 0)
	ctx, cancel := context.WithCancel(t.Context())
	a.wants(ctx, ann, "a1", 0)
	a.wants(ctx, ben, "b0", 0)
	a.wants(t.Context(), ann, "a2", 0)
	cancel()
	a.wait(3)
	if got := a.got(); a.waiting() != 1 || !slices.Contains(got, "a1!") || !slices.Contains(got, "b0!") {
		t.Errorf("%d wait, answered: %v", a.waiting(), got)
	}
	a.leaves("a0")
	a.wait(4)
	a.leaves("a2")
	// A head whose bound is low holds up its own line, and no longer than it waits.
	a.q.places = 2
	a.wants(t.Context(), ann, "a3", 0)
	ctx, cancel = context.WithCancel(t.Context())
	a.wants(ctx, ann, "low", 1)
	a.wants(t.Context(), ann, "a4", 0)
	if a.waiting() != 2 {
		t.Errorf("%d wait", a.waiting())
	}
	cancel()
	a.wait(7)
	a.leaves("a3")
	a.leaves("a4")
}

// TestQueueIsBounded: one too many is told so, and when to come again; others are not kept out.
func TestQueueIsBounded(t *testing.T) {
	a := ask(t, newQueue(2, 0))
	a.q.held = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range 2 + maxWaitingPerUser {
		a.wants(ctx, ann, fmt.Sprint(i), 0)
	}
	a.wants(ctx, ben, "b0", 0)
	_, err := a.q.take(ctx, ann, 0)
	if executor.KindOf(err) != executor.Unavailable || err.Error() != "4096 tasks of user 1000 wait already; wait for some of them, and try again in about 1m0s" {
		t.Errorf("one too many: %v", err)
	}
	if a.waiting() != maxWaitingPerUser+1 {
		t.Errorf("%d wait", a.waiting())
	}
	a.leaves("0")
	a.wait(3)
	a.leaves("1")
	a.wait(4)
	// In all.
	for u := uint32(2000); a.waiting() < maxWaiting; u++ {
		want := min(a.waiting()+maxWaitingPerUser, maxWaiting)
		for range want - a.waiting() {
			a.all.Go(func() { _, _ = a.q.take(ctx, u, 0) })
		}
		for end := time.Now().Add(10 * time.Second); a.waiting() < want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d wait; want %d", a.waiting(), want)
			}
		}
	}
	if _, err := a.q.take(ctx, cal, 0); executor.KindOf(err) != executor.Unavailable || !strings.Contains(err.Error(), "65536 tasks wait already") {
		t.Errorf("one too many in all: %v", err)
	}
	cancel()
	a.all.Wait()
	for _, leave := range a.leave { // of those that hold a place
		leave()
	}
}
