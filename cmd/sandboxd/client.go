package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/local"
	"github.com/sandboxd/sandboxd/pool"
)

// dialTimeout bounds the way to a daemon's first answer. Where systemd holds the socket, a
// client waits for a daemon that starts, or lets tasks end before it starts again.
const dialTimeout = time.Minute

func addSocketFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "socket", "", "the daemon's socket (default $"+socketEnv+" or "+defaultSocket+")")
}

// socket is where the daemon is, and whether someone said so.
func (e *env) socket(flag string) (path string, named bool) {
	if flag != "" {
		return flag, true
	}
	if s := e.getenv(socketEnv); s != "" {
		return s, true
	}
	return defaultSocket, false
}

// backendFor finds who runs the task: the daemon, or this process.
func (e *env) backendFor(ctx context.Context, how runFlags) (backend, error) {
	switch how.backend {
	case backendWasm:
		return e.openRunWasm(ctx, how)
	case backendAuto:
		return e.openAuto(ctx, how)
	}
	path, named := e.socket(how.socket)
	local := how.local
	if !local && !named && e.root {
		_, err := os.Lstat(path)
		local = errors.Is(err, fs.ErrNotExist)
	}
	switch {
	case local:
		return e.openLocal(ctx, how)
	case how.cacheDir != "" || how.configFile != "":
		return nil, usagef("--cache-dir and --config are for --local and --backend; the daemon at %s has its own", path)
	}
	return e.connect(ctx, path)
}

// openAuto is the daemon, or a sandbox of this process, or else WebAssembly in it, which the caller allows
// and is told of.
func (e *env) openAuto(ctx context.Context, how runFlags) (backend, error) {
	path, named := e.socket(how.socket)
	_, err := os.Lstat(path)
	if named || !e.root || err == nil {
		var b backend
		if b, err = e.connect(ctx, path); err == nil {
			return b, nil
		}
		if k := executor.KindOf(err); k != executor.Unavailable && k != executor.Denied {
			return nil, err
		}
	}
	if e.root {
		var b backend
		if b, err = e.openLocal(ctx, how); err == nil || executor.KindOf(err) != executor.Unsupported {
			return b, err
		}
	}
	if !how.quiet {
		fmt.Fprintf(e.stderr, "sandboxd: the task runs in WebAssembly: %v\n", err)
	}
	return e.openRunWasm(ctx, how)
}

func (e *env) openLocal(ctx context.Context, how runFlags) (backend, error) {
	if !e.root {
		return nil, executor.Errorf(executor.Denied, "--local makes namespaces and cgroups, which needs root; run it as root, or without --local by the daemon")
	}
	c, err := readConfig(how.configFile, e.configFile)
	if err != nil {
		return nil, err
	}
	if how.cacheDir != "" {
		if c.CacheDir, err = filepath.Abs(how.cacheDir); err != nil {
			return nil, err
		}
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	c.Executors, c.Backend, c.Platforms = nil, pool.Local, nil // are the daemon's
	log := e.logger(logrus.WarnLevel)
	// Each has a state directory of its own, beside the daemon's: the first that is free,
	// so that what a killed one left there is found and removed.
	dir := c.StateDir
	c.Warm = 0 // for one task
	for i := range maxLocal {
		c.StateDir = filepath.Join(dir, "local", strconv.Itoa(i))
		h, err := e.parts.openHost(ctx, c, log)
		if err == nil {
			return localBackend{h}, nil
		}
		if !errors.Is(err, local.ErrInUse) {
			return nil, err
		}
	}
	return nil, executor.Errorf(executor.Unavailable, "%d of sandboxd run --local are at work on this machine; wait for one, or start a daemon, which has tasks wait (sandboxd serve)", maxLocal)
}

// maxLocal is how many of run --local there may be at once.
const maxLocal = 64

// connect dials the daemon. What is wrong with the socket is told with the remedy.
func (e *env) connect(ctx context.Context, path string) (backend, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return unlessSignaled(e, func() (backend, error) { return e.dial(ctx, path) })
}

func (e *env) dial(ctx context.Context, path string) (backend, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, dialError(path, err)
	}
	conn.Close()
	b, err := e.parts.dial(ctx, path)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, executor.Errorf(executor.Unavailable, "the daemon at %s does not answer, and may be starting or stopping; see 'systemctl status sandboxd'", path)
	}
	return b, err
}

func dialError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return executor.Errorf(executor.Unavailable, "no daemon answers at %s (%w); start it with 'systemctl start sandboxd' or, as root, "+
			"'sandboxd serve', or name its socket with --socket or $%s", path, errno(err), socketEnv)
	case errors.Is(err, fs.ErrPermission):
		return executor.Errorf(executor.Denied, "no permission on %s (%w); join its group, as a rule with "+
			"'usermod -aG sandboxd USER' as root, and log in again", path, errno(err))
	}
	return executor.Errorf(executor.Unavailable, "dial %s: %w", path, errno(err))
}

