package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// scripted is an executor that does what the test says.
type scripted struct {
	run    func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error)
	can    executor.Capabilities
	status func(ctx context.Context) (executor.Status, error) // nil: it is healthy
	close  func(ctx context.Context) error                    // nil: cancels the tasks
	turns  bool

	mu     sync.Mutex
	tasks  sync.WaitGroup // Add only while !closed
	life   context.Context
	end    context.CancelFunc
	closed atomic.Bool
}

// fresh makes one that runs tasks by run, so many at once.
func fresh(places int, run func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error)) *scripted {
	s := &scripted{run: run, can: executor.Capabilities{Platforms: []string{executor.PlatformNative}, MaxParallel: places, Networks: []string{"isolated"}, Version: "test", Limits: []string{"memory_bytes"}}}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

func (s *scripted) TakesTurns() bool { return s.turns }

func (s *scripted) Execute(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
	s.mu.Lock()
	if s.closed.Load() {
		s.mu.Unlock()
		return nil, executor.Errorf(executor.Unavailable, "closed")
	}
	s.tasks.Add(1)
	s.mu.Unlock()
	defer s.tasks.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	return s.run(ctx, spec)
}

func (s *scripted) Capabilities(context.Context) (executor.Capabilities, error) { return s.can, nil }

func (s *scripted) Status(ctx context.Context) (executor.Status, error) {
	if s.status != nil {
		return s.status(ctx)
	}
	return executor.Status{Healthy: !s.closed.Load()}, nil
}

func (s *scripted) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed.Store(true)
	s.mu.Unlock()
	defer s.end()
	if s.close != nil {
		return s.close(ctx)
	}
	defer context.AfterFunc(ctx, s.end)()
	s.tasks.Wait()
	return nil
}

// start tells that a task has started.
func start(ctx context.Context) {
	if f := executor.EventsFrom(ctx); f != nil {
		f(executor.TaskEvent{Kind: executor.EventStarted})
	}
}

func success(name string) *executor.TaskOutput {
	return &executor.TaskOutput{Cause: executor.CauseExited, Stdout: executor.Stream{Inline: []byte(name)}}
}

// says is a run that succeeds at once, and says where.
func says(name string) func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
	return func(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
		start(ctx)
		return success(name), nil
	}
}

// gate is a run whose tasks tell that they have started, and end when they are let go.
type gate struct {
	started chan string
	mu      sync.Mutex
	goes    map[string]chan struct{}
}

func newGate() *gate {
	return &gate{started: make(chan string, 1000), goes: map[string]chan struct{}{}}
}

func (g *gate) of(name string) chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.goes[name] == nil {
		g.goes[name] = make(chan struct{})
	}
	return g.goes[name]
}

func (g *gate) run(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
	start(ctx)
	g.started <- spec.Name
	select {
	case <-g.of(spec.Name):
		return success(spec.Name), nil
	case <-ctx.Done():
		return &executor.TaskOutput{Cause: executor.CauseCanceled}, nil
	}
}

func (g *gate) let(name string) { close(g.of(name)) }

var quick = times{check: 2 * time.Millisecond, answer: 500 * time.Millisecond, patience: 40 * time.Millisecond, backoff: time.Millisecond, most: 5 * time.Millisecond}

// slow never checks by itself.
var slow = times{check: time.Hour, answer: time.Hour, patience: time.Hour, backoff: time.Millisecond, most: time.Millisecond}

// opener opens, for each member, one executor after the other.
type opener map[string]func() (executor.Executor, error)

func (o opener) open(_ context.Context, c ExecutorConfig) (executor.Executor, error) {
	return o[c.Name]()
}

// each opens these, in order, and the last again and again.
func each(es ...executor.Executor) func() (executor.Executor, error) {
	i := -1
	return func() (executor.Executor, error) {
		i = min(i+1, len(es)-1)
		return es[i], nil
	}
}

