package local

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// many runs tasks at once that are the same.
type many struct {
	t       *testing.T
	e       *Executor
	started chan struct{} // closed when the first has written something
	let     chan struct{} // to be closed for it to go on
	first   sync.Once
	all     sync.WaitGroup
}

func manyOf(t *testing.T, e *Executor) *many {
	m := &many{t: t, e: e, started: make(chan struct{}), let: make(chan struct{})}
	t.Cleanup(m.all.Wait)
	return m
}

// told is what came of one of them.
type told struct {
	out    *executor.TaskOutput
	err    error
	stdout strings.Builder
}

// runs has a task executed. Of the first, the event of its output takes until let is closed.
func (m *many) runs(ctx context.Context, spec *executor.TaskSpec) *told {
	r := &told{}
	ctx = executor.WithEvents(ctx, func(ev executor.TaskEvent) {
		if ev.Kind == executor.EventStdout {
			m.first.Do(func() { close(m.started); <-m.let })
			r.stdout.Write(ev.Data)
		}
	})
	m.all.Go(func() {
		r.out, r.err = m.e.Execute(ctx, spec)
		m.first.Do(func() { close(m.started) }) // it never wrote anything
	})
	return r
}

// follow waits until so many wait for the one that runs.
func (m *many) follow(n int) {
	m.t.Helper()
	waiting := m.e.flight.Waiting
	for end := time.Now().Add(30 * time.Second); waiting() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("%d wait; want %d", waiting(), n)
		}
	}
}

// once is a script that tells one run of it from another.
const once = "head -c 16 /dev/urandom | md5sum; "

// TestFollowersHaveTheSuccess: each the streams, and the outputs in its own tree.
func TestFollowersHaveTheSuccess(t *testing.T) {
	e := newExecutor(t)
	for _, more := range []string{"true", "head -c 300000 /dev/zero | tr '\\0' x"} {
		m := manyOf(t, e)
		spec := func() *executor.TaskSpec {
			return &executor.TaskSpec{Script: once + "echo out >o; " + more, Outputs: []string{"o"}, Workdir: openDir(t)}
		}
		all := []*told{m.runs(t.Context(), spec())}
		<-m.started
		specs := []*executor.TaskSpec{spec(), spec(), spec()}
		for _, s := range specs {
			all = append(all, m.runs(t.Context(), s))
		}
		m.follow(3)
		close(m.let)
		m.all.Wait()
		for i, r := range all {
			must(t, r.err)
			if !r.out.Success() || r.out.Cached != (i > 0) || r.out.Signature != all[0].out.Signature || string(r.out.Stdout.Inline) != string(all[0].out.Stdout.Inline) {
				t.Errorf("%d: %+v", i, r.out)
			}
			if r.stdout.Len() == 0 || r.stdout.String() != all[0].stdout.String() {
				t.Errorf("%d was told of %d bytes; the first of %d", i, r.stdout.Len(), all[0].stdout.Len())
			}
		}
		for _, s := range specs {
			if got := read(t, filepath.Join(s.Workdir, "o")); got != "out\n" {
				t.Errorf("the output is %q", got)
			}
		}
	}
}

