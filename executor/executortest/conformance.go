package executortest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// Conformance is what every Executor must do. open makes a fresh one, with the
// means to run sh and the usual small tools; the suite closes it.
func Conformance(t *testing.T, open func(t *testing.T) executor.Executor) {
	for _, c := range []struct {
		name string
		run  func(*suite)
	}{
		{"ExitCodes", (*suite).exitCodes},
		{"StreamsAreExact", (*suite).streams},
		{"SpecArrives", (*suite).specArrives},
		{"Platforms", (*suite).platforms},
		{"EventsAreTheStreams", (*suite).eventsAreTheStreams},
		{"Outputs", (*suite).outputs},
		{"CancelEndsTheTask", (*suite).cancel},
		{"TimeoutEndsTheTask", (*suite).timeout},
		{"InvalidSpecs", (*suite).invalid},
		{"ManyAtOnce", (*suite).many},
		{"StatusAddsUp", (*suite).status},
		{"Capabilities", (*suite).capabilities},
		{"CloseLetsTasksEnd", (*suite).closeWaits},
		{"CloseAnswersAll", (*suite).closeAnswers},
		{"ClosedIsUnavailable", (*suite).closed},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := open(t)
			t.Cleanup(func() {
				if err := e.Close(ended()); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			c.run(&suite{t, e})
		})
	}
}

type suite struct {
	*testing.T
	e executor.Executor
}

// ended is a context for a Close that gives no grace.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func sh(script string) *executor.TaskSpec {
	return &executor.TaskSpec{Name: "conformance", Script: script, Cache: executor.CacheOff}
}

// run is Execute of a task that must give an output.
func (s *suite) run(ctx context.Context, spec *executor.TaskSpec) *executor.TaskOutput {
	s.Helper()
	out, err := s.e.Execute(ctx, spec)
	if err != nil || out == nil {
		s.Fatalf("%.60q: output %v, error %v; want an output", spec.Script, out, err)
	}
	return out
}

func (s *suite) exitCodes() {
	for _, code := range []int{0, 1, 77, 255} {
		out := s.run(s.Context(), sh(fmt.Sprintf("exit %d", code)))
		if out.ExitCode != code || out.Cause != executor.CauseExited || out.Signal != 0 || out.Success() != (code == 0) {
			s.Errorf("exit %d: code %d, cause %s, signal %d, success %v", code, out.ExitCode, out.Cause, out.Signal, out.Success())
		}
	}
	if out := s.run(s.Context(), sh("false\necho on")); out.ExitCode != 1 || len(out.Stdout.Inline) != 0 {
		s.Errorf("the script went on after a command that failed: code %d, stdout %q", out.ExitCode, out.Stdout.Inline)
	}
}