func newPool(t testing.TB, tm times, o opener, change ...func(*Config)) *Pool {
	t.Helper()
	testutil.CheckLeaks(t)
	cfg := Config{Open: o.open, times: tm}
	for name := range o {
		cfg.Executors = append(cfg.Executors, ExecutorConfig{Name: name})
	}
	slices.SortFunc(cfg.Executors, func(a, b ExecutorConfig) int { return strings.Compare(a.Name, b.Name) })
	for _, f := range change {
		f(&cfg)
	}
	p, err := New(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(ended()); err != nil {
			t.Errorf("close: %v", err)
		}
		empty(t, p.ahead)
		empty(t, p.places)
		if len(p.mates) != 0 {
			t.Errorf("%d mates are left", len(p.mates))
		}
	})
	return p
}

func one(e executor.Executor) opener { return opener{"a": each(e)} }

func as(t testing.TB, uid uint32) context.Context {
	return executor.WithCaller(t.Context(), executor.Caller{UID: uid, GID: uid})
}

func spec(name string) *executor.TaskSpec {
	return &executor.TaskSpec{Name: name, Script: "true # " + name}
}

// answer is what became of a task.
type answer struct {
	out *executor.TaskOutput
	err error
}

// sends executes a task in the background, and returns once it is with a member, waits, or is answered.
func sends(t testing.TB, p *Pool, ctx context.Context, s *executor.TaskSpec) <-chan answer {
	t.Helper()
	before := p.AggregateStats()
	c := make(chan answer, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		out, err := p.Execute(ctx, s)
		c <- answer{out, err}
	}()
	for {
		now := p.AggregateStats()
		if now.Active+now.Queued > before.Active+before.Queued || now.Executed > before.Executed {
			return c
		}
		select {
		case <-done:
			return c
		case <-time.After(20 * time.Microsecond):
		}
	}
}

// eventually waits for what comes soon.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestMembersTakeTurns(t *testing.T) {
	p := newPool(t, slow, opener{"a": each(fresh(4, says("a"))), "b": each(fresh(4, says("b"))), "c": each(fresh(4, says("c")))})
	var where string
	for range 6 {
		out, err := p.Execute(t.Context(), spec("t"))
		if err != nil {
			t.Fatal(err)
		}
		where += string(out.Stdout.Inline)
	}
	if where != "abcabc" {
		t.Errorf("they ran at %s", where)
	}
}

func TestTasksGoWhereTheyFit(t *testing.T) {
	a, b := fresh(4, says("a")), fresh(4, says("b"))
	b.can.Networks, b.can.Limits, b.can.Sandboxing = []string{"isolated", "full"}, []string{"memory_bytes", "pids_max"}, true
	p := newPool(t, slow, opener{"a": each(a), "b": each(b)})
	for _, s := range []executor.TaskSpec{
		{Network: executor.NetworkFull}, {Rootfs: "/root"}, {Limits: executor.ResourceLimits{PidsMax: 5}},
		{Limits: executor.ResourceLimits{MemoryBytes: 64 << 20, PidsMax: 5}},
	} {
		for range 3 {
			s.Script = "true"
			if out, err := p.Execute(t.Context(), &s); err != nil || string(out.Stdout.Inline) != "b" {
				t.Errorf("%+v: %v, %v", s, out, err)
			}
		}
	}
	// What none can do, one is asked for anyway: it knows the remedy.
	a.run = func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
		return nil, executor.Errorf(executor.Unsupported, "install a")
	}
	b.run = func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
		return nil, executor.Errorf(executor.Unsupported, "install b")
	}
	if _, err := p.Execute(t.Context(), &executor.TaskSpec{Script: "true", Network: executor.NetworkLoopback}); executor.KindOf(err) != executor.Unsupported || !strings.HasPrefix(err.Error(), "install") {
		t.Error(err)
	}
	// What only its refusal tells, another is asked for.
	b.run = says("b")
	for range 4 {
		if out, err := p.Execute(t.Context(), spec("t")); err != nil || string(out.Stdout.Inline) != "b" {
			t.Errorf("%v, %v", out, err)
		}
	}
}

