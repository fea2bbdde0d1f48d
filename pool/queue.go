package local

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// Bounds on who waits in a queue.
const (
	maxWaiting        = 65536
	maxWaitingPerUser = 4096
)

// queue hands out places. Of the users that wait, the one that holds the fewest places is
// next, and among equals the one whose turn was longest ago; each user's own are first come,
// first served. So who asks for a thousand places takes from others no more than
// their shares leave over.
type queue struct {
	places, perUser int // bounds; perUser 0 is places

	mu      sync.Mutex
	taken   int
	waiting int
	lines   map[uint32]*line // of the users that hold a place or wait for one
	turns   list.List        // of *line: those in which somebody waits, by their last turn
	held    time.Duration    // how long places are held, as a moving average
}

// line is a user in a queue.
type line struct {
	holds   int
	waiters list.List     // of *waiter
	turn    *list.Element // in queue.turns; nil if nobody waits
}

type waiter struct {
	most  int           // places of the user's, with this one
	ready chan struct{} // closed when the place is the waiter's
}

func newQueue(places, perUser int) *queue {
	return &queue{places: places, perUser: perUser, lines: map[uint32]*line{}}
}

// take waits for a place for a user, who may hold most of them; 0 is as many as there are. leave gives
// it back, once, however often it is called. Where too many wait already, the error is Unavailable.
func (q *queue) take(ctx context.Context, user uint32, most int) (leave func(), err error) {
	if most <= 0 {
		most = q.places
	}
	if q.perUser > 0 {
		most = min(most, q.perUser)
	}
	w := &waiter{most: most, ready: make(chan struct{})}
	q.mu.Lock()
	l := q.lines[user]
	if l == nil {
		l = &line{}
		q.lines[user] = l
	}
	at := q.join(l, w)
	q.serve()
	select {
	case <-w.ready: // not counted among those that wait
	default:
		err = q.full(user, l)
	}
	if err != nil {
		q.part(user, l, at)
	}
	q.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-w.ready:
		return q.leaver(user, l), nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-w.ready: // in the same moment
		q.giveBack(user, l)
	default:
		q.part(user, l, at)
		q.serve() // who waits behind may have another bound
	}
	return nil, ctx.Err()
}

// full says why nobody more may wait, if so.
func (q *queue) full(user uint32, l *line) error {
	const remedy = "wait for some of them, and try again in about %v"
	// As long as it takes until it is this user's turn once.
	wait := max(q.held*time.Duration(q.turns.Len())/time.Duration(q.places), time.Second).Round(time.Second)
	switch {
	case l.waiters.Len() > maxWaitingPerUser:
		return executor.Errorf(executor.Unavailable, "%d tasks of user %d wait already; "+remedy, maxWaitingPerUser, user, wait)
	case q.waiting > maxWaiting:
		return executor.Errorf(executor.Unavailable, "%d tasks wait already; "+remedy, maxWaiting, wait)
	}
	return nil
}

// join adds a waiter at the end of a line.
func (q *queue) join(l *line, w *waiter) *list.Element {
	q.waiting++
	if l.turn == nil {
		l.turn = q.turns.PushBack(l)
	}
	return l.waiters.PushBack(w)
}

// part takes a waiter out of its line.
func (q *queue) part(user uint32, l *line, at *list.Element) {
	q.waiting--
	l.waiters.Remove(at)
	if l.waiters.Len() == 0 {
		q.turns.Remove(l.turn)
		l.turn = nil
	}
	q.forget(user, l)
}

// forget drops the line of a user who has nothing to do with the queue.
func (q *queue) forget(user uint32, l *line) {
	if l.holds == 0 && l.waiters.Len() == 0 {
		delete(q.lines, user)
	}
}

// serve gives away what places there are.
func (q *queue) serve() {
	for q.taken < q.places {
		l := q.next()
		if l == nil {
			return
		}
		q.taken++
		q.waiting--
		l.holds++
		close(l.waiters.Remove(l.waiters.Front()).(*waiter).ready)
		if l.waiters.Len() > 0 {
			q.turns.MoveToBack(l.turn)
		} else {
			q.turns.Remove(l.turn)
			l.turn = nil
		}
	}
}

// next is the line whose first waiter gets the next place; nil if none may have one.
func (q *queue) next() (best *line) {
	for e := q.turns.Front(); e != nil; e = e.Next() {
		l := e.Value.(*line)
		if l.holds < l.waiters.Front().Value.(*waiter).most && (best == nil || l.holds < best.holds) {
			best = l
		}
	}
	return best
}

func (q *queue) leaver(user uint32, l *line) func() {
	since := time.Now()
	return sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.held += (time.Since(since) - q.held) / 8
		q.giveBack(user, l)
	})
}

func (q *queue) giveBack(user uint32, l *line) {
	q.taken--
	l.holds--
	q.forget(user, l)
	q.serve()
}
