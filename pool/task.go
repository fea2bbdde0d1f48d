package pool

import (
	"context"
	"errors"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/sandboxd/sandboxd/executor"
)

// task is one call of Execute.
type task struct {
	*Pool
	spec   *executor.TaskSpec
	caller executor.Caller
	events teller
	mates  *mates
	left   func()         // leaves ahead, once
	failed map[*live]bool // that did not start it, and are not to be asked again
	cannot uint64         // members that cannot run it at all

	mu   sync.Mutex
	held *place // that it has, and no member yet
	used *place // that a member took its turn with
}

// errElsewhere is how a task leaves a member because it has a place at another.
var errElsewhere = executor.Errorf(executor.Unavailable, "there is a place at another executor; it goes there: %w", executor.ErrNotStarted)

// maxTries bounds how often a task is sent to a member that does not start it.
const maxTries = 2 * MaxExecutors

// Execute implements executor.Executor.
func (p *Pool) Execute(ctx context.Context, spec *executor.TaskSpec) (out *executor.TaskOutput, err error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if len(spec.Platforms) == 0 {
		with := *spec
		with.Platforms = p.platforms()
		spec = &with
	}
	t := &task{Pool: p, spec: spec, events: teller{to: executor.EventsFrom(ctx)}, failed: map[*live]bool{}}
	var ok bool
	if t.caller, ok = executor.CallerFrom(ctx); !ok {
		t.caller.UID = uint32(os.Geteuid())
	}
	if err := t.enter(); err != nil {
		return nil, err
	}
	defer func() { t.leave(out) }()
	if err := t.mayHave(); err != nil {
		return nil, err
	}
	if out, err = t.run(ctx); err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = executor.Errorf(executor.Canceled, "canceled before there was a result: %w", err)
	}
	return out, err
}

// platforms are those of a task that names none.
func (p *Pool) platforms() []string {
	if len(p.cfg.Platforms) > 0 {
		return p.cfg.Platforms
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	can := p.members[0].can.Platforms
	return can[:min(1, len(can))]
}

// enter counts the task in.
func (t *task) enter() error {
	p := t.Pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return errClosed()
	}
	p.tasks.Add(1)
	t.mates = p.joinMates(t.spec, t.caller.UID)
	return nil
}

// leave counts it out.
func (t *task) leave(out *executor.TaskOutput) {
	p := t.Pool
	t.release()
	p.mu.Lock()
	p.total.add(out)
	p.leaveMates(t.mates)
	p.mu.Unlock()
	p.tasks.Done()
}

// mayHave refuses a priority that the caller may not have.
func (t *task) mayHave() error {
	most := 0
	switch {
	case t.cfg.MayRaise != nil:
		most = t.cfg.MayRaise(t.caller)
	case t.caller.UID == 0:
		most = executor.MaxPriority
	}
	if n := t.spec.Priority; n > 0 && n > most {
		e := executor.Errorf(executor.Denied, "%d is more than the %d that user %d may have; ask for less, or have the administrator give a higher priority by an [[access]] rule", n, most, t.caller.UID)
		e.Field = "priority"
		return e
	}
	return nil
}

func (t *task) run(ctx context.Context) (*executor.TaskOutput, error) {
	t.events.tell(executor.TaskEvent{Kind: executor.EventQueued})
	t.Pool.mu.Lock()
	most := t.perUser
	t.Pool.mu.Unlock()
	ahead, err := t.ahead.take(ctx, want{user: t.caller.UID, priority: t.spec.Priority, most: most, members: 1, at: -1})
	if err != nil {
		return nil, err
	}
	t.left = ahead.leave
	defer t.left()
	var last error
	for range maxTries {
		m, l, err := t.choose(ctx, last)
		if err != nil {
			return nil, err
		}
		if l == nil {
			continue
		}
		m.note(t.spec, "task sent to executor", nil)
		out, err := t.at(ctx, m, l)
		m.note(t.spec, "task came back from executor", err)
		m.count(l, out, err)
		if err == nil || !t.again(ctx, m, l, err) {
			return out, err
		}
		// It was not the caller who canceled it, but an executor that was closed.
		if !errors.Is(err, errElsewhere) && executor.KindOf(err) != executor.Canceled {
			last = err
		}
	}
	if last == nil {
		last = executor.Errorf(executor.Unavailable, "the executors failed faster than the task was sent to them; try again")
	}
	return nil, last
}