// TestUsersShareThePlaces: one who sends a hundred does not hold up one who sends one, whether the member takes turns
// or not.
func TestUsersShareThePlaces(t *testing.T) {
	for _, turns := range []bool{false, true} {
		t.Run(fmt.Sprint(turns), func(t *testing.T) {
			g := newGate()
			e := fresh(1, g.run)
			if turns {
				e = turner(1, g.run)
			}
			p := newPool(t, slow, one(e))
			var all []<-chan answer
			for i := range 100 {
				all = append(all, sends(t, p, as(t, ann), spec(fmt.Sprint("a", i))))
			}
			all = append(all, sends(t, p, as(t, ben), spec("b0")), sends(t, p, as(t, ben), spec("b1")))
			eventually(t, "all but one wait", func() bool { s := p.AggregateStats(); return s.Active == 1 && s.Queued == 101 })
			var order []string
			for range 102 {
				name := <-g.started
				order = append(order, name)
				g.let(name)
			}
			for _, c := range all {
				if a := <-c; a.err != nil {
					t.Error(a.err)
				}
			}
			if !slices.Contains(order[:3], "b0") && !slices.Contains(order[:3], "b1") || !slices.Contains(order[:5], "b0") || !slices.Contains(order[:5], "b1") {
				t.Errorf("order %s", order[:10])
			}
			if s := p.AggregateStats(); s.Active != 0 || s.Queued != 0 || s.Executed != 102 || s.Successful != 102 || s.SuccessRate() != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// take takes the turn of a task.
func take(ctx context.Context, most int) (leave func(), err error) {
	turn, ok := executor.TurnFrom(ctx)
	if !ok {
		return nil, errors.New("there is no turn to take")
	}
	return turn.Take(ctx, most)
}

// turner is a scripted that takes turns: before run.
func turner(places int, run func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error)) *scripted {
	s := fresh(places, func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
		leave, err := take(ctx, 0)
		if err != nil {
			return nil, errors.Join(err) // as an executor does that has something to undo
		}
		defer leave()
		return run(ctx, spec)
	})
	s.turns = true
	return s
}

func TestPriority(t *testing.T) {
	g := newGate()
	p := newPool(t, slow, one(fresh(1, g.run)), func(c *Config) {
		c.MayRaise = func(c executor.Caller) int {
			return map[uint32]int{0: executor.MaxPriority, ann: 3}[c.UID]
		}
	})
	with := func(name string, n int) *executor.TaskSpec {
		s := spec(name)
		s.Priority = n
		return s
	}
	for _, c := range []struct {
		uid  uint32
		n    int
		kind executor.Kind
	}{{ann, 4, executor.Denied}, {ben, 1, executor.Denied}, {0, 11, executor.Invalid}, {ben, -11, executor.Invalid}} {
		if _, err := p.Execute(as(t, c.uid), with("t", c.n)); executor.KindOf(err) != c.kind || executor.AsError(err).Field != "priority" {
			t.Errorf("user %d, priority %d: %v", c.uid, c.n, err)
		}
	}
	all := []<-chan answer{
		sends(t, p, as(t, ben), with("first", 0)), sends(t, p, as(t, ben), with("low", -10)), sends(t, p, as(t, ben), with("usual", 0)),
		sends(t, p, as(t, ann), with("high", 3)), sends(t, p, as(t, 0), with("top", 10)),
	}
	for _, want := range []string{"first", "top", "high", "usual", "low"} {
		if got := <-g.started; got != want {
			t.Errorf("%s was started; want %s", got, want)
		}
		g.let(want)
	}
	for _, c := range all {
		<-c
	}
}

// TestPriorityIsRoots: without a configuration.
func TestPriorityIsRoots(t *testing.T) {
	p := newPool(t, slow, one(fresh(1, says("a"))))
	s := spec("t")
	s.Priority = 1
	if _, err := p.Execute(as(t, ann), s); executor.KindOf(err) != executor.Denied {
		t.Error(err)
	}
	if _, err := p.Execute(as(t, 0), s); err != nil {
		t.Error(err)
	}
	s.Priority = -10
	if _, err := p.Execute(as(t, ann), s); err != nil {
		t.Error(err)
	}
}

// TestBackPressure: who would be too many is told how long to wait, and what waits is bounded.
func TestBackPressure(t *testing.T) {
	g := newGate()
	p := newPool(t, slow, one(fresh(1, g.run)), func(c *Config) { c.Executors[0].ChannelBufferSize = 6 })
	// One runs, and as many as may be ahead wait for its place.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all []<-chan answer
	for i := range 400 {
		all = append(all, sends(t, p, executor.WithCaller(ctx, executor.Caller{UID: uint32(1000 + i%40)}), spec(fmt.Sprint(i))))
	}
	eventually(t, "all but 7 are refused", func() bool { return p.AggregateStats().Executed == 393 })
	if s := p.AggregateStats(); s.Active != 1 || s.Queued != 6 {
		t.Errorf("%+v", s)
	}
	cancel()
	refused := 0
	for _, c := range all {
		switch a := <-c; {
		case executor.KindOf(a.err) == executor.Unavailable && strings.Contains(a.err.Error(), "try again in about"):
			refused++
		case executor.KindOf(a.err) != executor.Canceled && (a.err != nil || a.out.Cause != executor.CauseCanceled):
			t.Errorf("%+v", a)
		}
	}
	if refused != 393 {
		t.Errorf("%d were refused", refused)
	}
}

// TestCanceledWhileQueued: it is answered at once, holds up nobody, and no member hears of it.
func TestCanceledWhileQueued(t *testing.T) {
	for _, turns := range []bool{false, true} {
		t.Run(fmt.Sprint(turns), func(t *testing.T) {
			g := newGate()
			e := fresh(1, g.run)
			if turns {
				e = turner(1, g.run)
			}
			p := newPool(t, slow, one(e))
			first := sends(t, p, t.Context(), spec("first"))
			<-g.started
			ctx, cancel := context.WithCancel(t.Context())
			second := sends(t, p, ctx, spec("second"))
			third := sends(t, p, t.Context(), spec("third"))
			cancel()
			if a := <-second; executor.KindOf(a.err) != executor.Canceled {
				t.Errorf("%+v", a)
			}
			g.let("first")
			g.let("third")
			<-first
			<-third
			close(g.started)
			for name := range g.started {
				if name == "second" {
					t.Error("it was started")
				}
			}
		})
	}
}

// TestContextThatHasEnded: a task of which is not sent on to a member, from the start or from another member.
func TestContextThatHasEnded(t *testing.T) {
	var b atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	p := newPool(t, slow, opener{
		"a": each(fresh(1, func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
			cancel()
			return nil, executor.Errorf(executor.Unavailable, "no room")
		})),
		"b": each(fresh(1, func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
			b.Add(1)
			return success("b"), nil
		})),
	})
	if _, err := p.Execute(ctx, spec("t")); executor.KindOf(err) != executor.Unavailable {
		t.Error(err)
	}
	if _, err := p.Execute(ctx, spec("t")); executor.KindOf(err) != executor.Canceled {
		t.Error(err)
	}
	if b.Load() != 0 {
		t.Error("it was sent to another member")
	}
	// And where it ends between the place and the member.
	m := p.members[1]
	tk := &task{Pool: p, spec: spec("t")}
	if _, err := tk.at(ctx, m, m.live); !errors.Is(err, context.Canceled) || b.Load() != 0 {
		t.Errorf("%v, %d ran", err, b.Load())
	}
}

