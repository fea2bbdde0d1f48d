package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor"
)

// member is an executor of a pool, through all its restarts.
type member struct {
	pool *Pool
	cfg  ExecutorConfig
	i    int
	bit  uint64
	look chan chan struct{} // asks the keeper to check now; what is sent is closed when that is done

	// Of the keeper alone.
	since time.Time // when the living one was opened
	bad   time.Time // since when it has not been healthy; zero if it is

	// Under the pool's lock.
	live     *live // nil while there is none
	up       bool  // it is healthy
	hope     bool  // it is up, or may be before long: tasks may wait for it
	fault    error // why it is not up
	pause    time.Duration
	can      executor.Capabilities // of the last that lived
	places   int                   // while it is up
	restarts int64
	counts   counts
}

// live is an executor from its opening to its closing.
type live struct {
	e     executor.Executor
	turns bool          // it takes turns
	gone  chan struct{} // closed once it is the member's no more
	lost  chan struct{} // closed once it is given up: nobody waits for it then
	lose  func()
	ask   chan verdict // of a check that was not answered yet; of the keeper alone

	// Under the pool's lock.
	can   executor.Capabilities
	tasks int
	idle  chan struct{} // of capacity 1: the last task has left
}

// verdict is the answer to a check.
type verdict struct {
	can executor.Capabilities
	err error
}

// open opens the executor and sees that it is well.
func (m *member) open(ctx context.Context) (*live, error) {
	e, err := m.choose(ctx)
	if err != nil {
		return nil, err
	}
	t, _ := e.(interface{ TakesTurns() bool })
	l := &live{e: e, turns: t != nil && t.TakesTurns(), gone: make(chan struct{}), lost: make(chan struct{}), idle: make(chan struct{}, 1)}
	l.lose = sync.OnceFunc(func() { close(l.lost) })
	v := m.check(ctx, l)
	if v.err != nil {
		return nil, errors.Join(v.err, m.shut(ended(), l))
	}
	l.can = v.can
	return l, nil
}

// choose opens the backend.
func (m *member) choose(ctx context.Context) (executor.Executor, error) {
	c := m.cfg
	if c.Backend != Auto {
		return m.pool.cfg.Open(ctx, c)
	}
	c.Backend = Local
	e, err := m.pool.cfg.Open(ctx, c)
	if err == nil || executor.KindOf(err) != executor.Unsupported {
		return e, err
	}
	c.Backend = Wasm
	e, err2 := m.pool.cfg.Open(ctx, c)
	if err2 != nil {
		return nil, errors.Join(err, err2)
	}
	m.pool.log.WithField("executor", c.Name).WithError(err).Warn("no sandboxes can be made here; its tasks run in WebAssembly")
	return e, nil
}

// ended is a context without grace.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// check asks how l is. A question that was not answered in time is still the question next time.
func (m *member) check(ctx context.Context, l *live) verdict {
	ctx, cancel := context.WithTimeout(ctx, m.pool.cfg.times.answer)
	defer cancel()
	if l.ask == nil {
		l.ask = make(chan verdict, 1)
		go func(answer chan<- verdict) { answer <- question(ctx, l.e) }(l.ask)
	}
	select {
	case v := <-l.ask:
		l.ask = nil
		return v
	case <-ctx.Done():
		return verdict{err: fmt.Errorf("it does not answer: %w", ctx.Err())}
	}
}

// question is one that only an executor which can start tasks answers well.
func question(ctx context.Context, e executor.Executor) (v verdict) {
	defer func() {
		if p := recover(); p != nil {
			v.err = fmt.Errorf("it panicked: %v", p)
		}
	}()
	if p, ok := e.(interface{ Ping(context.Context) error }); ok {
		if v.err = p.Ping(ctx); v.err != nil {
			return v
		}
	}
	var s executor.Status
	if s, v.err = e.Status(ctx); v.err != nil {
		return v
	}
	if !s.Healthy {
		v.err = errors.New("it says that it is not healthy")
		return v
	}
	if h, ok := e.(interface{ Healthy() error }); ok {
		if v.err = h.Healthy(); v.err != nil {
			return v
		}
	}
	v.can, v.err = e.Capabilities(ctx)
	return v
}

// begin puts l to work.
func (m *member) begin(l *live) {
	p := m.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	m.live, m.since, m.bad = l, time.Now(), time.Time{}
	m.well(l.can)
}

// well notes that the living one is healthy, and what it can do. The lock is held.
func (m *member) well(can executor.Capabilities) {
	m.live.can, m.can = can, can
	m.up, m.hope, m.fault = true, true, nil
	m.places = min(max(can.MaxParallel, 1), MaxParallel)
	if n := m.cfg.MaxParallel; n > 0 {
		m.places = min(m.places, n)
	}
	m.pool.places.resize(m.i, m.places)
	m.pool.more()
}

// ill notes that it is not: it gets no more tasks. The lock is held.
func (m *member) ill(err error) {
	m.up, m.fault = false, err
	m.pool.places.resize(m.i, 0)
}

