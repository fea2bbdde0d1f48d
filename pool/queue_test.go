package pool

import (
	"context"
	"fmt"
	"math/rand/v2"
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
	had   map[string]*place
	all   sync.WaitGroup
}

func ask(t *testing.T, q *queue) *asker {
	testutil.CheckLeaks(t)
	a := &asker{t: t, q: q, had: map[string]*place{}}
	t.Cleanup(func() {
		a.all.Wait()
		empty(t, q)
	})
	return a
}

// empty sees that nobody has to do with q.
func empty(t testing.TB, q *queue) {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, m := range q.members {
		if m.taken != 0 {
			t.Errorf("%d places of member %d are taken still", m.taken, i)
		}
	}
	if q.waiting != 0 || len(q.users) != 0 || q.turns.Len() != 0 {
		t.Errorf("left in the queue: %d waiting, %d users, %d turns", q.waiting, len(q.users), q.turns.Len())
	}
}

// wants has a user ask, and returns once it has a place or waits.
func (a *asker) wants(ctx context.Context, user uint32, name string, most int) {
	a.asks(ctx, name, want{user: user, most: most, members: 1, at: -1})
}

func (a *asker) asks(ctx context.Context, name string, w want) {
	before := a.waiting()
	done := make(chan struct{})
	a.all.Go(func() {
		defer close(done)
		pl, err := a.q.take(ctx, w)
		a.mu.Lock()
		defer a.mu.Unlock()
		if err != nil {
			name += "!"
		}
		a.order = append(a.order, name)
		a.had[name] = pl
	})
	for a.waiting() == before {
		select {
		case <-done:
			return
		case <-time.After(10 * time.Microsecond):
		}
	}
}

func (a *asker) waiting() int {
	n, _ := a.q.length()
	return n
}

