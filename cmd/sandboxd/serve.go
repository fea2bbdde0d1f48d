package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sandboxd/sandboxd/pool"
)

// cleanupTime bounds the killing and unmaking of tasks that outlasted the grace.
const cleanupTime = 30 * time.Second

func (e *env) serveCommand() *cobra.Command {
	var (
		file    string
		backend string
		over    config
		check   bool
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Be the daemon: run tasks for clients on a Unix socket",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load := func() (config, error) {
				c, err := readConfig(file, e.configFile)
				if err != nil {
					return c, err
				}
				if cmd.Flags().Changed("backend") {
					c.Backend = pool.Backend(backend)
				}
				for _, f := range []struct {
					name     string
					to, from *string
				}{
					{"socket", &c.Socket, &over.Socket}, {"state-dir", &c.StateDir, &over.StateDir}, {"cache-dir", &c.CacheDir, &over.CacheDir},
				} {
					if cmd.Flags().Changed(f.name) {
						*f.to = *f.from
					}
				}
				return c, c.validate()
			}
			c, err := load()
			if err != nil {
				return err
			}
			if check {
				_, err := fmt.Fprintln(e.stdout, "ok")
				return err
			}
			return e.serve(cmd.Context(), c, load)
		},
	}
	fs, d := cmd.Flags(), defaultConfig()
	fs.StringVar(&over.Socket, "socket", d.Socket, "where to listen")
	fs.StringVar(&backend, "backend", string(d.Backend), "what runs the tasks: local (sandboxes, as root on Linux), wasm (WebAssembly), or auto: local where it can be had, else wasm")
	fs.StringVar(&over.StateDir, "state-dir", d.StateDir, "for what lives as long as a task")
	fs.StringVar(&over.CacheDir, "cache-dir", d.CacheDir, "for results and their blobs")
	fs.StringVar(&file, "config", "", "TOML file (default "+e.configFile+", if it exists); flags go before it")
	completeValues(cmd, map[string][]string{"backend": {string(pool.Local), string(pool.Wasm), string(pool.Auto)}})
	fs.BoolVar(&check, "check-config", false, "read the configuration, print ok or what is wrong, and exit")
	return cmd
}

// logger sets up logrus's standard logger, to which libcontainer logs as well,
// and returns it.
func (e *env) logger(level logrus.Level) *logrus.Logger {
	l := logrus.StandardLogger()
	l.ReplaceHooks(logrus.LevelHooks{})
	l.SetOutput(e.stderr)
	l.SetLevel(level)
	l.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	if isTerminal(e.stderr) {
		l.SetFormatter(&logrus.TextFormatter{FullTimestamp: true})
	}
	return l
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// serve is the daemon's life. The socket is claimed before anything is opened,
// since opening sweeps leftovers, and those of a living daemon are its tasks;
// it is listened on only once all is ready, or by whoever started the daemon. load
// reads the configuration anew.
func (e *env) serve(ctx context.Context, c config, load func() (config, error)) (err error) {
	level, err := logrus.ParseLevel(c.LogLevel)
	if err != nil {
		return err
	}
	log := e.logger(level)
	super, err := e.supervisor()
	if err != nil {
		return err
	}
	if super.journal {
		logToJournal(log)
	}
	claim, err := claimSocket(c.Socket, super.sockets)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, claim.release()) }()
	h, err := e.parts.openHost(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeWithin(cleanupTime, h.Close)) }()
	l, err := claim.listen(log)
	if err != nil {
		return err
	}
	srv := e.parts.newServer(logged{host: h, log: log}, log)
	done := make(chan error, 1)
	go func() {
		defer close(done)
		done <- srv.Serve(l)
	}()
	log.WithFields(logrus.Fields{"socket": claim.path, "version": buildVersion(), "max_parallel": c.MaxParallel}).Info("ready")
	super.ready(log)
	stop, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		super.watch(h, log, stop)
	}()
	defer func() { close(stop); <-watched }()
	err = e.untilStopped(ctx, done, log, func() {
		super.reloading(log)
		c = reload(c, load, h, log)
		super.ready(log)
	})
	if err != nil {
		return fmt.Errorf("serve %s: %w", claim.path, err)
	}
	grace := c.ShutdownGrace.Duration
	super.stopping(log, grace+2*cleanupTime)
	h.Refuse() // who waits would wait for the grace of others
	err = e.shutdown(srv, grace)
	_ = l.Close() // the server did, unless it was stopped before it began
	<-done
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// untilStopped returns once the daemon is told to stop, or with the error that ended it. It
// calls reload for each SIGHUP.
func (e *env) untilStopped(ctx context.Context, served <-chan error, log logrus.FieldLogger, reload func()) error {
	for {
		select {
		case err := <-served:
			if err == nil {
				log.Info("stopped by a client")
			}
			return err
		case <-ctx.Done():
			return nil
		case sig := <-e.signals:
			if sig != syscall.SIGHUP {
				log.WithField("signal", sig).Info("stopping")
				return nil
			}
			reload()
		}
	}
}

// shutdown lets tasks end within grace; a second signal to end cuts it short.
func (e *env) shutdown(srv server, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case sig := <-e.signals:
				if sig != syscall.SIGHUP {
					cancel()
					return
				}
			case <-over:
				return
			}
		}
	}()
	err := srv.Shutdown(ctx)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil // the grace was used up, and the tasks were canceled
	}
	return err
}

func closeWithin(d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return f(ctx)
}
