package main

import (
	"context"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor"
)

// logged is a host that logs one line for each task. A task that fails is no
// fault of ours and is told at Info.
type logged struct {
	host
	log logrus.FieldLogger
}

// Execute implements executor.Executor.
func (l logged) Execute(ctx context.Context, spec *executor.TaskSpec) (*executor.TaskOutput, error) {
	start := time.Now()
	o, err := l.host.Execute(ctx, spec)
	f := logrus.Fields{
		"task": spec.Name, "recipe": spec.Recipe, "duration": time.Since(start).String(),
	}
	if c, ok := executor.CallerFrom(ctx); ok {
		f["caller_uid"] = c.UID
		if c.PID != 0 {
			f["caller_pid"] = c.PID
		}
	}
	if err != nil {
		e := l.log.WithFields(f).WithError(err).WithField("kind", executor.KindOf(err))
		if executor.KindOf(err) == executor.Internal {
			e.Error("task not run")
		} else {
			e.Info("task not run")
		}
		return nil, err
	}
	f["exit"], f["cached"], f["cause"], f["platform"] = o.ExitCode, o.Cached, o.Cause, o.Platform
	l.log.WithFields(f).Info("task done")
	return o, nil
}