func (s *suite) streams() {
	out := s.run(s.Context(), sh(`printf 'a\000\377\200b\r\n\303('; printf 'err\001' >&2`))
	if want := "a\x00\xff\x80b\r\n\xc3("; string(out.Stdout.Inline) != want || out.Stdout.Truncated {
		s.Errorf("stdout is %q, truncated %v; want %q", out.Stdout.Inline, out.Stdout.Truncated, want)
	}
	if want := "err\x01"; string(out.Stderr.Inline) != want {
		s.Errorf("stderr is %q; want %q", out.Stderr.Inline, want)
	}
	const lines = 20_000
	whole := strings.Repeat("0123456789\n", lines)
	out = s.run(s.Context(), sh(fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo 0123456789; i=$((i+1)); done", lines)))
	if string(out.Stdout.Inline) != whole[:executor.InlineBytes] || !out.Stdout.Truncated {
		s.Errorf("of a long stream %d bytes came, truncated %v; want the first %d", len(out.Stdout.Inline), out.Stdout.Truncated, executor.InlineBytes)
	}
	if d := out.Stdout.Digest; d != (executor.Digest{}) && d != digest([]byte(whole)) {
		s.Errorf("its digest is %v; want %v", d, digest([]byte(whole)))
	}
}

func digest(b []byte) executor.Digest {
	sum := sha256.Sum256(b)
	return executor.Digest{Hash: hex.EncodeToString(sum[:]), Size: int64(len(b))}
}

func (s *suite) specArrives() {
	spec := &executor.TaskSpec{
		Argv:  []string{"sh", "-c", `printf '%s|' "$@" "$CONF" "$PATH_LIKE"; cat`, "sh", "one two", "", "\xff'\n"},
		Env:   map[string]string{"CONF": "v=w", "PATH_LIKE": "\xfe x"},
		Stdin: []byte("in\x00\xff"),
		Cache: executor.CacheOff,
	}
	out := s.run(s.Context(), spec)
	if want := "one two||\xff'\n|v=w|\xfe x|in\x00\xff"; string(out.Stdout.Inline) != want {
		s.Errorf("the task saw %q; want %q; stderr %q", out.Stdout.Inline, want, out.Stderr.Inline)
	}
}

// platforms: a task runs on a platform that it names, which the events and the answer tell, and on no other.
func (s *suite) platforms() {
	c, err := s.e.Capabilities(s.Context())
	if err != nil || len(c.Platforms) == 0 {
		s.Fatalf("platforms %q, %v; want one", c.Platforms, err)
	}
	const none = "plan9/mips"
	for _, p := range c.Platforms {
		spec := sh("true")
		spec.Platforms = []string{none, p}
		var started string
		ctx := executor.WithEvents(s.Context(), func(e executor.TaskEvent) {
			if e.Kind == executor.EventStarted {
				started = e.Platform
			}
		})
		if out := s.run(ctx, spec); out.Platform != p || started != p {
			s.Errorf("for %s: it was started on %q, and ran on %q", p, started, out.Platform)
		}
	}
	if out := s.run(s.Context(), sh("true")); !slices.Contains(c.Platforms, out.Platform) {
		s.Errorf("for no platform: it ran on %q; want one of %q", out.Platform, c.Platforms)
	}
	spec := sh("true")
	spec.Platforms = []string{none}
	if out, err := s.e.Execute(s.Context(), spec); executor.KindOf(err) != executor.Unsupported || executor.AsError(err).Field != "platforms" || !strings.Contains(err.Error(), c.Platforms[0]) {
		s.Errorf("for %s: output %v, error %v; want an unsupported error that names the platforms, and those there are", none, out, err)
	}
}

func (s *suite) eventsAreTheStreams() {
	var kinds []executor.EventKind
	var stdout, stderr []byte
	var busy sync.Mutex
	ctx := executor.WithEvents(s.Context(), func(e executor.TaskEvent) {
		if !busy.TryLock() {
			s.Errorf("two events at a time")
			return
		}
		defer busy.Unlock()
		if len(e.Data) > executor.MaxEventBytes {
			s.Errorf("an event of %d bytes", len(e.Data))
		}
		switch e.Kind {
		case executor.EventStdout:
			stdout = append(stdout, e.Data...)
		case executor.EventStderr:
			stderr = append(stderr, e.Data...)
		default:
			kinds = append(kinds, e.Kind)
			if len(stdout)+len(stderr) > 0 {
				s.Errorf("%s after output", e.Kind)
			}
		}
	})
	out := s.run(ctx, sh(`i=0; while [ $i -lt 1000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done`))
	if !slices.Contains(kinds, executor.EventStarted) {
		s.Errorf("events %v; want started", kinds)
	}
	if !bytes.Equal(stdout, out.Stdout.Inline) || !bytes.Equal(stderr, out.Stderr.Inline) {
		s.Errorf("events hold %d and %d bytes, the output %d and %d; want the same",
			len(stdout), len(stderr), len(out.Stdout.Inline), len(out.Stderr.Inline))
	}
}

func (s *suite) outputs() {
	dir := s.TempDir()
	spec := sh("mkdir d; printf hello >d/f; chmod 640 d/f; ln -s f d/l; printf x >undeclared")
	spec.Workdir, spec.Outputs = dir, []string{"d"}
	out := s.run(s.Context(), spec)
	var got []string
	for _, f := range out.OutputFiles {
		got = append(got, fmt.Sprintf("%s %s %s %s", f.Path, f.Kind, f.Digest, f.Target))
	}
	want := []string{"d dir  ", "d/f file " + digest([]byte("hello")).String() + " ", "d/l symlink  f"}
	if !slices.Equal(got, want) {
		s.Errorf("outputs %q; want %q; stderr %q", got, want, out.Stderr.Inline)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "d/f")); err != nil || string(b) != "hello" {
		s.Errorf("the output in the workdir: %q, %v", b, err)
	}
	spec = sh("printf x >there")
	spec.Workdir, spec.Outputs = s.TempDir(), []string{"gone", "there"}
	out = s.run(s.Context(), spec)
	if !slices.Equal(out.MissingOutputs, []string{"gone"}) || out.Success() || len(out.OutputFiles) != 0 {
		s.Errorf("missing %q, success %v, outputs %v; want gone missing, and nothing else", out.MissingOutputs, out.Success(), out.OutputFiles)
	}
}

// blocked is a task that tells when it runs, and ends only when it is killed; so
// do its children.
const blocked = "trap '' TERM; sleep 1000 & echo ready; sleep 1000; wait"

// onReady calls f once the task has written its first output.
func onReady(ctx context.Context, f func()) context.Context {
	var once sync.Once
	return executor.WithEvents(ctx, func(e executor.TaskEvent) {
		if e.Kind == executor.EventStdout {
			once.Do(f)
		}
	})
}

func (s *suite) cancel() {
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	spec, gone := s.watched(blocked)
	out := s.run(onReady(ctx, cancel), spec)
	gone()
	if out.Cause != executor.CauseCanceled || out.Success() || string(out.Stdout.Inline) != "ready\n" {
		s.Errorf("cause %s, stdout %q; want canceled, with what was written", out.Cause, out.Stdout.Inline)
	}
	if _, err := s.e.Execute(ctx, sh("true")); executor.KindOf(err) != executor.Canceled {
		s.Errorf("a task whose context had ended: %v; want a canceled error", err)
	}
}

func (s *suite) timeout() {
	spec, gone := s.watched(blocked)
	spec.Timeout = 300 * time.Millisecond
	out := s.run(s.Context(), spec)
	gone()
	if out.Cause != executor.CauseTimedOut || out.Success() {
		s.Errorf("cause %s; want timed out", out.Cause)
	}
}

func (s *suite) invalid() {
	for field, spec := range map[string]*executor.TaskSpec{
		"spec":                nil,
		"script":              {},
		"argv":                {Argv: []string{""}},
		"env":                 {Script: "true", Env: map[string]string{"A=B": ""}},
		"outputs":             {Script: "true", Outputs: []string{"../up"}},
		"limits.memory_bytes": {Script: "true", Limits: executor.ResourceLimits{MemoryBytes: 1}},
		"workdir":             {Script: "true", Workdir: "relative"},
		"timeout":             {Script: "true", Timeout: -1},
	} {
		var e *executor.Error
		if out, err := s.e.Execute(s.Context(), spec); out != nil || !errors.As(err, &e) || e.Kind != executor.Invalid || e.Field != field {
			s.Errorf("%s: output %v, error %v; want an invalid error that names it", field, out, err)
		}
	}
}

func (s *suite) many() {
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			var streamed []byte
			ctx := executor.WithEvents(s.Context(), func(e executor.TaskEvent) {
				if e.Kind == executor.EventStdout {
					streamed = append(streamed, e.Data...)
				}
			})
			out, err := s.e.Execute(ctx, sh(fmt.Sprintf("echo task %d; exit %d", i, i)))
			want := fmt.Sprintf("task %d\n", i)
			if err != nil || out.ExitCode != i || string(out.Stdout.Inline) != want || string(streamed) != want {
				s.Errorf("task %d: output %+v, events %q, error %v", i, out, streamed, err)
			}
		})
	}
	wg.Wait()
}

