package pool

import (
	"container/list"
	"context"
	"math/bits"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// queue hands out places at members. Of those that wait the highest priority is next; among equals that of
// the user who holds the fewest places, then of the one whose turn was longest ago; and each user's
// own are first come, first served. So who asks for a thousand places takes from others no
// more than their shares leave over.
type queue struct {
	most, mostPerUser int        // bounds on who waits
	further           func() int // how many wait further on, which count as well; nil: none

	mu      sync.Mutex
	closed  error
	members []slots
	last    int // the member that had the last place
	waiting int
	seq     uint64
	users   map[uint32]*user // that hold a place or wait for one
	turns   list.List        // of *user: those of whom somebody waits, by their last turn
	held    time.Duration    // how long places are held, as a moving average
	waited  time.Duration    // how long they are waited for, likewise
}

// slots are the places of one member.
type slots struct{ places, taken int }

// want is what is waited for.
type want struct {
	user     uint32
	priority int
	most     int    // of the user's places, with this one; 0 is any number
	members  uint64 // at which it may be, a bit each
	at       int    // the one at which the task is; -1 if at none
	// stay reports whether it must not be sent from there to another; nil: it may be.
	stay func() bool
}

// user is who holds places or waits for some.
type user struct {
	id             uint32
	holds, waiting int
	lines          []*line       // in which somebody waits
	turn           *list.Element // in queue.turns; nil if nobody waits
}

// line is those of one user that may have the same places.
type line struct {
	priority, most, at int
	members            uint64
	waiters            list.List // of *waiter
}

type waiter struct {
	want
	seq    uint64
	joined time.Time
	ready  chan struct{} // closed when got or err is set
	got    *place
	err    error
}

// place is one that was had.
type place struct {
	member int
	leave  func() // gives it back, once
}

// newQueue is a queue for members with so many places each.
func newQueue(most, mostPerUser int, places ...int) *queue {
	q := &queue{most: most, mostPerUser: mostPerUser, users: map[uint32]*user{}, last: -1}
	for _, n := range places {
		q.members = append(q.members, slots{places: n})
	}
	return q
}

// take waits for a place. Where too many wait already, the error is Unavailable.
func (q *queue) take(ctx context.Context, wanted want) (*place, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	w := &waiter{want: wanted, joined: time.Now(), ready: make(chan struct{})}
	q.mu.Lock()
	if q.closed != nil {
		defer q.mu.Unlock()
		return nil, q.closed
	}
	u := q.user(w.user)
	l, at := q.join(u, w)
	q.serve()
	if w.got == nil { // else it is not counted among those that wait
		if err := q.full(u); err != nil {
			q.part(u, l, at)
			q.mu.Unlock()
			return nil, err
		}
	}
	q.mu.Unlock()
	select {
	case <-w.ready:
		return w.got, w.err
	case <-ctx.Done():
	}
	q.mu.Lock()
	select {
	case <-w.ready: // in the same moment
		q.mu.Unlock()
		if w.got != nil {
			w.got.leave()
		}
	default:
		q.part(u, l, at)
		q.serve() // who waits behind may have another bound
		q.mu.Unlock()
	}
	return nil, ctx.Err()
}

// user is the one of that number, new if need be.
func (q *queue) user(id uint32) *user {
	u := q.users[id]
	if u == nil {
		u = &user{id: id}
		q.users[id] = u
	}
	return u
}

// full says why nobody more may wait, if so.
func (q *queue) full(u *user) error {
	const remedy = "wait for some of them, and try again in about %v"
	switch {
	case u.waiting > q.mostPerUser:
		return executor.Errorf(executor.Unavailable, "%d tasks of user %d wait already; "+remedy, q.mostPerUser, u.id, q.wait())
	case q.waiting > q.most, q.further != nil && q.waiting+q.further() > q.most:
		return executor.Errorf(executor.Unavailable, "%d tasks wait already; "+remedy, q.most, q.wait())
	}
	return nil
}

// wait is about as long as it takes until it is each user's turn once.
func (q *queue) wait() time.Duration {
	places := 0
	for _, m := range q.members {
		places += m.places
	}
	return max(q.held*time.Duration(q.turns.Len())/time.Duration(max(places, 1)), time.Second).Round(time.Second)
}

// join adds a waiter at the end of its line.
func (q *queue) join(u *user, w *waiter) (*line, *list.Element) {
	q.waiting++
	q.seq++
	w.seq = q.seq
	u.waiting++
	if u.turn == nil {
		u.turn = q.turns.PushBack(u)
	}
	for _, l := range u.lines {
		if l.priority == w.priority && l.most == w.most && l.at == w.at && l.members == w.members {
			return l, l.waiters.PushBack(w)
		}
	}
	l := &line{priority: w.priority, most: w.most, at: w.at, members: w.members}
	u.lines = append(u.lines, l)
	return l, l.waiters.PushBack(w)
}

// part takes a waiter out of its line.
func (q *queue) part(u *user, l *line, at *list.Element) {
	q.waiting--
	u.waiting--
	l.waiters.Remove(at)
	if l.waiters.Len() == 0 {
		for i := range u.lines {
			if u.lines[i] == l {
				u.lines = append(u.lines[:i], u.lines[i+1:]...)
				break
			}
		}
	}
	if u.waiting == 0 {
		q.turns.Remove(u.turn)
		u.turn = nil
	}
	q.forget(u)
}

// forget drops a user who has nothing to do with the queue.
func (q *queue) forget(u *user) {
	if u.holds == 0 && u.waiting == 0 {
		delete(q.users, u.id)
	}
}

// free are the members with a place to give.
func (q *queue) free() (mask uint64) {
	for i, m := range q.members {
		if m.taken < m.places {
			mask |= 1 << i
		}
	}
	return mask
}

// serve gives away what places there are.
func (q *queue) serve() {
	for q.turns.Len() > 0 {
		free := q.free()
		if free == 0 {
			return
		}
		c := q.next(free)
		if c == nil {
			return
		}
		at := c.l.at
		if at < 0 || !c.here {
			at = q.turn(c.l.members & free)
		}
		q.give(c, at)
	}
}

// give gives a place of a member.
func (q *queue) give(c *candidate, member int) {
	u, w := c.u, c.waiter()
	u.holds++
	q.members[member].taken++
	q.last = member
	if u.waiting > 1 {
		q.turns.MoveToBack(u.turn)
	}
	q.part(u, c.l, c.at)
	now := time.Now()
	q.waited += (now.Sub(w.joined) - q.waited) / 8
	w.got = &place{member: member, leave: sync.OnceFunc(func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.held += (time.Since(now) - q.held) / 8
		q.members[member].taken--
		u.holds--
		q.forget(u)
		q.serve()
	})}
	close(w.ready)
}

