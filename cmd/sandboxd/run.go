package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sandboxd/sandboxd/executor"
)

const runExamples = `  sandboxd run --output hello -- cc -o hello hello.c
  sandboxd run --workdir none --timeout 10s -c 'id; pwd'
  sandboxd run --memory 512M --cpus 2 --json -f build.sh`

// runFlags are the flags of run that do not make the TaskSpec.
type runFlags struct {
	local       bool
	backend     string
	component   string
	realClock   bool
	clockSaid   bool // by a flag, which goes before the configuration
	socket      string
	cacheDir    string
	configFile  string
	json, quiet bool
}

func (e *env) runCommand() *cobra.Command {
	var (
		task taskFlags
		how  runFlags
	)
	cmd := &cobra.Command{
		Use:     "run [flags] {-c SCRIPT | -f FILE | -- COMMAND [ARGUMENT]...}",
		Short:   "Run a task and pass on its output and exit status",
		Example: runExamples,
		RunE: func(cmd *cobra.Command, args []string) error {
			if n := cmd.ArgsLenAtDash(); len(args) > 0 && n != 0 {
				return usagef("%q is no flag; write -- before the command to run", args[0])
			}
			if how.local && cmd.Flags().Changed("socket") {
				return usagef("--socket asks a daemon and --local runs the task without one; leave one of them out")
			}
			if err := how.check(cmd); err != nil {
				return err
			}
			how.clockSaid = cmd.Flags().Changed("wasm-real-clock")
			spec, err := unlessSignaled(e, func() (*executor.TaskSpec, error) { return task.spec(cmd.Flags(), args, e.stdin) })
			if err != nil {
				return err
			}
			if how.backend == backendAuto {
				spec.Platforms = []string{executor.PlatformNative, executor.PlatformWasm}
			}
			return e.runTask(cmd.Context(), how, spec)
		},
	}
	fs := cmd.Flags()
	addSocketFlag(cmd, &how.socket)
	fs.BoolVar(&how.local, "local", false, "run in this process and not by the daemon (as root)")
	fs.StringVar(&how.backend, "backend", "", "wasm: run in this process, in WebAssembly, as any user; auto: by the daemon, or in a sandbox of this process, and where neither can be had in WebAssembly (default: the daemon)")
	fs.StringVar(&how.component, "component", "", "WebAssembly module or component that runs the task, with --backend wasm (default: a shell with the usual tools)")
	fs.BoolVar(&how.realClock, "wasm-real-clock", false, "with --backend wasm: let the task see the time, and randomness")
	fs.StringVar(&how.cacheDir, "cache-dir", "", "cache of --local (default "+defaultConfig().CacheDir+") and --backend (default: as root the same, or the user's own)")
	fs.StringVar(&how.configFile, "config", "", "configuration of --local and --backend (default "+e.configFile+", if it exists)")
	fs.BoolVar(&how.json, "json", false, "print the result as one JSON object, and not the task's output")
	fs.BoolVar(&how.quiet, "quiet", false, "say nothing on stderr but errors")
	task.add(fs)
	completeValues(cmd, map[string][]string{
		"workdir-mode": {"overlay", "direct", "readonly"},
		"network":      {"isolated", "loopback", "full", "controlled"},
		"cache":        {"use", "refresh", "off"},
		"backend":      {backendWasm, backendAuto},
	})
	return cmd
}

// check refuses flags that do not go together.
func (how runFlags) check(cmd *cobra.Command) error {
	changed := cmd.Flags().Changed
	switch {
	case how.backend != "" && how.backend != backendWasm && how.backend != backendAuto:
		return usagef("--backend %.80q is unknown; use wasm or auto, or leave it out for the daemon", how.backend)
	case how.backend != backendWasm && changed("component"):
		return usagef("--component runs in WebAssembly; use it with --backend wasm")
	case how.backend != backendWasm && how.realClock:
		return usagef("--wasm-real-clock is for --backend wasm; a sandbox has the real clock")
	case how.backend != "" && how.local:
		return usagef("--local makes a sandbox and --backend %s may do without; leave one of them out", how.backend)
	case how.backend == backendAuto && changed("platform"):
		return usagef("--backend auto is --platform %s --platform %s; leave one of them out", executor.PlatformNative, executor.PlatformWasm)
	case how.backend == backendWasm && changed("socket"):
		return usagef("--socket asks a daemon and --backend wasm runs the task without one; leave one of them out")
	case changed("component") && how.component == "":
		return usagef("--component is empty; name a file, or leave it out for the shell")
	}
	return nil
}

