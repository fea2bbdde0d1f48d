package local

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/sandbox"
)

// stops is why, if at all, we ended a task.
type stops struct {
	*task
	ended chan struct{}

	mu   sync.Mutex
	why  executor.Cause
	text string
	box  *sandbox.Sandbox
}

// claim notes the first reason, and reports whether it is that.
func (s *stops) claim(c executor.Cause, text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != "" {
		return false
	}
	s.why, s.text = c, text
	return true
}

func (s *stops) cause() executor.Cause {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

func (s *stops) evidence() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text
}

// now kills the task. It may come before watch.
func (s *stops) now(c executor.Cause) {
	if !s.claim(c, fmt.Sprintf("standard output or error was longer than %d bytes", s.granted.LogBytes)) {
		return
	}
	s.mu.Lock()
	box := s.box
	s.mu.Unlock()
	if box != nil {
		s.kill(box)
	}
}

// kill kills the task; Close tries again.
func (s *stops) kill(box *sandbox.Sandbox) {
	if err := box.Kill(); err != nil {
		s.log.WithError(err).Error("kill a task")
	}
}

// watch waits for the end of the task, which it ends when ctx does or its time
// is over: by SIGTERM, and after a grace period by SIGKILL. It calls started, which
// may take its time, once the task can be ended.
func (s *stops) watch(ctx context.Context, box *sandbox.Sandbox, started func()) (sandbox.Exit, error) {
	s.mu.Lock()
	s.box = box
	late := s.why != ""
	s.mu.Unlock()
	if late {
		s.kill(box)
	}
	ended := make(chan struct{})
	var end sync.WaitGroup
	end.Go(func() { s.stop(ctx, box, ended) })
	started()
	exit, err := box.Wait(context.Background())
	close(ended)
	end.Wait()
	return exit, err
}

func (s *stops) stop(ctx context.Context, box *sandbox.Sandbox, ended <-chan struct{}) {
	limit := s.granted.Timeout
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ended:
		return
	case <-box.Group().OOM():
		// With a process gone at random the rest is of no use, and may wait for it.
		s.kill(box)
		return
	case <-timer.C:
		s.claim(executor.CauseTimedOut, fmt.Sprintf("still running after %v", limit))
	case <-ctx.Done():
		s.claim(executor.CauseCanceled, "the caller canceled it, or went away, or the executor stopped")
	}
	if err := box.Terminate(); err != nil {
		s.log.WithError(err).Error("end a task")
	}
	timer.Reset(grace)
	select {
	case <-ended:
	case <-box.Group().OOM():
		s.kill(box)
	case <-timer.C:
		s.kill(box)
	}
}