// turn is, of some members, the first after the one that had the last place.
func (q *queue) turn(members uint64) int {
	if after := members &^ (1<<(q.last+1) - 1); after != 0 {
		return bits.TrailingZeros64(after)
	}
	return bits.TrailingZeros64(members)
}

// candidate is somebody in a line of a user's.
type candidate struct {
	u    *user
	l    *line
	at   *list.Element // in l.waiters
	here bool          // a place is free where it is, or it is nowhere yet
}

func (c *candidate) waiter() *waiter { return c.at.Value.(*waiter) }

// next is who gets a place of the next of the free members; nil if none may have one.
func (q *queue) next(free uint64) (best *candidate) {
	for e := q.turns.Front(); e != nil; e = e.Next() {
		c := e.Value.(*user).next(free)
		if c != nil && (best == nil || c.l.priority > best.l.priority || c.l.priority == best.l.priority && c.u.holds < best.u.holds) {
			best = c
		}
	}
	return best
}

// next is the one of the user's that is first to get a place of a free member.
func (u *user) next(free uint64) (best *candidate) {
	for _, l := range u.lines {
		if l.members&free == 0 || l.most > 0 && u.holds >= l.most {
			continue
		}
		c := &candidate{u: u, l: l, at: l.waiters.Front(), here: l.at < 0 || free&(1<<l.at) != 0}
		for !c.here && c.at != nil && c.waiter().stays() {
			c.at = c.at.Next()
		}
		if c.at == nil {
			continue
		}
		switch {
		case best == nil, l.priority > best.l.priority,
			// Where it is, it is opened and signed.
			l.priority == best.l.priority && c.here && !best.here,
			l.priority == best.l.priority && c.here == best.here && c.waiter().seq < best.waiter().seq:
			best = c
		}
	}
	return best
}

func (w *waiter) stays() bool { return w.stay != nil && w.stay() }

// pick chooses a member for a task, without a place: the next one in turn that has one to give, or else of
// waits, which are those that take turns later. It is -1 if there is none.
func (q *queue) pick(members, waits uint64) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if free := members & q.free(); free != 0 {
		members = free
	} else {
		members &= waits
	}
	if members == 0 {
		return -1
	}
	i := q.turn(members)
	if waits&(1<<i) != 0 { // else its turn is when it gets the place
		q.last = i
	}
	return i
}

// holds is how many places a user has.
func (q *queue) holds(id uint32) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if u := q.users[id]; u != nil {
		return u.holds
	}
	return 0
}

// resize sets how many places a member has. Those that are held stay so.
func (q *queue) resize(member, places int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.members[member].places = places
	q.serve()
}

// fail answers those that wait for none of the living members.
func (q *queue) fail(living uint64, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, u := range q.users {
		for _, l := range append([]*line(nil), u.lines...) {
			if l.members&living != 0 {
				continue
			}
			for l.waiters.Len() > 0 {
				first := l.waiters.Front()
				w := first.Value.(*waiter)
				q.part(u, l, first)
				w.err = err
				close(w.ready)
			}
		}
	}
}

// close answers all that wait, and refuses who comes later.
func (q *queue) close(err error) {
	q.mu.Lock()
	q.closed = err
	q.mu.Unlock()
	q.fail(0, err)
}

// length is how many wait, and how long of late.
func (q *queue) length() (int, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.waiting, q.waited
}