// keep looks after the member until the pool is closed.
func (m *member) keep() {
	p := m.pool
	for p.life.Err() == nil {
		every := p.cfg.times.check
		var idle <-chan struct{}
		if !m.bad.IsZero() {
			every = min(every, p.cfg.times.patience/4)
			idle = m.live.idle
		}
		timer := time.NewTimer(every)
		var asked []chan struct{}
		select {
		case <-p.life.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-idle:
		case c := <-m.look:
			asked = append(asked, c)
		}
		timer.Stop()
		for more := true; more; { // who asks now is answered by the same check
			select {
			case c := <-m.look:
				asked = append(asked, c)
			default:
				more = false
			}
		}
		replace := m.judge(m.check(p.life, m.live))
		for _, c := range asked {
			close(c)
		}
		if replace && p.life.Err() == nil {
			m.replace()
		}
	}
}

// judge reports whether the living one is to be replaced.
func (m *member) judge(v verdict) bool {
	p := m.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if v.err == nil {
		if !m.bad.IsZero() {
			p.log.WithField("executor", m.cfg.Name).Info("executor is healthy again")
		}
		m.bad = time.Time{}
		m.well(v.can)
		return false
	}
	if m.bad.IsZero() {
		m.bad = time.Now()
		if p.life.Err() == nil {
			p.log.WithField("executor", m.cfg.Name).WithError(v.err).Warn("executor is not healthy, and gets no tasks")
		}
	}
	m.ill(v.err)
	return m.live.tasks == 0 || time.Since(m.bad) >= p.cfg.times.patience
}

// leave takes the living one from the member; nil if there is none.
func (m *member) leave() *live {
	p := m.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	l := m.live
	if l != nil {
		m.live = nil
		close(l.gone)
	}
	m.up = false
	p.places.resize(m.i, 0)
	return l
}

// replace closes the living one and opens another, however often that takes.
func (m *member) replace() {
	p := m.pool
	log := p.log.WithField("executor", m.cfg.Name)
	if err := m.shut(ended(), m.leave()); err != nil {
		log.WithError(err).Error("executor that failed could not be closed")
	}
	if time.Since(m.since) >= p.cfg.times.most {
		m.wait(0)
	} else { // it failed soon: not at once, then
		m.wait(m.longer())
	}
	for p.life.Err() == nil {
		l, err := m.open(p.life)
		if err == nil {
			p.mu.Lock()
			m.restarts++
			p.mu.Unlock()
			m.begin(l)
			log.Info("executor restarted")
			return
		}
		pause := m.longer()
		if p.life.Err() == nil {
			log.WithError(err).WithField("pause", pause.String()).Error("executor cannot be restarted; it is tried again")
		}
		p.mu.Lock()
		m.hope, m.fault = false, err
		none := p.errNone()
		var living uint64
		for _, o := range p.members {
			if o.hope {
				living |= o.bit
			}
		}
		p.mu.Unlock()
		p.places.fail(living, none)
		m.wait(pause)
	}
}

// longer is the next pause.
func (m *member) longer() time.Duration {
	t := m.pool.cfg.times
	return min(max(2*m.pause, t.backoff), t.most)
}

// wait waits for a pause, or the end of the pool.
func (m *member) wait(pause time.Duration) {
	m.pool.mu.Lock()
	m.pause = pause
	m.pool.mu.Unlock()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-m.pool.life.Done():
	}
}

// shut closes l, and gives it up where that takes long after the end of ctx.
func (m *member) shut(ctx context.Context, l *live) error {
	patience := m.pool.cfg.times.patience
	if l.ask != nil { // what it makes for its answer it has to unmake first
		timer := time.NewTimer(m.pool.cfg.times.answer)
		select {
		case <-l.ask:
		case <-timer.C:
		}
		timer.Stop()
	}
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("it panicked: %v", p)
			}
		}()
		done <- l.e.Close(ctx)
	}()
	late := make(chan struct{})
	defer context.AfterFunc(ctx, func() { time.AfterFunc(patience, func() { close(late) }) })()
	select {
	case err := <-done:
		time.AfterFunc(patience, l.lose) // of tasks that it forgot
		if err != nil {
			return fmt.Errorf("executor %s: %w", m.cfg.Name, err)
		}
		return nil
	case <-late:
		l.lose()
		return executor.Errorf(executor.Internal, "executor %s does not end its tasks, and is given up; what they do is not known", m.cfg.Name)
	}
}

// soon has l checked, and returns when that is done or l is gone.
func (m *member) soon(ctx context.Context, l *live) {
	c := make(chan struct{})
	select {
	case m.look <- c:
	case <-l.gone:
		return
	case <-ctx.Done():
		return
	case <-m.pool.life.Done():
		return
	}
	select {
	case <-c:
	case <-l.gone:
	case <-ctx.Done():
	case <-m.pool.life.Done():
	}
}

// note logs what happens to a task of the member.
func (m *member) note(spec *executor.TaskSpec, what string, err error) {
	level := logrus.DebugLevel
	if m.cfg.Verbose {
		level = logrus.InfoLevel
	}
	e := m.pool.log.WithFields(logrus.Fields{"executor": m.cfg.Name, "task": spec.Name})
	if err != nil {
		e = e.WithError(err)
	}
	switch level {
	case logrus.InfoLevel:
		e.Info(what)
	default:
		e.Debug(what)
	}
}