func completeValues(cmd *cobra.Command, values map[string][]string) {
	for flag, v := range values {
		// It fails only for a flag that is not there, which a test would see.
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(v, cobra.ShellCompDirectiveNoFileComp))
	}
}

func (e *env) runTask(ctx context.Context, how runFlags, spec *executor.TaskSpec) error {
	b, err := e.backendFor(ctx, how)
	if err != nil {
		return err
	}
	s := e.newScreen(how, spec.Name)
	a := e.await(ctx, b, spec, s)
	s.erase()
	err = e.deliver(ctx, b, how, s, a)
	if a.abandoned {
		return err // a second signal waits for nothing
	}
	return errors.Join(err, closeBackend(b))
}

// unlessSignaled is what wait returns, which may take as long as somebody else pleases. A signal that comes before ends the program, as it would without a handler.
func unlessSignaled[T any](e *env, wait func() (T, error)) (t T, err error) {
	type result struct {
		t   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		t, err := wait()
		done <- result{t, err}
	}()
	select {
	case r := <-done:
		return r.t, r.err
	case sig := <-e.signals:
		return t, exitStatus(exitSignal + signalNumber(sig))
	}
}

// closeBackend is given a context of its own: what it unmakes must go even when the task was canceled.
func closeBackend(b backend) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := b.Close(ctx); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

// answer is what became of an Execute.
type answer struct {
	out *executor.TaskOutput
	err error
	// signal is the one that canceled the task; nil if none.
	signal os.Signal
	// abandoned says that a second signal came before the answer.
	abandoned bool
}

// await runs the task. The first signal cancels it, and its answer is waited for;
// the second does not wait (the daemon then ends the task, its connection gone).
func (e *env) await(ctx context.Context, b backend, spec *executor.TaskSpec, s *screen) (a answer) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.broken = cancel
	done := make(chan answer, 1)
	go func() {
		o, err := b.Execute(executor.WithEvents(ctx, s.event), spec)
		done <- answer{out: o, err: err}
	}()
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for {
		select {
		case got := <-done:
			a.out, a.err = got.out, got.err
			return a
		case sig := <-e.signals:
			if a.signal != nil {
				a.abandoned = true
				return a
			}
			a.signal = sig
			s.setState("canceling")
			cancel()
		case <-tick.C:
			s.tick()
		}
	}
}

// deliver prints what the events did not bring, the JSON or the closing line,
// and makes the exit status of the answer, as an error.
func (e *env) deliver(ctx context.Context, b backend, how runFlags, s *screen, a answer) error {
	if a.abandoned {
		return exitStatus(exitSignal + signalNumber(a.signal))
	}
	if errors.Is(s.failed, syscall.EPIPE) {
		return exitStatus(exitSignal + int(syscall.SIGPIPE)) // as any program whose reader has gone
	}
	if s.failed != nil {
		return fmt.Errorf("write the task's output: %w", s.failed)
	}
	if a.err != nil {
		if a.signal != nil && executor.KindOf(a.err) == executor.Canceled {
			if !how.quiet {
				fmt.Fprintf(e.stderr, "sandboxd: %v\n", a.err)
			}
			return exitStatus(exitSignal + signalNumber(a.signal))
		}
		return a.err
	}
	var err error
	if how.json {
		err = writeJSON(e.stdout, jsonOf(a.out))
	} else {
		err = s.rest(ctx, b, a.out)
		if !how.quiet {
			fmt.Fprintln(e.stderr, closingLine(a.out))
		}
	}
	if err != nil {
		return err
	}
	if code := exitCode(a.out, a.signal); code != 0 {
		return exitStatus(code)
	}
	return nil
}

func signalNumber(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return int(n)
	}
	return int(syscall.SIGTERM)
}
