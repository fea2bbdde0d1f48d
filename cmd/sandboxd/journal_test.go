package main

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/sirupsen/logrus"
)

func TestJournalEntries(t *testing.T) {
	var (
		message  string
		priority journal.Priority
		fields   map[string]string
		fails    error
	)
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.DebugLevel)
	fallback := newWatched()
	l.AddHook(journalHook{fallback: fallback, send: func(m string, p journal.Priority, f map[string]string) error {
		message, priority, fields = m, p, f
		return fails
	}})
	l.WithFields(logrus.Fields{"task": "a b\nPRIORITY=0", "exit": 3, "odd-näme": true, strings.Repeat("x", 100): 1}).WithError(errors.New("broken")).Warn("task done")
	if !strings.HasPrefix(message, `task done error=broken exit=3 `) || !strings.Contains(message, `task="a b\nPRIORITY=0"`) || strings.Contains(message, "\n") {
		t.Errorf("message %q", message)
	}
	for k, want := range map[string]string{
		"SANDBOXD_TASK": "a b\nPRIORITY=0", "SANDBOXD_EXIT": "3", "SANDBOXD_ODD_N_ME": "true", "SANDBOXD_ERROR": "broken",
		"SANDBOXD_" + strings.Repeat("X", 55): "1", "SYSLOG_IDENTIFIER": "sandboxd",
	} {
		if fields[k] != want {
			t.Errorf("%s is %q, want %q", k, fields[k], want)
		}
	}
	if len(fields) != 6 || priority != journal.PriWarning {
		t.Errorf("priority %d, %q", priority, fields)
	}
	for level, want := range map[logrus.Level]journal.Priority{logrus.DebugLevel: journal.PriDebug, logrus.InfoLevel: journal.PriInfo, logrus.ErrorLevel: journal.PriErr} {
		if l.Log(level, "x"); priority != want {
			t.Errorf("%v has priority %d, want %d", level, priority, want)
		}
	}
	if fallback.String() != "" {
		t.Errorf("also written elsewhere: %s", fallback)
	}
	fails = errors.New("no journal")
	l.WithField("task", "n").Info("task done")
	if s := fallback.String(); !strings.Contains(s, `"task":"n"`) || !strings.Contains(s, "no journal") {
		t.Errorf("what the journal did not take is %q", s)
	}
}