// TestAgainOnlyBeforeTheStart: a task is sent to another member only if it had no effect at the first.
func TestAgainOnlyBeforeTheStart(t *testing.T) {
	for name, c := range map[string]struct {
		run   func(ctx context.Context) error
		again bool
	}{
		"unavailable": {func(context.Context) error { return executor.Errorf(executor.Unavailable, "x") }, true},
		"gone":        {func(context.Context) error { return context.Canceled }, true},
		"unavailable after a notice": {func(ctx context.Context) error {
			executor.EventsFrom(ctx)(executor.TaskEvent{Kind: executor.EventNotice, Text: "x"})
			return executor.Errorf(executor.Unavailable, "x")
		}, true},
		"unavailable when started": {func(ctx context.Context) error { start(ctx); return executor.Errorf(executor.Unavailable, "x") }, false},
		"after output": {func(ctx context.Context) error {
			executor.EventsFrom(ctx)(executor.TaskEvent{Kind: executor.EventStdout, Data: []byte("x")})
			return executor.Errorf(executor.Unavailable, "x")
		}, false},
		"internal": {func(context.Context) error { return executor.Errorf(executor.Internal, "x") }, false},
		"invalid":  {func(context.Context) error { return executor.Errorf(executor.Invalid, "x") }, false},
		"denied":   {func(context.Context) error { return executor.Errorf(executor.Denied, "x") }, false},
		"says so": {func(ctx context.Context) error {
			start(ctx)
			return executor.Errorf(executor.Internal, "x: %w", executor.ErrNotStarted)
		}, true},
		"panic": {func(context.Context) error { panic("x") }, false},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			p := newPool(t, slow, opener{
				"a": each(fresh(1, func(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) { return nil, c.run(ctx) })),
				"b": each(fresh(1, says("b"))),
			})
			var events []executor.EventKind
			out, err := p.Execute(executor.WithEvents(t.Context(), func(e executor.TaskEvent) { events = append(events, e.Kind) }), spec("t"))
			if c.again != (err == nil) || err == nil && string(out.Stdout.Inline) != "b" {
				t.Errorf("%v, %v", out, err)
			}
			if n := len(slices.DeleteFunc(slices.Clone(events), func(k executor.EventKind) bool { return k != executor.EventQueued })); n != 1 {
				t.Errorf("events %v", events)
			}
			s := p.AggregateStats()
			if s.Executed != 1 || s.Successful+s.Failed != 1 || s.Active != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestAllMembersRefuse: each is asked once, and the last answer is the caller's.
func TestAllMembersRefuse(t *testing.T) {
	var n atomic.Int64
	no := func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
		return nil, executor.Errorf(executor.Unavailable, "refusal %d", n.Add(1))
	}
	p := newPool(t, slow, opener{"a": each(fresh(1, no)), "b": each(fresh(1, no)), "c": each(fresh(1, no))})
	if _, err := p.Execute(t.Context(), spec("t")); err == nil || err.Error() != "refusal 3" {
		t.Error(err)
	}
}

// TestPlacesOfTurns: a member that takes turns answers what needs none while others wait, and what waits there goes
// to a member that is free first.
func TestPlacesOfTurns(t *testing.T) {
	g := newGate()
	at := func(where string) *scripted {
		s := turner(1, func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
			out, err := g.run(ctx, spec)
			if out != nil {
				out.Stderr.Inline = []byte(where)
			}
			return out, err
		})
		run := s.run
		s.run = func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
			if strings.HasPrefix(spec.Name, "hit") {
				return &executor.TaskOutput{Cause: executor.CauseExited, Cached: true}, nil
			}
			return run(ctx, spec)
		}
		return s
	}
	p := newPool(t, slow, opener{"a": each(at("a")), "b": each(at("b"))})
	all := map[string]<-chan answer{}
	for _, name := range []string{"t0", "t1", "t2", "t3", "t4", "t5"} {
		all[name] = sends(t, p, t.Context(), spec(name))
	}
	first, second := <-g.started, <-g.started
	eventually(t, "four wait", func() bool { s := p.AggregateStats(); return s.Queued == 4 && s.Active == 2 })
	if out, err := p.Execute(t.Context(), spec("hit")); err != nil || !out.Cached {
		t.Errorf("%v, %v", out, err)
	}
	// Only one member has places to give from now on: all go there.
	g.let(second)
	where := map[string]string{second: string((<-all[second]).out.Stderr.Inline)}
	for range 4 {
		name := <-g.started
		g.let(name)
		where[name] = string((<-all[name]).out.Stderr.Inline)
	}
	for name, m := range where {
		if m != where[second] {
			t.Errorf("%s ran at %s; want %s", name, m, where[second])
		}
	}
	g.let(first)
	<-all[first]
	s := p.AllStatus()
	if s[0].Executed+s[1].Executed != 7 || s[0].Failed+s[1].Failed != 0 {
		t.Errorf("%+v", s)
	}
}

