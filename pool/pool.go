// Package pool makes one executor of several.
//
// A task's way through [Pool.Execute]:
//
//	admit    may this caller have the priority
//	wait     until few of the same user's are further on
//	choose   a healthy member that can have it, on the first of its platforms that has one: the next in turn, of those
//	         with a place to give if there are
//	place    one of the at most MaxParallel that each member has
//	execute  there
//	again    at another, if it was not started there
//
// # The queue
//
// There is one, bounded, for all that wait. The highest priority comes first, then the user who holds the fewest
// places. Who would be too many is told Unavailable, with how long to wait.
//
// A member that takes turns (see executor.WithTurn) gets a task before there is a place: it opens and signs it, answers
// it if it has the answer, and else asks for the place. So a result that is cached waits for no place, nor do all but
// one of the same tasks. Where another member is free before that one is, the task is sent there.
//
// # Members that fail
//
// Each member is asked how it is, regularly and whenever a task comes back from it that it did not start. One that
// says that it is not well, or does not answer in time, gets no more tasks. If it stays so it is closed, and opened anew, after a pause that
// doubles from failure to failure, up to a minute. A task that had not started goes to another. One that had is never run
// twice: its caller is told.
package pool

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"math"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor"
)

// Pool is an executor.Executor over several.
type Pool struct {
	cfg    Config
	log    logrus.FieldLogger
	born   time.Time
	ahead  *queue // of tasks that wait before they are sent to a member: see Pool.more
	places *queue // of the members
	seed   maphash.Seed
	life   context.Context // ends when members' keepers are to
	stop   context.CancelFunc
	keep   sync.WaitGroup // the keepers
	closed sync.Once
	end    error

	mu      sync.Mutex
	members []*member
	closing bool
	perUser int            // how many tasks of one user's may be at the members and not run yet
	tasks   sync.WaitGroup // Add only while !closing
	total   counts
	mates   map[uint64]*mates
}

var _ executor.Executor = (*Pool)(nil)

// counts are of tasks.
type counts struct{ active, executed, successful, failed, hits int64 }

func (c *counts) add(out *executor.TaskOutput) {
	c.executed++
	if out == nil || !out.Success() {
		c.failed++
		return
	}
	c.successful++
	if out.Cached {
		c.hits++
	}
}

// spare is how many tasks of each user's, beyond as many as can run, may be open at the members: some that
// come from a cache while others wait for a place.
const spare = 16

// New opens all members. Where one cannot be opened, none stays so.
func New(ctx context.Context, cfg Config) (*Pool, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("pool: %w", err)
	}
	if cfg.times == (times{}) {
		cfg.times = defaultTimes
	}
	if cfg.Logger == nil {
		l := logrus.New()
		l.SetOutput(io.Discard)
		cfg.Logger = l
	}
	p := &Pool{cfg: cfg, log: cfg.Logger, born: time.Now(), seed: maphash.MakeSeed(), mates: map[uint64]*mates{}}
	p.life, p.stop = context.WithCancel(context.Background())
	all, perUser := cfg.waiting()
	// It is before the first that who is too many is refused.
	p.ahead, p.places = newQueue(all, perUser, 0), newQueue(math.MaxInt, math.MaxInt, make([]int, len(cfg.Executors))...)
	p.ahead.further = func() int { n, _ := p.places.length(); return n }
	for i, c := range cfg.Executors {
		m := &member{pool: p, cfg: c, i: i, bit: 1 << i, look: make(chan chan struct{})}
		l, err := m.open(ctx)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("executor %s: %w", c.Name, err), p.Close(ctx))
		}
		p.members = append(p.members, m)
		m.begin(l)
	}
	for _, m := range p.members {
		p.keep.Go(m.keep)
	}
	return p, nil
}

// more sets how many tasks may be at the members and not run yet: some wait there, and hold descriptors. The lock is held.
func (p *Pool) more() {
	n := 0
	for _, m := range p.members {
		n += m.places
	}
	p.ahead.resize(0, min(8*(n+spare), max(n, p.ahead.most)))
	p.perUser = min(n+spare, max(n, p.ahead.mostPerUser))
}