// choose finds who is to run the task, and has a place there for it unless it takes turns. last is why the one
// before did not. There is none, and no error, where it is to be tried again.
func (t *task) choose(ctx context.Context, last error) (*member, *live, error) {
	t.mu.Lock()
	held := t.held
	t.mu.Unlock()
	if held == nil {
		members, turns, err := t.candidates(last)
		if err != nil {
			return nil, nil, err
		}
		i := t.mates.at(members & turns)
		if i < 0 {
			i = t.mates.settle(t.places.pick(members, turns), members&turns)
		}
		if i >= 0 && turns&(1<<i) != 0 {
			return t.join(i)
		}
		held, err = t.places.take(ctx, want{user: t.caller.UID, priority: t.spec.Priority, members: members, at: -1})
		if err != nil {
			if now, _, err2 := t.candidates(last); err2 == nil && now&members == 0 {
				return nil, nil, nil // they failed meanwhile, and there are others
			}
			return nil, nil, err
		}
		t.hold(held)
	}
	m, l, err := t.join(held.member)
	if l == nil {
		t.release()
	} else if !l.turns {
		t.left()
	}
	return m, l, err
}

// candidates are the members that may run the task, and those of them that take turns: of the first of its
// platforms for which there are any.
func (t *task) candidates(last error) (members, turns uint64, err error) {
	p := t.Pool
	p.mu.Lock()
	defer p.mu.Unlock()
	var unfit uint64
	offered := false
	for _, platform := range t.spec.Platforms {
		up, soon := uint64(0), uint64(0)
		for _, m := range p.members {
			if !slices.Contains(m.can.Platforms, platform) {
				continue
			}
			offered = true
			if t.cannot&m.bit != 0 || m.live != nil && t.failed[m.live] {
				continue
			}
			fit := fits(t.spec, m.can)
			switch {
			case m.up && fit:
				up |= m.bit
			case m.up:
				unfit |= m.bit
			case m.hope && fit:
				soon |= m.bit
			}
			if m.up && m.live.turns {
				turns |= m.bit
			}
		}
		switch {
		case up != 0:
			return up, up & turns, nil
		case soon != 0:
			return soon, 0, nil
		}
	}
	switch {
	case last != nil:
		return 0, 0, last
	case unfit != 0: // which says itself what is missing, and what to do
		return unfit, unfit & turns, nil
	case !offered:
		return 0, 0, p.errPlatform(t.spec)
	}
	return 0, 0, p.errNone()
}

// errPlatform is why a task goes to none of the members. The lock is held.
func (p *Pool) errPlatform(spec *executor.TaskSpec) error {
	var all []string
	for _, m := range p.members {
		all = union(all, m.can.Platforms)
	}
	return spec.CheckPlatform(strings.Join(all, ", "))
}

// join counts the task in at a member; there is none if that has failed meanwhile.
func (t *task) join(i int) (*member, *live, error) {
	p := t.Pool
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.members[i]
	if p.closing {
		return nil, nil, errClosed()
	}
	if !m.up {
		return nil, nil, nil
	}
	m.live.tasks++
	m.counts.active++
	t.mates.moved(i)
	return m, m.live, nil
}

// count counts it out. What another will answer is not this member's.
func (m *member) count(l *live, out *executor.TaskOutput, err error) {
	p := m.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	m.counts.active--
	if !errors.Is(err, executor.ErrNotStarted) {
		m.counts.add(out)
	}
	if l.tasks--; l.tasks == 0 {
		select {
		case l.idle <- struct{}{}:
		default:
		}
	}
}

