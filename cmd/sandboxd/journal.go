package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/sirupsen/logrus"
)

// journalHook sends entries to the journal with each of their fields as one of its own, of
// which the name begins with SANDBOXD_. What it does not take goes to fallback.
type journalHook struct {
	fallback io.Writer
	send     func(message string, priority journal.Priority, fields map[string]string) error
}

// logToJournal has l log there rather than to its output.
func logToJournal(l *logrus.Logger) {
	l.AddHook(journalHook{fallback: l.Out, send: journal.Send})
	l.SetOutput(io.Discard)
}

// Levels implements logrus.Hook.
func (journalHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements logrus.Hook.
func (j journalHook) Fire(e *logrus.Entry) error {
	fields := map[string]string{"SYSLOG_IDENTIFIER": "sandboxd"}
	message := e.Message
	for _, k := range slices.Sorted(maps.Keys(e.Data)) {
		v := fmt.Sprint(e.Data[k])
		fields[journalField(k)] = v
		message += " " + k + "=" + quoted(v) // for who reads without asking for fields
	}
	if err := j.send(message, journalPriority(e.Level), fields); err != nil {
		line, err2 := (&logrus.JSONFormatter{}).Format(e)
		if err2 != nil {
			return err2
		}
		_, err2 = fmt.Fprintf(j.fallback, "%s(the journal: %v)\n", line, err)
		return err2
	}
	return nil
}

// journalField makes a name that the journal takes: capitals, digits and underscores, 64 at most.
func journalField(name string) string {
	up := strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToUpper(name))
	up = "SANDBOXD_" + up
	return up[:min(len(up), 64)]
}

// quoted is s, in quotes where it would not be seen to be one word.
func quoted(s string) string {
	if q := fmt.Sprintf("%q", s); len(q) != len(s)+2 || strings.ContainsAny(s, " =") || s == "" {
		return q
	}
	return s
}

func journalPriority(l logrus.Level) journal.Priority {
	switch l {
	case logrus.PanicLevel, logrus.FatalLevel:
		return journal.PriCrit
	case logrus.ErrorLevel:
		return journal.PriErr
	case logrus.WarnLevel:
		return journal.PriWarning
	case logrus.InfoLevel:
		return journal.PriInfo
	}
	return journal.PriDebug
}