// TestForgo: a task that comes with a place and waits for another task has none meanwhile.
func TestForgo(t *testing.T) {
	g := newGate()
	forgo := make(chan struct{})
	at := func() *scripted {
		return turner(1, func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
			return g.run(ctx, spec)
		})
	}
	var m [2]*scripted
	var tries atomic.Int64
	var where sync.Map
	for i := range m {
		m[i] = at()
		run := m[i].run
		m[i].run = func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
			where.Store(spec.Name, i)
			if spec.Name == "third" && tries.Add(1) == 2 {
				turn, _ := executor.TurnFrom(ctx)
				turn.Forgo()
				<-forgo
			}
			return run(ctx, spec)
		}
	}
	p := newPool(t, slow, opener{"a": each(m[0]), "b": each(m[1])})
	first, second := sends(t, p, t.Context(), spec("first")), sends(t, p, t.Context(), spec("second"))
	<-g.started
	<-g.started
	third := sends(t, p, t.Context(), spec("third"))
	eventually(t, "it waits", func() bool { return p.AggregateStats().Queued == 1 })
	// Who is at the other member, and who at the same.
	other, rest, its := "first", second, "second"
	if a, _ := where.Load("first"); func() bool { b, _ := where.Load("third"); return a == b }() {
		other, rest, its = "second", first, "first"
	}
	g.let(other)
	eventually(t, "it was sent on", func() bool { return tries.Load() == 2 })
	fourth := sends(t, p, t.Context(), spec("fourth"))
	if got := <-g.started; got != "fourth" {
		t.Errorf("%s was started", got)
	}
	close(forgo)
	for _, name := range []string{"fourth", "third", its} {
		g.let(name)
	}
	for _, c := range []<-chan answer{rest, third, fourth} {
		if a := <-c; a.err != nil {
			t.Error(a.err)
		}
	}
}

