package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/journal"
	"github.com/sirupsen/logrus"
)

// supervisor is what the daemon was started by, such as systemd: what it got from it,
// and what it tells it. The zero value is none.
type supervisor struct {
	// sockets are those that it listens on for the daemon.
	sockets []*os.File
	// watchdog is after how long without a word it ends the daemon; 0 is never.
	watchdog time.Duration
	// journal says that what is written to standard error goes to the journal.
	journal bool
	// send tells it of the daemon's state; nil if nobody listens. See sd_notify(3).
	send func(state string) error
}

// systemSupervisor takes what systemd left in the environment.
func systemSupervisor() (s supervisor, err error) {
	s.sockets = activation.Files(true)
	if s.watchdog, err = systemd.SdWatchdogEnabled(true); err != nil {
		return s, fmt.Errorf("environment: %w", err)
	}
	if s.journal, err = journal.StderrIsJournalStream(); err != nil {
		return s, fmt.Errorf("environment: %w", err)
	}
	if os.Getenv("NOTIFY_SOCKET") != "" {
		s.send = func(state string) error {
			_, err := systemd.SdNotify(false, state)
			return err
		}
	}
	return s, nil
}

// tell is send, of whose failure nobody can be told but by the log.
func (s supervisor) tell(log logrus.FieldLogger, state string) {
	if s.send == nil {
		return
	}
	if err := s.send(state); err != nil {
		log.WithError(err).Error("the service manager cannot be told of the daemon's state")
	}
}

// reloading is told before a reload, and ready after it and after the start.
func (s supervisor) reloading(log logrus.FieldLogger) {
	s.tell(log, systemd.SdNotifyReloading+"\n"+systemd.SdNotifyMonotonicUsec())
}

func (s supervisor) ready(log logrus.FieldLogger) { s.tell(log, systemd.SdNotifyReady) }

// stopping asks for as much time as the daemon may need, since only its configuration
// says how much that is.
func (s supervisor) stopping(log logrus.FieldLogger, most time.Duration) {
	s.tell(log, fmt.Sprintf("%s\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC=%d", systemd.SdNotifyStopping, most.Microseconds()))
}

// watch tells what h does, and that it is healthy, until stop is closed. Where h is not, or
// does not answer, nothing is told, and the supervisor's time runs out.
func (s supervisor) watch(h host, log logrus.FieldLogger, stop <-chan struct{}) {
	every := s.watchdog / 3
	if every == 0 {
		every = 20 * time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for s.send != nil {
		st, err := h.Status(context.Background())
		if err == nil {
			err = h.Healthy()
		}
		if err != nil {
			log.WithError(err).Error("the executor is not healthy, and so the watchdog is not told that it is")
		} else {
			s.tell(log, fmt.Sprintf("%s\nSTATUS=%d tasks running, %d done", systemd.SdNotifyWatchdog, st.Active, st.Executed))
		}
		select {
		case <-tick.C:
		case <-stop:
			return
		}
	}
}