func (s *suite) now() executor.Status {
	s.Helper()
	st, err := s.e.Status(s.Context())
	if err != nil {
		s.Fatalf("status: %v", err)
	}
	if st.Executed != st.Successful+st.Failed || st.CacheHits > st.Successful {
		s.Errorf("status does not add up: %+v", st)
	}
	return st
}

func (s *suite) status() {
	before := s.now()
	if !before.Healthy || before.Uptime <= 0 {
		s.Errorf("status of a fresh executor: %+v", before)
	}
	for _, script := range []string{"true", "exit 3", "true"} {
		s.run(s.Context(), sh(script))
	}
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	ready := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = s.e.Execute(onReady(ctx, func() { close(ready) }), sh(blocked)) })
	<-ready
	if st := s.now(); st.Active-before.Active != 1 {
		s.Errorf("active is %d with one task running; was %d", st.Active, before.Active)
	}
	cancel()
	wg.Wait()
	st := s.now()
	if ok, bad := st.Successful-before.Successful, st.Failed-before.Failed; ok != 2 || bad != 2 || st.Active != before.Active {
		s.Errorf("after 2 successes and 2 failures: %d and %d more, %d active", ok, bad, st.Active)
	}
}

func (s *suite) capabilities() {
	c, err := s.e.Capabilities(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	if c.MaxParallel < 1 || c.Version == "" || len(c.Networks) == 0 || len(c.Platforms) == 0 {
		s.Errorf("capabilities lack something: %+v", c)
	}
	for _, p := range c.Platforms {
		if os, arch, ok := strings.Cut(p, "/"); !ok || os == "" || arch == "" {
			s.Errorf("platform %q is not GOOS/GOARCH", p)
		}
	}
	for _, n := range c.Networks {
		if !slices.Contains([]string{"isolated", "loopback", "controlled", "full"}, n) {
			s.Errorf("network %q is no policy", n)
		}
	}
	if !c.Sandboxing && len(c.Missing) == 0 {
		s.Errorf("no sandboxing, and nothing missing")
	}
}

// background runs a task, returns when it has written, and gives what it came to.
func (s *suite) background(script string) func() (*executor.TaskOutput, error) {
	s.Helper()
	var out *executor.TaskOutput
	var err error
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		out, err = s.e.Execute(onReady(s.Context(), func() { close(ready) }), sh(script))
	}()
	select {
	case <-ready:
	case <-done:
		s.Fatalf("%q: output %v, error %v before its first word", script, out, err)
	}
	return func() (*executor.TaskOutput, error) {
		<-done
		return out, err
	}
}