// leaves has name give its place back.
func (a *asker) leaves(name string) {
	a.t.Helper()
	a.mu.Lock()
	pl := a.had[name]
	a.mu.Unlock()
	if pl == nil {
		a.t.Fatalf("%s has no place; so far: %v", name, a.got())
	}
	pl.leave()
	pl.leave() // which does nothing
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

// inTurn has each of names give its place back once it has one, one after the other, and wants them to have been
// given places in that order.
func (a *asker) inTurn(names string) {
	a.t.Helper()
	all := strings.Fields(names)
	for i, name := range all {
		a.want(strings.Join(all[:i+1], " "))
		a.leaves(name)
	}
}

const ann, ben, cal = 1000, 1001, 1002

func oneMember(places int) *queue { return newQueue(MaxWaiting, maxWaitingPerUser, places) }

// TestQueueTakesTurns: one who asks for a thousand does not hold up one who asks once.
func TestQueueTakesTurns(t *testing.T) {
	a := ask(t, oneMember(1))
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
	a := ask(t, oneMember(4))
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

// TestQueueHasPriorities: a higher one comes before all lower ones, and among equals it is as ever.
func TestQueueHasPriorities(t *testing.T) {
	a := ask(t, oneMember(1))
	asks := func(user uint32, name string, priority int) {
		a.asks(t.Context(), name, want{user: user, priority: priority, members: 1, at: -1})
	}
	asks(ann, "first", -3)
	asks(ann, "a-low", -3)
	asks(ben, "b-low", -3)
	asks(ann, "a0", 0)
	asks(ann, "a1", 0)
	asks(ben, "b0", 0)
	asks(ann, "a-high", 5)
	asks(ann, "a-top", 10)
	asks(cal, "c-high", 5)
	a.inTurn("first a-top c-high a-high b0 a0 a1 b-low a-low")
}

// TestQueueMembers: a place is of a member that may be had; one's own comes first, and another's is better than none,
// but for those that must stay.
func TestQueueMembers(t *testing.T) {
	a := ask(t, newQueue(100, 100, 1, 1, 0))
	asks := func(user uint32, name string, members uint64, at int, stay bool) {
		a.asks(t.Context(), name, want{user: user, members: members, at: at, stay: func() bool { return stay }})
	}
	at := func(name string, member int) {
		t.Helper()
		a.mu.Lock()
		defer a.mu.Unlock()
		if pl := a.had[name]; pl == nil || pl.member != member {
			t.Errorf("%s is at %+v; want member %d", name, pl, member)
		}
	}
	asks(ann, "a0", 0b011, -1, false)
	asks(ann, "a1", 0b011, -1, false) // the other one, in turn
	at("a0", 0)
	at("a1", 1)
	asks(ann, "only0", 0b001, -1, false)
	asks(ann, "stays0", 0b011, 0, true)
	asks(ann, "from0", 0b011, 0, false)
	asks(ann, "own1", 0b011, 1, false)
	a.leaves("a1")
	a.wait(3)
	at("own1", 1)
	a.leaves("own1")
	a.wait(4)
	at("from0", 1)
	a.leaves("from0") // nobody else may have it
	a.leaves("a0")
	a.wait(5)
	at("only0", 0)
	a.leaves("only0")
	a.wait(6)
	at("stays0", 0)
	a.leaves("stays0")
	// One that has no places has no turn, until it has.
	asks(ben, "b2", 0b100, -1, false)
	if a.waiting() != 1 {
		t.Errorf("%d wait", a.waiting())
	}
	a.q.resize(2, 1)
	a.wait(7)
	at("b2", 2)
	asks(ben, "b2+", 0b100, -1, false)
	asks(ben, "b1", 0b110, 1, false)
	a.q.resize(2, 0)
	a.leaves("b2")
	a.leaves("b1")
	a.q.fail(0b011, fmt.Errorf("it is gone")) // which b1 did not wait for
	a.wait(9)
	if got := a.got()[8]; got != "b2+!" {
		t.Errorf("answered: %v", a.got())
	}
}

func TestQueueBoundsAUsersPlaces(t *testing.T) {
	a := ask(t, oneMember(4))
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
}

// TestQueueForgetsWhoLeaves: one that is canceled goes at once, also from the head of a line that others
// wait behind.
func TestQueueForgetsWhoLeaves(t *testing.T) {
	a := ask(t, oneMember(1))
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
	a.wants(ctx, ann, "late", 0)
	a.wait(4)
	if got := a.got(); got[3] != "late!" {
		t.Errorf("one whose context had ended: %v", got)
	}
	a.leaves("a0")
	a.wait(5)
	a.leaves("a2")
}

// TestQueueIsBounded: one too many is told so, and when to come again; others are not kept out.
func TestQueueIsBounded(t *testing.T) {
	a := ask(t, newQueue(100, 40, 2))
	a.q.held = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i := range 2 + 40 {
		a.wants(ctx, ann, fmt.Sprint(i), 0)
	}
	a.wants(ctx, ben, "b0", 0)
	_, err := a.q.take(ctx, want{user: ann, members: 1, at: -1})
	if executor.KindOf(err) != executor.Unavailable || err.Error() != "40 tasks of user 1000 wait already; wait for some of them, and try again in about 1m0s" {
		t.Errorf("one too many: %v", err)
	}
	if a.waiting() != 41 {
		t.Errorf("%d wait", a.waiting())
	}
	for i := range 59 {
		a.wants(ctx, uint32(2000+i), fmt.Sprint("other", i), 0)
	}
	if _, err := a.q.take(ctx, want{user: cal, members: 1, at: -1}); executor.KindOf(err) != executor.Unavailable || !strings.Contains(err.Error(), "100 tasks wait already") {
		t.Errorf("one too many in all: %v", err)
	}
	cancel()
	a.all.Wait()
	for _, pl := range a.had {
		if pl != nil {
			pl.leave()
		}
	}
}

// TestQueueCloses: all that wait are answered, and who comes later, too.
func TestQueueCloses(t *testing.T) {
	a := ask(t, oneMember(1))
	a.wants(t.Context(), ann, "a0", 0)
	a.wants(t.Context(), ann, "a1", 0)
	a.wants(t.Context(), ben, "b0", 0)
	a.q.close(errClosed())
	a.wait(3)
	if _, err := a.q.take(t.Context(), want{user: cal, members: 1, at: -1}); executor.KindOf(err) != executor.Unavailable {
		t.Errorf("later: %v", err)
	}
	a.leaves("a0")
	if got := a.got()[1:]; !slices.Contains(got, "a1!") || !slices.Contains(got, "b0!") {
		t.Errorf("answered: %v", got)
	}
}

// FuzzQueue lets anything happen to a queue, and sees after each step that nobody waits for a place that could be
// had, nobody has more than allowed, and nobody came before one that should have.
func FuzzQueue(f *testing.F) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		b := make([]byte, 400)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, steps []byte) {
		if len(steps) > 2000 {
			return
		}
		m := &model{t: t, q: newQueue(12, 8, 2, 1, 0)}
		for len(steps) >= 4 {
			m.step(steps[0], steps[1], steps[2], steps[3])
			steps = steps[4:]
		}
		m.end()
	})
}

// model drives a queue on one goroutine: it joins as take does, without waiting.
type model struct {
	t     *testing.T
	q     *queue
	waits []*waiting
	holds []*place
	owner map[*place]uint32
}

type waiting struct {
	*waiter
	u    *user
	part func()
}

