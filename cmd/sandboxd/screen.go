package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/sandboxd/sandboxd/executor"
)

// statusInterval is how long a task is silent about itself, and then how often
// the status line is drawn anew.
const statusInterval = time.Second

// screen writes a task's output as it comes and, where stderr is a terminal,
// a status line that gives way to it.
type screen struct {
	stdout, stderr io.Writer // of the task; io.Discard with --json
	status         io.Writer // nil for no status line
	notices        io.Writer // io.Discard with --json and --quiet
	name           string
	began          time.Time
	// broken is called when the output cannot be written any more.
	broken func()

	mu     sync.Mutex // guards all below
	state  string
	drawn  bool
	midway bool // the last output did not end its line
	// written counts what events brought, by stream.
	written map[executor.EventKind]int64
	failed  error // the first to befall an output
}

func (e *env) newScreen(how runFlags, name string) *screen {
	s := &screen{
		stdout: e.stdout, stderr: e.stderr, notices: e.stderr, name: name, began: time.Now(), state: "waiting",
		written: map[executor.EventKind]int64{}, broken: func() {},
	}
	if how.json {
		s.stdout, s.stderr = io.Discard, io.Discard
	}
	if how.json || how.quiet {
		s.notices = io.Discard
	}
	if f, ok := e.stderr.(*os.File); ok && !how.quiet && term.IsTerminal(int(f.Fd())) {
		s.status = f
	}
	return s
}

// event is the EventFunc.
func (s *screen) event(ev executor.TaskEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch ev.Kind {
	case executor.EventQueued:
		s.state = "waiting"
	case executor.EventStarted:
		s.state = "running"
	case executor.EventStdout, executor.EventStderr:
		s.written[ev.Kind] += int64(len(ev.Data))
		s.write(ev.Kind, ev.Data)
	case executor.EventNotice:
		s.wipe()
		fmt.Fprintf(s.notices, "sandboxd: %s\n", ev.Text)
	}
}

// write wants mu held.
func (s *screen) write(kind executor.EventKind, b []byte) {
	if s.failed != nil || len(b) == 0 {
		return
	}
	s.wipe()
	w := s.stdout
	if kind == executor.EventStderr {
		w = s.stderr
	}
	s.midway = !bytes.HasSuffix(b, []byte("\n"))
	if _, err := w.Write(b); err != nil {
		s.failed = err
		s.broken()
	}
}

// setState tells at once, where there is a status line.
func (s *screen) setState(state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state
	s.draw()
}

func (s *screen) tick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draw()
}

// draw wants mu held.
func (s *screen) draw() {
	if s.status == nil || s.midway {
		return
	}
	fmt.Fprintf(s.status, "\r\x1b[Ksandboxd: %.40q %s, %v", s.name, s.state, time.Since(s.began).Truncate(time.Second))
	s.drawn = true
}

// wipe wants mu held.
func (s *screen) wipe() {
	if s.drawn {
		fmt.Fprint(s.status, "\r\x1b[K")
		s.drawn = false
	}
}

func (s *screen) erase() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wipe()
}

// rest writes the streams that no event brought, as with a cached result.
func (s *screen) rest(ctx context.Context, b backend, o *executor.TaskOutput) error {
	for _, x := range []struct {
		kind   executor.EventKind
		stream executor.Stream
		to     io.Writer
	}{
		{executor.EventStdout, o.Stdout, s.stdout},
		{executor.EventStderr, o.Stderr, s.stderr},
	} {
		var err error
		switch {
		case s.written[x.kind] > 0:
		case x.stream.Truncated:
			err = b.ReadBlob(ctx, x.stream.Digest, x.to)
		default:
			_, err = x.to.Write(x.stream.Inline)
		}
		if err != nil {
			return fmt.Errorf("the task's %s: %w", x.kind, err)
		}
	}
	return nil
}
