package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// sick is a status that fails while it is set.
type sick struct{ err atomic.Pointer[error] }

func (s *sick) set(err error) { s.err.Store(&err) }

func (s *sick) status(context.Context) (executor.Status, error) {
	if err := s.err.Load(); err != nil && *err != nil {
		return executor.Status{}, *err
	}
	return executor.Status{Healthy: true}, nil
}

// TestFailedMemberIsReplaced: closed, opened anew, with its tasks sent to others meanwhile.
func TestFailedMemberIsReplaced(t *testing.T) {
	for name, fault := range map[string]func(s *scripted){
		"error": func(s *scripted) {
			s.status = func(context.Context) (executor.Status, error) { return executor.Status{}, errors.New("it broke") }
		},
		"unhealthy": func(s *scripted) {
			s.status = func(context.Context) (executor.Status, error) { return executor.Status{}, nil }
		},
		"panic": func(s *scripted) { s.status = func(context.Context) (executor.Status, error) { panic("it broke") } },
		"hang": func(s *scripted) {
			s.status = func(context.Context) (executor.Status, error) { <-s.life.Done(); return executor.Status{}, nil }
		},
	} {
		t.Run(name, func(t *testing.T) {
			var broken atomic.Bool
			first, second := fresh(1, says("first")), fresh(1, says("second"))
			bad := fresh(1, nil)
			fault(bad)
			first.status = func(ctx context.Context) (executor.Status, error) {
				if broken.Load() {
					return bad.status(ctx)
				}
				return executor.Status{Healthy: true}, nil
			}
			p := newPool(t, quick, opener{"a": each(first, second), "b": each(fresh(1, says("b")))})
			t.Cleanup(bad.end)
			broken.Store(true)
			eventually(t, "the restart", func() bool { return p.AllStatus()[0].Restarts == 1 })
			if !first.closed.Load() || second.closed.Load() {
				t.Errorf("closed: %v, %v", first.closed.Load(), second.closed.Load())
			}
			bad.end()
			eventually(t, "a task at the new one", func() bool {
				out, err := p.Execute(t.Context(), spec("t"))
				if err != nil {
					t.Fatal(err)
				}
				return string(out.Stdout.Inline) == "second"
			})
			if s := p.AllStatus(); !s[0].Healthy || s[0].Fault != "" || s[1].Restarts != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// pinged is an executor at a far end.
type pinged struct {
	*scripted
	ping func(ctx context.Context) error
}

func (p pinged) Ping(ctx context.Context) error { return p.ping(ctx) }

// TestPingThatHangs counts as a failure, as one that fails does.
func TestPingThatHangs(t *testing.T) {
	for _, hang := range []bool{true, false} {
		var broken atomic.Bool
		first := pinged{fresh(1, says("first")), func(ctx context.Context) error {
			if broken.Load() && hang {
				<-ctx.Done() // of the question
			}
			if broken.Load() {
				return executor.Errorf(executor.Unavailable, "gone")
			}
			return nil
		}}
		p := newPool(t, quick, opener{"a": each(first, fresh(1, says("second")))})
		broken.Store(true)
		eventually(t, "the restart", func() bool { return p.AllStatus()[0].Restarts > 0 })
		if out, err := p.Execute(t.Context(), spec("t")); err != nil || string(out.Stdout.Inline) != "second" {
			t.Errorf("%v, %v", out, err)
		}
	}
}

// TestUnhealthyMemberRecovers: it gets no tasks meanwhile, and those that it has go on.
func TestUnhealthyMemberRecovers(t *testing.T) {
	g := newGate()
	var s sick
	a := fresh(2, g.run)
	a.status = s.status
	tm := quick
	tm.patience = time.Hour
	p := newPool(t, tm, opener{"a": each(a), "b": each(fresh(2, says("b")))})
	var running <-chan answer
	for running == nil { // whichever's turn it is
		c := sends(t, p, t.Context(), spec("t"))
		select {
		case <-c:
		case <-g.started:
			running = c
		}
	}
	s.set(errors.New("it is not well"))
	eventually(t, "it is not healthy", func() bool { return !p.AllStatus()[0].Healthy })
	if f := p.AllStatus()[0].Fault; f != "it is not well" {
		t.Errorf("fault %q", f)
	}
	for range 5 {
		if out, err := p.Execute(t.Context(), spec("other")); err != nil || string(out.Stdout.Inline) != "b" {
			t.Errorf("%v, %v", out, err)
		}
	}
	s.set(nil)
	// It is asked at once when a task leaves it, and by and by in any case.
	g.let("t")
	if a := <-running; a.err != nil || !a.out.Success() {
		t.Errorf("%+v", a)
	}
	eventually(t, "it is healthy", func() bool { return p.AllStatus()[0].Healthy })
	if p.AllStatus()[0].Restarts != 0 || a.closed.Load() {
		t.Error("it was replaced")
	}
}

// TestTasksOfAFailedMember: those that had started end with it, and are told to their callers; those that had not go on.
func TestTasksOfAFailedMember(t *testing.T) {
	g := newGate()
	var s sick
	var n atomic.Int64
	a := turner(1, func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
		n.Add(1)
		out, err := g.run(ctx, spec)
		if out != nil && out.Cause == executor.CauseCanceled {
			return nil, executor.Errorf(executor.Unavailable, "the executor is gone")
		}
		return out, err
	})
	a.status = s.status
	p := newPool(t, quick, opener{"a": each(a, turner(1, g.run))})
	first := sends(t, p, t.Context(), spec("first"))
	<-g.started
	second := sends(t, p, t.Context(), spec("second"))
	s.set(errors.New("it broke"))
	if a := <-first; executor.KindOf(a.err) != executor.Unavailable {
		t.Errorf("%+v", a)
	}
	g.let("second")
	if a := <-second; a.err != nil || !a.out.Success() {
		t.Errorf("%+v", a)
	}
	if n.Load() != 1 {
		t.Errorf("%d tasks were started at the one that failed", n.Load())
	}
	if s := p.AllStatus()[0]; s.Restarts != 1 || s.Active != 0 {
		t.Errorf("%+v", s)
	}
}

// TestMemberThatHangs: in all that it does. Its tasks are given up, and another takes its place.
func TestMemberThatHangs(t *testing.T) {
	for _, turns := range []bool{false, true} {
		t.Run(fmt.Sprint(turns), func(t *testing.T) {
			let := make(chan struct{})
			started := make(chan struct{})
			run := func(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
				start(ctx)
				close(started)
				<-let
				executor.EventsFrom(ctx)(executor.TaskEvent{Kind: executor.EventStdout}) // which nobody hears
				return success("late"), nil
			}
			a := fresh(1, run)
			if turns {
				a = turner(1, run)
			}
			var hang atomic.Bool
			a.status = func(context.Context) (executor.Status, error) {
				if hang.Load() {
					<-let
				}
				return executor.Status{Healthy: true}, nil
			}
			a.close = func(context.Context) error { <-let; return nil }
			p := newPool(t, quick, opener{"a": each(a, fresh(1, says("new")))})
			var late atomic.Bool
			ctx := executor.WithEvents(t.Context(), func(e executor.TaskEvent) {
				if e.Kind == executor.EventStdout {
					late.Store(true)
				}
			})
			c := sends(t, p, ctx, spec("t"))
			<-started
			hang.Store(true)
			if a := <-c; executor.KindOf(a.err) != executor.Internal || !strings.Contains(a.err.Error(), "not known") {
				t.Errorf("%+v", a)
			}
			if out, err := p.Execute(t.Context(), spec("next")); err != nil || string(out.Stdout.Inline) != "new" {
				t.Errorf("%v, %v", out, err)
			}
			close(let)
			a.tasks.Wait()
			if late.Load() {
				t.Error("an event came after the answer")
			}
		})
	}
}

// TestRestartsBackOff: a member that cannot be opened is tried again and again, at growing intervals; who comes
// meanwhile is told why there is no executor, and who waited, too.
func TestRestartsBackOff(t *testing.T) {
	var s sick
	var opened atomic.Int64
	var well atomic.Bool
	a := fresh(1, says("a"))
	a.status = s.status
	p := newPool(t, quick, opener{"a": func() (executor.Executor, error) {
		if opened.Add(1) == 1 {
			return a, nil
		}
		if !well.Load() {
			return nil, errors.New("there is no such directory")
		}
		return fresh(1, says("new")), nil
	}})
	s.set(errors.New("it broke"))
	eventually(t, "a few tries", func() bool { return opened.Load() > 4 })
	if _, err := p.Execute(t.Context(), spec("t")); executor.KindOf(err) != executor.Unavailable || !strings.Contains(err.Error(), "no such directory") || !strings.Contains(err.Error(), "try again in about") {
		t.Error(err)
	}
	if err := p.Healthy(); executor.KindOf(err) != executor.Unavailable {
		t.Error(err)
	}
	if _, err := p.Capabilities(t.Context()); executor.KindOf(err) != executor.Unavailable {
		t.Error(err)
	}
	if st, err := p.Status(t.Context()); err != nil || st.Healthy || !strings.Contains(st.Members[0].Fault, "no such directory") {
		t.Errorf("%+v, %v", st, err)
	}
	well.Store(true)
	eventually(t, "it is healthy", func() bool { return p.Healthy() == nil })
	if out, err := p.Execute(t.Context(), spec("t")); err != nil || string(out.Stdout.Inline) != "new" {
		t.Errorf("%v, %v", out, err)
	}
	m := p.members[0]
	m.pause = 0
	var got []time.Duration
	for range 6 {
		m.pause = m.longer()
		got = append(got, m.pause)
	}
	if fmt.Sprint(got) != "[1ms 2ms 4ms 5ms 5ms 5ms]" {
		t.Errorf("pauses %v", got)
	}
	m.pause = 0
}

// TestWaitersAreToldThatNobodyComes: a task that waits for a member which then cannot be opened anew.
func TestWaitersAreToldThatNobodyComes(t *testing.T) {
	g := newGate()
	var s sick
	a := fresh(1, g.run)
	a.status = s.status
	opened := 0
	p := newPool(t, quick, opener{"a": func() (executor.Executor, error) {
		if opened++; opened > 1 {
			return nil, errors.New("it cannot be opened")
		}
		return a, nil
	}})
	first := sends(t, p, t.Context(), spec("first"))
	<-g.started
	second := sends(t, p, t.Context(), spec("second"))
	s.set(errors.New("it broke"))
	if a := <-second; executor.KindOf(a.err) != executor.Unavailable || !strings.Contains(a.err.Error(), "cannot be opened") {
		t.Errorf("%+v", a)
	}
	if a := <-first; a.err != nil || a.out.Cause != executor.CauseCanceled {
		t.Errorf("%+v", a)
	}
}

// TestCloseAnswersAll: who waits, at once; who runs, when the grace is over.
func TestCloseAnswersAll(t *testing.T) {
	for _, turns := range []bool{false, true} {
		t.Run(fmt.Sprint(turns), func(t *testing.T) {
			g := newGate()
			e := fresh(2, g.run)
			if turns {
				e = turner(2, g.run)
			}
			p := newPool(t, slow, one(e))
			var all []<-chan answer
			for i := range 2 {
				all = append(all, sends(t, p, t.Context(), spec(fmt.Sprint(i))))
				<-g.started
			}
			for i := range 50 {
				all = append(all, sends(t, p, t.Context(), spec(fmt.Sprint("w", i))))
			}
			ctx, cancel := context.WithCancel(t.Context())
			closed := make(chan error)
			go func() { closed <- p.Close(ctx) }()
			for _, c := range all[2:] {
				if a := <-c; executor.KindOf(a.err) != executor.Unavailable {
					t.Errorf("%+v", a)
				}
			}
			if _, err := p.Execute(t.Context(), spec("late")); executor.KindOf(err) != executor.Unavailable {
				t.Error(err)
			}
			g.let("0")
			if a := <-all[0]; a.err != nil || !a.out.Success() {
				t.Errorf("%+v", a)
			}
			cancel()
			if a := <-all[1]; a.err != nil || a.out.Cause != executor.CauseCanceled {
				t.Errorf("%+v", a)
			}
			if err := <-closed; err != nil {
				t.Error(err)
			}
			if st, err := p.Status(t.Context()); err != nil || st.Healthy || st.Active != 0 || st.Queued != 0 || st.Executed != 52 {
				t.Errorf("%+v, %v", st, err)
			}
			if p.Healthy() == nil {
				t.Error("it is healthy")
			}
		})
	}
}

// TestCloseWaitsForTheCheck: a member is not closed while it finds out how it is.
func TestCloseWaitsForTheCheck(t *testing.T) {
	let, asked := make(chan struct{}), make(chan struct{})
	var n, inside atomic.Int64
	e := fresh(1, says("a"))
	e.status = func(context.Context) (executor.Status, error) {
		inside.Add(1)
		defer inside.Add(-1)
		if n.Add(1) == 2 {
			close(asked)
			<-let
		}
		return executor.Status{Healthy: true}, nil
	}
	e.close = func(context.Context) error {
		if inside.Load() != 0 {
			t.Error("it was closed while it was asked")
		}
		return nil
	}
	tm := slow
	tm.check = time.Millisecond
	p := newPool(t, tm, one(e))
	<-asked
	closed := make(chan error)
	go func() { closed <- p.Close(ended()) }()
	eventually(t, "it is about to be closed", func() bool { return p.AllStatus()[0].Healthy == false })
	close(let)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if n.Load() != 2 {
		t.Errorf("it was asked %d times", n.Load())
	}
}

// TestRefuse: who waits is answered, and who runs goes on.
func TestRefuse(t *testing.T) {
	g := newGate()
	p := newPool(t, slow, one(fresh(1, g.run)))
	running := sends(t, p, t.Context(), spec("running"))
	<-g.started
	waiting := sends(t, p, t.Context(), spec("waiting"))
	p.Refuse()
	if a := <-waiting; executor.KindOf(a.err) != executor.Unavailable {
		t.Errorf("%+v", a)
	}
	if _, err := p.Execute(t.Context(), spec("late")); executor.KindOf(err) != executor.Unavailable {
		t.Error(err)
	}
	g.let("running")
	if a := <-running; a.err != nil {
		t.Error(a.err)
	}
}

// TestCloseGivesUp: a member that does not end its tasks keeps nobody.
func TestCloseGivesUp(t *testing.T) {
	let := make(chan struct{})
	started := make(chan struct{})
	e := fresh(1, func(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
		start(ctx)
		close(started)
		<-let
		return success("late"), nil
	})
	p, err := New(t.Context(), Config{Executors: []ExecutorConfig{{Name: "a"}}, Open: one(e).open, times: quick})
	if err != nil {
		t.Fatal(err)
	}
	c := sends(t, p, t.Context(), spec("t"))
	<-started
	if err := p.Close(ended()); err == nil || !strings.Contains(err.Error(), "executor a does not end its tasks") {
		t.Error(err)
	}
	if a := <-c; executor.KindOf(a.err) != executor.Internal {
		t.Errorf("%+v", a)
	}
	close(let)
	e.tasks.Wait()
}

// TestNewClosesWhatItOpened where one cannot be opened.
func TestNewClosesWhatItOpened(t *testing.T) {
	a := fresh(1, says("a"))
	no := executor.Errorf(executor.Unsupported, "not here")
	_, err := New(t.Context(), Config{
		Executors: []ExecutorConfig{{Name: "a"}, {Name: "b"}},
		Open:      opener{"a": each(a), "b": func() (executor.Executor, error) { return nil, no }}.open,
	})
	if !errors.Is(err, no) || !strings.Contains(err.Error(), "executor b") || !a.closed.Load() {
		t.Errorf("%v, closed %v", err, a.closed.Load())
	}
	a = fresh(1, says("a"))
	a.closed.Store(true)
	if _, err := New(t.Context(), Config{Executors: []ExecutorConfig{{Name: "a"}}, Open: one(a).open}); err == nil || !strings.Contains(err.Error(), "not healthy") {
		t.Error(err)
	}
}

// store has some blobs.
type store struct {
	*scripted
	blobs map[string]string
	err   error
}

func (s store) OpenBlob(_ context.Context, d executor.Digest) (io.ReadCloser, error) {
	if s.err != nil {
		return nil, s.err
	}
	if b, ok := s.blobs[d.Hash]; ok {
		return io.NopCloser(strings.NewReader(b)), nil
	}
	return nil, fmt.Errorf("blob %v: %w", d, fs.ErrNotExist)
}

func TestBlobsOfAllMembers(t *testing.T) {
	broken := errors.New("the disk broke")
	p := newPool(t, slow, opener{
		"a": each(store{fresh(1, says("a")), map[string]string{"1": "one"}, nil}),
		"b": each(fresh(1, says("b"))),
		"c": each(store{fresh(1, says("c")), map[string]string{"2": "two"}, nil}),
	})
	for hash, want := range map[string]string{"1": "one", "2": "two"} {
		r, err := p.OpenBlob(t.Context(), executor.Digest{Hash: hash})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || string(b) != want {
			t.Errorf("%q, %v", b, err)
		}
	}
	if _, err := p.OpenBlob(t.Context(), executor.Digest{Hash: "3"}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	p = newPool(t, slow, opener{"a": each(store{scripted: fresh(1, says("a"))}), "b": each(store{scripted: fresh(1, says("b")), err: broken})})
	if _, err := p.OpenBlob(t.Context(), executor.Digest{Hash: "3"}); !errors.Is(err, broken) {
		t.Error(err)
	}
	p = newPool(t, slow, one(fresh(1, says("a"))))
	if _, err := p.OpenBlob(t.Context(), executor.Digest{Hash: "3"}); executor.KindOf(err) != executor.Unavailable {
		t.Error(err)
	}
}

func TestCapabilitiesOfAll(t *testing.T) {
	a, b := fresh(3, says("a")), fresh(5, says("b"))
	a.can.Sandboxing, a.can.Missing, a.can.Platforms = true, []string{"io_weight"}, []string{"linux/amd64"}
	b.can.Networks, b.can.Platforms = []string{"isolated", "loopback"}, []string{"wasip1/wasm"}
	p := newPool(t, slow, opener{"a": each(a), "b": each(b)}, func(c *Config) { c.Executors[1].MaxParallel = 2 })
	c, err := p.Capabilities(t.Context())
	if got := fmt.Sprintf("%+v", c); err != nil || got != "{Sandboxing:false NetworkIsolation:false Caching:false MaxParallel:5 Platforms:[linux/amd64 wasip1/wasm] Version:test "+
		"Networks:[isolated loopback] Limits:[memory_bytes] Missing:[a: io_weight]}" {
		t.Errorf("%s, %v", got, err)
	}
}