// TestMostOfAUser: a member's bound on a user's places holds over all members.
func TestMostOfAUser(t *testing.T) {
	g := newGate()
	bounded := func() *scripted {
		s := fresh(2, func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
			leave, err := take(ctx, 1)
			if err != nil {
				return nil, err
			}
			defer leave()
			return g.run(ctx, spec)
		})
		s.turns = true
		return s
	}
	p := newPool(t, slow, opener{"a": each(bounded()), "b": each(bounded())})
	var all []<-chan answer
	for i := range 5 {
		all = append(all, sends(t, p, as(t, ann), spec(fmt.Sprint(i))))
	}
	for range 5 {
		name := <-g.started
		if len(g.started) != 0 {
			t.Error("two at once")
		}
		g.let(name)
	}
	for _, c := range all {
		if a := <-c; a.err != nil {
			t.Error(a.err)
		}
	}
}

// TestSameTasksMeet: those of one user that are the same go to one member, and stay there.
func TestSameTasksMeet(t *testing.T) {
	g := newGate()
	var where sync.Map
	at := func(m string) *scripted {
		return turner(1, func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
			where.Store(spec.Name, m)
			return g.run(ctx, spec)
		})
	}
	p := newPool(t, slow, opener{"a": each(at("a")), "b": each(at("b"))})
	var all []<-chan answer
	for i := range 4 {
		s := spec(fmt.Sprint(i))
		s.Script = "true"
		all = append(all, sends(t, p, as(t, ann), s))
	}
	for i := range 4 {
		g.let(fmt.Sprint(i))
	}
	for _, c := range all {
		if a := <-c; a.err != nil {
			t.Error(a.err)
		}
	}
	members := map[any]bool{}
	where.Range(func(_, m any) bool { members[m] = true; return true })
	if len(members) != 1 {
		t.Errorf("they ran at %v", members)
	}
	key := func(change func(*executor.TaskSpec), user uint32) uint64 {
		s := spec("t")
		s.Env = map[string]string{"A": "1", "B": "2"}
		change(s)
		return p.key(s, user)
	}
	same := key(func(*executor.TaskSpec) {}, ann)
	for i, f := range []func(*executor.TaskSpec){
		func(s *executor.TaskSpec) { s.Name = "other" }, func(s *executor.TaskSpec) { s.Timeout = 5 }, func(s *executor.TaskSpec) { s.Priority = 5 },
	} {
		if key(f, ann) != same {
			t.Errorf("%d makes a difference", i)
		}
	}
	for i, f := range []func(*executor.TaskSpec){
		func(s *executor.TaskSpec) { s.Script = "x" }, func(s *executor.TaskSpec) { s.Env["A"] = "2" }, func(s *executor.TaskSpec) { s.Stdin = []byte("x") },
		func(s *executor.TaskSpec) { s.Workdir = "/x" }, func(s *executor.TaskSpec) { s.Outputs = []string{"x"} },
	} {
		if key(f, ann) == same {
			t.Errorf("%d makes no difference", i)
		}
	}
	if key(func(*executor.TaskSpec) {}, ben) == same {
		t.Error("the user makes no difference")
	}
}