func (m *model) step(op, a, b, c byte) {
	switch op % 8 {
	case 0, 1, 2, 3:
		m.join(want{
			user: uint32(a % 4), priority: int(b%5) - 2, most: int(b/5) % 4, members: uint64(c%7) + 1, at: int(c/7)%4 - 1,
			stay: func() bool { return a&0x80 != 0 },
		})
	case 4, 5:
		if len(m.holds) > 0 {
			i := int(a) % len(m.holds)
			pl := m.holds[i]
			m.holds = slices.Delete(m.holds, i, i+1)
			pl.leave()
			pl.leave()
		}
	case 6:
		if len(m.waits) > 0 {
			i := int(a) % len(m.waits)
			w := m.waits[i]
			m.waits = slices.Delete(m.waits, i, i+1)
			m.q.mu.Lock()
			w.part()
			m.q.serve()
			m.q.mu.Unlock()
		}
	case 7:
		if b%8 == 0 {
			m.q.fail(uint64(c%8), errClosed())
		} else {
			m.q.resize(int(a)%3, int(b)%4)
		}
	}
	m.check()
}

func (m *model) join(w want) {
	if w.at >= 0 {
		if w.at > 2 {
			w.at = 2
		}
		w.members |= 1 << w.at
	}
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	x := &waiter{want: w, joined: time.Now(), ready: make(chan struct{})}
	u := m.q.user(w.user)
	l, at := m.q.join(u, x)
	m.q.serve()
	if x.got == nil && m.q.full(u) != nil {
		m.q.part(u, l, at)
		return
	}
	m.waits = append(m.waits, &waiting{x, u, func() { m.q.part(u, l, at) }})
}

// check collects who was answered, and compares the queue with what a simple look at all of them says.
func (m *model) check() {
	m.t.Helper()
	if m.owner == nil {
		m.owner = map[*place]uint32{}
	}
	var served []*waiting
	m.waits = slices.DeleteFunc(m.waits, func(w *waiting) bool {
		select {
		case <-w.ready:
		default:
			return false
		}
		if w.got != nil {
			if w.members&(1<<w.got.member) == 0 {
				m.t.Errorf("%+v got a place of member %d", w.want, w.got.member)
			}
			if w.at >= 0 && w.got.member != w.at && w.stay() {
				m.t.Errorf("%+v was sent to member %d", w.want, w.got.member)
			}
			served = append(served, w)
			m.holds = append(m.holds, w.got)
			m.owner[w.got] = w.user
		}
		return true
	})
	for _, w := range served {
		for _, o := range m.waits {
			could := o.most == 0 && o.members&(1<<w.got.member) != 0 && (o.at < 0 || o.at == w.got.member || !o.stay())
			if could && (o.priority > w.priority || o.priority == w.priority && o.user == w.user && o.at == w.at && o.seq < w.seq) {
				m.t.Errorf("%+v got a place of member %d before %+v", w.want, w.got.member, o.want)
			}
		}
	}
	q := m.q
	q.mu.Lock()
	defer q.mu.Unlock()
	holds, taken := map[uint32]int{}, map[int]int{}
	for _, pl := range m.holds {
		holds[m.owner[pl]]++
		taken[pl.member]++
	}
	for i, s := range q.members {
		if s.taken != taken[i] {
			m.t.Errorf("member %d has given %d places; %d are held", i, s.taken, taken[i])
		}
	}
	if q.waiting != len(m.waits) || q.waiting > q.most {
		m.t.Errorf("%d wait, by the queue %d of at most %d", len(m.waits), q.waiting, q.most)
	}
	free := q.free()
	for _, w := range m.waits {
		u := q.users[w.user]
		if u == nil || u.holds != holds[w.user] {
			m.t.Fatalf("user %d holds %d; by the queue %+v", w.user, holds[w.user], u)
		}
		here := w.at < 0 || free&(1<<w.at) != 0
		if w.members&free != 0 && (w.most == 0 || u.holds < w.most) && (here || !w.stay()) {
			m.t.Errorf("%+v waits, and could have one of %b", w.want, free)
		}
	}
}

func (m *model) end() {
	m.q.fail(0, errClosed())
	m.check()
	for _, pl := range m.holds {
		pl.leave()
	}
	if len(m.waits) != 0 {
		m.t.Errorf("%d wait still", len(m.waits))
	}
	empty(m.t, m.q)
}

func BenchmarkQueue(b *testing.B) {
	q := newQueue(MaxWaiting, maxWaitingPerUser, 4, 4)
	for b.Loop() {
		pl, err := q.take(b.Context(), want{members: 3, at: -1})
		if err != nil {
			b.Fatal(err)
		}
		pl.leave()
	}
}