// TestFollowersHaveTheFailure where they are granted alike; else they run themselves.
func TestFollowersHaveTheFailure(t *testing.T) {
	e := newExecutor(t)
	dir := openDir(t)
	must(t, os.Chmod(dir, 0o755))
	write(t, dir, map[string]string{"f": "x"})
	failing := func(change ...func(*executor.TaskSpec)) *executor.TaskSpec {
		s := &executor.TaskSpec{Script: once + "exit 3", Workdir: dir, WorkdirMode: executor.WorkdirReadonly}
		for _, f := range change {
			f(s)
		}
		return s
	}
	other, reordered := alice, alice
	other.Groups = nil
	reordered.Groups = []uint32{4100, 4100}
	otherGID := alice
	otherGID.GID = 4100
	for name, c := range map[string]struct {
		caller executor.Caller
		spec   *executor.TaskSpec
		shares bool
	}{
		"same":          {alice, failing(), true},
		"same groups":   {reordered, failing(), true},
		"other name":    {alice, failing(func(s *executor.TaskSpec) { s.Name = "other" }), true},
		"said defaults": {alice, failing(func(s *executor.TaskSpec) { s.Timeout = executor.DefaultTimeout }), true},
		"other timeout": {alice, failing(func(s *executor.TaskSpec) { s.Timeout = time.Minute }), false},
		"other limits":  {alice, failing(func(s *executor.TaskSpec) { s.Limits.MemoryBytes = 128 << 20 }), false},
		"other groups":  {other, failing(), false},
		"other gid":     {otherGID, failing(), false},
		"other user":    {bob, failing(), false},
		"refresh":       {alice, failing(func(s *executor.TaskSpec) { s.Cache = executor.CacheRefresh }), false},
		"without cache": {alice, failing(func(s *executor.TaskSpec) { s.Cache = executor.CacheOff }), false},
		"other script":  {alice, failing(func(s *executor.TaskSpec) { s.Script += "0" }), false},
		"other stdin":   {alice, failing(func(s *executor.TaskSpec) { s.Stdin = []byte("x") }), false},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			m := manyOf(t, e)
			first := m.runs(by(t, alice), failing())
			<-m.started
			same := m.runs(by(t, alice), failing())
			m.follow(1)
			second := m.runs(by(t, c.caller), c.spec)
			if c.spec.Cache != executor.CacheOff && c.caller.UID == alice.UID && c.spec.Stdin == nil && c.spec.Script == failing().Script {
				m.follow(2)
			}
			close(m.let)
			m.all.Wait()
			for _, r := range []*told{first, same, second} {
				must(t, r.err)
				if r.out.ExitCode != 3 && r.out.ExitCode != 30 || r.out.Cached || r.stdout.String() != string(r.out.Stdout.Inline) {
					t.Errorf("%+v, told %q", r.out, r.stdout.String())
				}
			}
			if same.stdout.String() != first.stdout.String() {
				t.Error("one that is the same ran itself")
			}
			if shared := second.stdout.String() == first.stdout.String(); shared != c.shares {
				t.Errorf("shared: %v", shared)
			}
		})
	}
}

// TestFollowersOfAChange: what was read is not what was hashed, so they run themselves.
func TestFollowersOfAChange(t *testing.T) {
	e := newExecutor(t)
	dir := openDir(t)
	write(t, dir, map[string]string{"f": "x"})
	spec := &executor.TaskSpec{Script: once + "exit 3", Workdir: dir}
	m := manyOf(t, e)
	first := m.runs(t.Context(), spec)
	<-m.started
	second := m.runs(t.Context(), spec)
	m.follow(1)
	write(t, dir, map[string]string{"g": "x"})
	close(m.let)
	m.all.Wait()
	must(t, first.err)
	must(t, second.err)
	if first.stdout.String() == second.stdout.String() {
		t.Error("it had the result of another's files")
	}
}

// TestFollowersOutliveTheFirst: where the one that runs is canceled, another of its callers runs it.
func TestFollowersOutliveTheFirst(t *testing.T) {
	e := newExecutor(t)
	m := manyOf(t, e)
	spec := &executor.TaskSpec{Script: once + "sleep 1000"}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	first := m.runs(ctx, spec)
	<-m.started
	ran := make(chan struct{})
	var told sync.Once
	ctx2, cancel2 := context.WithCancel(t.Context())
	defer cancel2()
	ctx2 = executor.WithEvents(ctx2, func(ev executor.TaskEvent) {
		if ev.Kind == executor.EventStdout {
			told.Do(func() { close(ran) })
		}
	})
	var second answer
	m.all.Go(func() { second.out, second.err = e.Execute(ctx2, spec) })
	m.follow(1)
	close(m.let)
	cancel()
	<-ran // which the end of the first is not the end of
	cancel2()
	m.all.Wait()
	for i, r := range []answer{{first.out, first.err}, second} {
		if r.err != nil || r.out.Cause != executor.CauseCanceled || len(r.out.Stdout.Inline) == 0 {
			t.Errorf("%d: %+v, %v", i, r.out, r.err)
		}
	}
	if string(first.out.Stdout.Inline) == string(second.out.Stdout.Inline) {
		t.Error("the second did not run itself")
	}
}

type answer struct {
	out *executor.TaskOutput
	err error
}

// TestFollowerThatLeaves: it is answered at once, and is the end of nobody else.
func TestFollowerThatLeaves(t *testing.T) {
	e := newExecutor(t)
	m := manyOf(t, e)
	spec := &executor.TaskSpec{Script: once + "exit 3"}
	first := m.runs(t.Context(), spec)
	<-m.started
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := e.Execute(ctx, spec)
		left <- err
	}()
	m.follow(1)
	third := m.runs(t.Context(), spec)
	m.follow(2)
	cancel()
	if err := <-left; executor.KindOf(err) != executor.Canceled {
		t.Error(err)
	}
	close(m.let)
	m.all.Wait()
	must(t, first.err)
	must(t, third.err)
	if first.out.ExitCode != 3 || third.stdout.String() != first.stdout.String() {
		t.Errorf("%+v, %+v", first.out, third.out)
	}
}