// Capabilities implements executor.Executor: what some member can do, and of the walls what all have.
func (p *Pool) Capabilities(context.Context) (executor.Capabilities, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return executor.Capabilities{}, errClosed()
	}
	var all executor.Capabilities
	first := true
	for _, m := range p.members {
		if m.live == nil {
			continue
		}
		c := m.live.can
		if first {
			all = executor.Capabilities{Sandboxing: true, NetworkIsolation: true, Caching: true, Version: c.Version}
			first = false
		}
		all.Sandboxing = all.Sandboxing && c.Sandboxing
		all.NetworkIsolation = all.NetworkIsolation && c.NetworkIsolation
		all.Caching = all.Caching && c.Caching
		all.MaxParallel += m.places
		all.Platforms = union(all.Platforms, c.Platforms)
		all.Networks = union(all.Networks, c.Networks)
		all.Limits = union(all.Limits, c.Limits)
		for _, s := range c.Missing {
			if len(p.members) > 1 {
				s = m.cfg.Name + ": " + s
			}
			all.Missing = append(all.Missing, s)
		}
	}
	if first {
		return all, p.errNone()
	}
	return all, nil
}

// OpenBlob opens a blob at the member that has it, whoever asks: see local.Executor.
func (p *Pool) OpenBlob(ctx context.Context, d executor.Digest) (io.ReadCloser, error) {
	type opener interface {
		OpenBlob(context.Context, executor.Digest) (io.ReadCloser, error)
	}
	var last error
	for _, l := range p.living() {
		o, ok := l.e.(opener)
		if !ok {
			continue
		}
		r, err := o.OpenBlob(ctx, d)
		if err == nil {
			return r, nil
		}
		if last == nil || errors.Is(last, fs.ErrNotExist) {
			last = err
		}
	}
	if last == nil {
		last = executor.Errorf(executor.Unavailable, "no executor has blobs; run the task again, and use what its result holds itself")
	}
	return nil, last
}

// living are the members that there are now.
func (p *Pool) living() (all []*live) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.members {
		if m.live != nil {
			all = append(all, m.live)
		}
	}
	return all
}

// Healthy returns an error if no member is healthy.
func (p *Pool) Healthy() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return errClosed()
	}
	for _, m := range p.members {
		if m.up {
			return nil
		}
	}
	return p.errNone()
}

// errNone is why no task can be run. The lock is held.
func (p *Pool) errNone() error {
	for _, m := range p.members {
		if m.fault != nil {
			return executor.Errorf(executor.Unavailable, "no executor for the task is healthy: %s: %v; it is opened anew, so try again in about %v", m.cfg.Name, m.fault, max(m.pause, time.Second))
		}
	}
	return executor.Errorf(executor.Unavailable, "no executor is healthy; try again in about %v", time.Second)
}

func errClosed() error {
	return executor.Errorf(executor.Unavailable, "the pool of executors is closed; try again later or use another")
}

// Refuse answers the tasks that wait, and all that come from now on, with Unavailable. Those that run go on.
func (p *Pool) Refuse() {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	p.ahead.close(errClosed())
	p.places.close(errClosed())
}

// Close implements executor.Executor: those that wait are answered at once, with Unavailable. A member that does not
// end its tasks long after ctx ended is given up, its tasks are answered, and the error names it.
func (p *Pool) Close(ctx context.Context) error {
	p.closed.Do(func() {
		p.Refuse()
		p.stop()
		p.keep.Wait()
		errs := make([]error, len(p.members))
		var all sync.WaitGroup
		for i, m := range p.members {
			if l := m.leave(); l != nil {
				all.Go(func() { errs[i] = m.shut(ctx, l) })
			}
		}
		all.Wait()
		p.tasks.Wait()
		p.end = errors.Join(errs...)
	})
	return p.end
}

func union(a, b []string) []string {
	for _, s := range b {
		found := false
		for _, t := range a {
			found = found || s == t
		}
		if !found {
			a = append(a[:len(a):len(a)], s)
		}
	}
	return a
}