// errno drops what the caller says better.
func errno(err error) error {
	var n syscall.Errno
	if errors.As(err, &n) {
		return n
	}
	return err
}

// ask is a command that puts one question to the daemon.
func (e *env) ask(use, short string, question func(ctx context.Context, b backend) (asJSON any, text string, err error)) *cobra.Command {
	var (
		socket string
		asJSON bool
	)
	cmd := &cobra.Command{Use: use, Short: short, Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) (err error) {
		path, _ := e.socket(socket)
		b, err := e.connect(cmd.Context(), path)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closeBackend(b)) }()
		v, text, err := question(cmd.Context(), b)
		if err != nil {
			return err
		}
		if asJSON {
			return writeJSON(e.stdout, v)
		}
		_, err = fmt.Fprint(e.stdout, text)
		return err
	}}
	addSocketFlag(cmd, &socket)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func (e *env) pingCommand() *cobra.Command {
	return e.ask("ping", "Ask the daemon for a sign of life", func(ctx context.Context, b backend) (any, string, error) {
		start := time.Now()
		p, ok := b.(interface{ Ping(context.Context) error })
		if !ok {
			return nil, "", fmt.Errorf("ping: %w", errors.ErrUnsupported)
		}
		if err := p.Ping(ctx); err != nil {
			return nil, "", err
		}
		d := time.Since(start)
		return map[string]float64{"round_trip_ms": float64(d.Microseconds()) / 1000}, fmt.Sprintf("pong in %v\n", d.Round(time.Microsecond)), nil
	})
}

func (e *env) statusCommand() *cobra.Command {
	return e.ask("status", "Show how the daemon is", func(ctx context.Context, b backend) (any, string, error) {
		s, err := b.Status(ctx)
		if err != nil {
			return nil, "", err
		}
		asJSON := struct {
			executor.Status
			WaitedMS    float64 `json:"waited_ms"`
			SuccessRate float64 `json:"success_rate"`
			UptimeMS    int64   `json:"uptime_ms"`
		}{s, float64(s.Waited.Microseconds()) / 1000, successRate(s), s.Uptime.Milliseconds()}
		return asJSON, statusText(s), nil
	})
}

// successRate is that of a pool: see pool.Stats.
func successRate(s executor.Status) float64 {
	return pool.Stats{Executed: s.Executed, Successful: s.Successful}.SuccessRate()
}

func statusText(s executor.Status) string {
	health := "healthy"
	if !s.Healthy {
		health = "takes no tasks"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s, up %v\nactive      %d\nqueued      %d (%v of late)\nexecuted    %d\nsuccessful  %d (%d from the cache)\nfailed      %d\nsuccess     %.1f %%\n",
		health, s.Uptime.Round(time.Second), s.Active, s.Queued, s.Waited.Round(10*time.Microsecond), s.Executed, s.Successful, s.CacheHits, s.Failed, 100*successRate(s))
	if len(s.Members) == 0 {
		return b.String()
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nexecutor\tplatforms\tat once\tactive\texecuted\tsuccessful\tfailed\trestarts\t")
	for _, m := range s.Members {
		how := "healthy"
		if !m.Healthy {
			how = "takes no tasks: " + m.Fault
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d (%d from the cache)\t%d\t%d\t%s\n", m.Name, strings.Join(m.Platforms, " "), m.MaxParallel, m.Active, m.Executed, m.Successful, m.CacheHits, m.Failed, m.Restarts, how)
	}
	_ = w.Flush() // into memory
	return b.String()
}

func (e *env) capabilitiesCommand() *cobra.Command {
	return e.ask("capabilities", "Show what the daemon can do on its host", func(ctx context.Context, b backend) (any, string, error) {
		c, err := b.Capabilities(ctx)
		return c, capabilitiesText(c), err
	})
}

func capabilitiesText(c executor.Capabilities) string {
	var b strings.Builder
	yes := map[bool]string{true: "yes", false: "no"}
	for _, l := range [][2]string{
		{"version", c.Version},
		{"sandboxing", yes[c.Sandboxing]},
		{"network isolation", yes[c.NetworkIsolation]},
		{"caching", yes[c.Caching]},
		{"parallel tasks", fmt.Sprint(c.MaxParallel)},
		{"platforms", strings.Join(c.Platforms, " ")},
		{"networks", strings.Join(c.Networks, " ")},
		{"limits", strings.Join(c.Limits, " ")},
	} {
		fmt.Fprintf(&b, "%-18s %s\n", l[0], l[1])
	}
	for _, m := range c.Missing {
		fmt.Fprintf(&b, "%-18s %s\n", "missing", m)
	}
	return b.String()
}