// TestStatsAddUp under many goroutines, of which some cancel.
func TestStatsAddUp(t *testing.T) {
	run := func(ctx context.Context, s *executor.TaskSpec) (*executor.TaskOutput, error) {
		start(ctx)
		switch s.Recipe {
		case "fail":
			return &executor.TaskOutput{Cause: executor.CauseExited, ExitCode: 1}, nil
		case "error":
			return nil, executor.Errorf(executor.Internal, "x")
		case "hit":
			return &executor.TaskOutput{Cause: executor.CauseExited, Cached: true}, nil
		case "wait":
			<-ctx.Done()
			return &executor.TaskOutput{Cause: executor.CauseCanceled}, nil
		}
		return success("x"), nil
	}
	p := newPool(t, quick, opener{"a": each(fresh(2, run)), "b": each(turner(3, run)), "c": each(turner(1, run))})
	recipes := []string{"ok", "fail", "error", "hit", "wait"}
	const n = 40
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			for j, r := range recipes {
				ctx, cancel := context.WithCancel(as(t, uint32(i%5)))
				if r == "wait" || (i+j)%7 == 0 && r == "error" {
					time.AfterFunc(time.Millisecond, cancel)
				}
				s := spec(fmt.Sprint(i, j))
				s.Recipe, s.Priority = r, -(i % 3)
				_, _ = p.Execute(ctx, s)
				cancel()
				if s := p.AggregateStats(); s.Executed != s.Successful+s.Failed || s.CacheHits > s.Successful || s.Active < 0 || s.Active > 6+60 || s.Queued < 0 {
					t.Errorf("%+v", s)
				}
			}
		})
	}
	all.Wait()
	s := p.AggregateStats()
	if s.Executed != n*5 || s.Successful != n*2 || s.Failed != n*3 || s.CacheHits != n || s.Active != 0 || s.Queued != 0 || s.Executors != 3 || s.Healthy != 3 {
		t.Errorf("%+v", s)
	}
	if r := s.SuccessRate(); r != 0.4 {
		t.Errorf("success rate %v", r)
	}
	st, err := p.Status(t.Context())
	if err != nil || !st.Healthy || st.Executed != s.Executed || len(st.Members) != 3 || st.Uptime <= 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if (Stats{}).SuccessRate() != 1 {
		t.Error("the success rate of nothing")
	}
}

func TestConfigIsChecked(t *testing.T) {
	for text, c := range map[string]Config{
		"there are 0 executors":    {},
		"name: \"\"":               {Executors: []ExecutorConfig{{}}},
		"name: \"a\" is another's": {Executors: []ExecutorConfig{{Name: "a"}, {Name: "a"}}},
		"state_dir: \"/s\"":        {Executors: []ExecutorConfig{{Name: "a", StateDir: "/s"}, {Name: "b", StateDir: "/s"}}},
		"backend: \"x\"":           {Executors: []ExecutorConfig{{Name: "a", Backend: "x"}}},
		"component_path: is for":   {Executors: []ExecutorConfig{{Name: "a", ComponentPath: "/c"}}},
		"endpoint: is for":         {Executors: []ExecutorConfig{{Name: "a", Endpoint: "e"}}},
		"endpoint: is missing":     {Executors: []ExecutorConfig{{Name: "a", Backend: Remote}}},
		"cache_dir: \"c\" is not":  {Executors: []ExecutorConfig{{Name: "a", CacheDir: "c"}}},
		"max_parallel: 5000":       {Executors: []ExecutorConfig{{Name: "a", MaxParallel: 5000}}},
		"channel_buffer_size: -1":  {Executors: []ExecutorConfig{{Name: "a", ChannelBufferSize: -1}}},
	} {
		if _, err := New(t.Context(), c); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%v; want %s", err, text)
		}
	}
}
