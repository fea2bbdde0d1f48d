package pool

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

const native, wasm = executor.PlatformNative, executor.PlatformWasm

// mixed are executors of two platforms.
func mixed() (sandboxes, modules *scripted) {
	sandboxes, modules = fresh(2, says(native)), fresh(2, says(wasm))
	modules.can.Platforms = []string{wasm}
	return sandboxes, modules
}

// on is a task for those platforms.
func on(platforms ...string) *executor.TaskSpec {
	return &executor.TaskSpec{Script: "true", Platforms: platforms}
}

// ran wants the task to run where it says.
func ran(t *testing.T, p *Pool, s *executor.TaskSpec, want string) {
	t.Helper()
	if out, err := p.Execute(t.Context(), s); err != nil || string(out.Stdout.Inline) != want {
		t.Errorf("for %q: %+v, %v; want it on %s", s.Platforms, out, err, want)
	}
}

// TestTasksGoToTheirPlatform: to the first of those that they name for which there is an executor, and those that name
// none to that of the first executor, or of the configuration.
func TestTasksGoToTheirPlatform(t *testing.T) {
	for name, c := range map[string]struct {
		platforms []string
		none      string
	}{"the first executor's": {nil, native}, "the configuration's": {[]string{"plan9/mips", wasm}, wasm}} {
		t.Run(name, func(t *testing.T) {
			a, b := mixed()
			seen := func(s *scripted) {
				run := s.run
				s.run = func(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
					if err := spec.CheckPlatform(s.can.Platforms[0]); err != nil || len(spec.Platforms) == 0 {
						t.Errorf("a task for %q came to %q", spec.Platforms, s.can.Platforms)
					}
					return run(ctx, spec)
				}
			}
			seen(a)
			seen(b)
			p := newPool(t, slow, opener{"a": each(a), "b": each(b)}, func(cfg *Config) { cfg.Platforms = c.platforms })
			for range 3 { // both in turn, if either were chosen
				ran(t, p, on(), c.none)
				ran(t, p, on(wasm), wasm)
				ran(t, p, on(native), native)
				ran(t, p, on(native, wasm), native)
				ran(t, p, on(wasm, native), wasm)
				ran(t, p, on("plan9/mips", native), native)
			}
			_, err := p.Execute(t.Context(), on("plan9/mips"))
			if x := executor.AsError(err); x.Kind != executor.Unsupported || x.Field != "platforms" || !strings.Contains(x.Text, native+", "+wasm) {
				t.Errorf("for none that is there: %v", err)
			}
		})
	}
}

// TestTasksGoToAnotherPlatformIfTheyMay: where none of the first can run it, for what it asks or for what becomes of it, and then only.
func TestTasksGoToAnotherPlatformIfTheyMay(t *testing.T) {
	a, b := mixed()
	b.can.Limits = []string{"pids_max"}
	p := newPool(t, slow, opener{"a": each(a), "b": each(b)})
	s := on(native, wasm)
	s.Limits.PidsMax = 5
	ran(t, p, s, wasm)
	a.run = func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
		return nil, executor.Errorf(executor.Unsupported, "not here")
	}
	ran(t, p, on(native, wasm), wasm)
	for _, s := range []*executor.TaskSpec{on(), on(native)} {
		if _, err := p.Execute(t.Context(), s); executor.KindOf(err) != executor.Unsupported || err.Error() != "not here" {
			t.Errorf("for %q: %v", s.Platforms, err)
		}
	}
}

// TestTasksLeaveAPlatformThatFails: those that wait for a place go to the next of their platforms once no executor of the first is left,
// and not because it is busy.
func TestTasksLeaveAPlatformThatFails(t *testing.T) {
	for _, turns := range []bool{false, true} {
		_, b := mixed()
		g := newGate()
		a := fresh(2, g.run)
		if turns {
			a = turner(2, g.run)
		}
		var state sick
		a.status = state.status
		var opened atomic.Int32
		p := newPool(t, quick, opener{"b": each(b), "a": func() (executor.Executor, error) {
			if opened.Add(1) == 1 {
				return a, nil
			}
			return nil, errors.New("it stays broken")
		}})
		first := sends(t, p, t.Context(), named("1", native))
		second := sends(t, p, t.Context(), named("2", native))
		<-g.started
		<-g.started
		may, mayNot, none := sends(t, p, t.Context(), on(native, wasm)), sends(t, p, t.Context(), on(native)), sends(t, p, t.Context(), on())
		select {
		case got := <-may:
			t.Errorf("it did not wait: %+v", got)
		default:
		}
		state.set(errors.New("it broke"))
		if got := <-may; got.err != nil || string(got.out.Stdout.Inline) != wasm {
			t.Errorf("turns %v: what may run elsewhere: %+v", turns, got)
		}
		for _, c := range []<-chan answer{mayNot, none} {
			if got := <-c; executor.KindOf(got.err) != executor.Unavailable {
				t.Errorf("turns %v: what may not: %+v, %v", turns, got.out, got.err)
			}
		}
		<-first
		<-second
		ran(t, p, on(native, wasm), wasm)
	}
}

func named(name, platform string) *executor.TaskSpec {
	s := spec(name)
	s.Platforms = []string{platform}
	return s
}

// TestAuto: it is a local executor where that can be opened, and a wasm one where the machine cannot have it, and then only.
func TestAuto(t *testing.T) {
	testutil.CheckLeaks(t)
	broken := errors.New("the disk is full")
	cannot := executor.Errorf(executor.Unsupported, "no sandboxes here")
	for name, c := range map[string]struct {
		local, wasm error
		want        string
	}{
		"local": {nil, nil, native}, "neither": {cannot, broken, ""}, "a fault": {broken, nil, ""}, "wasm": {cannot, nil, wasm},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := mixed()
			p, err := New(t.Context(), Config{Executors: []ExecutorConfig{{Name: "x", Backend: Auto}}, Open: func(_ context.Context, e ExecutorConfig) (executor.Executor, error) {
				switch e.Backend {
				case Local:
					return a, c.local
				case Wasm:
					return b, c.wasm
				}
				t.Errorf("backend %q was opened", e.Backend)
				return nil, broken
			}})
			if c.want == "" {
				if !errors.Is(err, broken) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close(context.Background())
			ran(t, p, on(), c.want)
			if s := p.AllStatus(); len(s[0].Platforms) != 1 || s[0].Platforms[0] != c.want {
				t.Errorf("%+v", s)
			}
		})
	}
}