func (s *suite) closeWaits() {
	result := s.background("echo ready; sleep 0.3; echo done")
	if err := s.e.Close(s.Context()); err != nil {
		s.Errorf("close: %v", err)
	}
	if out, err := result(); err != nil || !out.Success() || string(out.Stdout.Inline) != "ready\ndone\n" {
		s.Errorf("the task that Close had time for: output %+v, error %v", out, err)
	}
}

func (s *suite) closeAnswers() {
	c, err := s.e.Capabilities(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	var running []func() (*executor.TaskOutput, error)
	for range min(4, c.MaxParallel) {
		running = append(running, s.background(blocked))
	}
	if err := s.e.Close(ended()); err != nil {
		s.Errorf("close: %v", err)
	}
	for _, result := range running {
		if out, err := result(); err != nil || out.Cause != executor.CauseCanceled {
			s.Errorf("a task that ran when Close came: output %+v, error %v; want canceled", out, err)
		}
	}
}

func (s *suite) closed() {
	for range 2 {
		if err := s.e.Close(s.Context()); err != nil {
			s.Errorf("close: %v", err)
		}
	}
	if out, err := s.e.Execute(s.Context(), sh("true")); executor.KindOf(err) != executor.Unavailable {
		s.Errorf("a task after Close: output %v, error %v; want unavailable", out, err)
	}
	if st, err := s.e.Status(s.Context()); err == nil && st.Healthy {
		s.Errorf("healthy after Close: %+v", st)
	} else if err != nil && executor.KindOf(err) != executor.Unavailable {
		s.Errorf("status after Close: %v", err)
	}
}