// at has the task executed.
func (t *task) at(ctx context.Context, m *member, l *live) (*executor.TaskOutput, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx = executor.WithEvents(ctx, t.events.tell)
	if l.turns {
		ctx = executor.WithTurn(ctx, executor.Turn{Take: t.turn(m), Forgo: t.release})
	} else {
		defer t.release()
	}
	type answer struct {
		out *executor.TaskOutput
		err error
	}
	done := make(chan answer, 1)
	go func() {
		var a answer
		defer func() {
			if p := recover(); p != nil {
				a = answer{err: executor.Errorf(executor.Internal, "executor panicked; see the daemon's log%w", &executor.PanicError{Value: p, Stack: debug.Stack()})}
			}
			done <- a
		}()
		a.out, a.err = l.e.Execute(ctx, t.spec)
	}()
	select {
	case a := <-done:
		return a.out, a.err
	case <-l.lost:
	}
	t.events.mute()
	t.release()
	t.mu.Lock()
	if t.used != nil {
		t.used.leave()
	}
	t.mu.Unlock()
	return nil, executor.Errorf(executor.Internal, "executor %s does not answer; whether the task ran, and runs still, is not known", m.cfg.Name)
}

// turn is how a member that takes turns gets a place for the task.
func (t *task) turn(m *member) func(context.Context, int) (func(), error) {
	return func(ctx context.Context, most int) (func(), error) {
		if pl := t.taken(); pl != nil { // it was sent here with one
			if pl.member == m.i && (most <= 0 || t.places.holds(t.caller.UID) <= most) {
				return t.use(pl), nil
			}
			pl.leave()
		}
		members, _, err := t.candidates(nil)
		if err != nil {
			members = 0
		}
		m.waits(1)
		pl, err := t.places.take(ctx, want{
			user: t.caller.UID, priority: t.spec.Priority, most: most, members: members | m.bit, at: m.i, stay: t.mates.several,
		})
		m.waits(-1)
		if err != nil {
			return nil, err
		}
		if pl.member != m.i {
			t.hold(pl)
			return nil, errElsewhere
		}
		return t.use(pl), nil
	}
}

// use gives a place to a member. With it the task is no more among those ahead.
func (t *task) use(pl *place) (leave func()) {
	t.mu.Lock()
	t.used = pl
	t.mu.Unlock()
	t.left()
	return pl.leave
}

// waits moves n tasks from the active ones to those that wait.
func (m *member) waits(n int64) {
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	m.counts.active -= n
}

// hold keeps a place for the task.
func (t *task) hold(pl *place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held = pl
}

// taken is the place that was kept, now the caller's.
func (t *task) taken() *place {
	t.mu.Lock()
	defer t.mu.Unlock()
	pl := t.held
	t.held = nil
	return pl
}

// release gives back the place that was kept, if one was.
func (t *task) release() {
	if pl := t.taken(); pl != nil {
		pl.leave()
	}
}

// again reports whether a task that came back with an error is to be sent to another member: it had no
// effect, and its caller still waits for it.
func (t *task) again(ctx context.Context, m *member, l *live, err error) bool {
	if errors.Is(err, errElsewhere) {
		return true
	}
	if ctx.Err() != nil || !errors.Is(err, executor.ErrNotStarted) && t.events.begun() {
		return false
	}
	switch kind := executor.KindOf(err); {
	case kind == executor.Unsupported:
		t.cannot |= m.bit
		return true
	case kind == executor.Unavailable, kind == executor.Canceled, errors.Is(err, executor.ErrNotStarted):
		t.failed[l] = true
		m.soon(ctx, l)
		return true
	}
	return false
}

// teller passes on the events of a task, of all members that it was sent to.
type teller struct {
	to executor.EventFunc // nil for nobody

	mu                    sync.Mutex
	queued, started, over bool
}

func (e *teller) tell(ev executor.TaskEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return
	}
	switch {
	case ev.Kind == executor.EventNotice:
	case ev.Kind != executor.EventQueued:
		e.started = true
	case e.queued:
		return
	default:
		e.queued = true
	}
	if e.to != nil {
		e.to(ev)
	}
}

// begun reports whether a member has told that the task was started, or of its output.
func (e *teller) begun() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.started
}

// mute returns once no event is told any more.
func (e *teller) mute() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.over = true
}
