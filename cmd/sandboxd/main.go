// Command sandboxd runs build tasks apart from the machine: as a daemon on a
// Unix socket (serve), as its client (run, ping, status, capabilities), and as
// both in one process (run --local).
//
// # Exit status
//
//	sandboxd run        the task's own, but:
//	                    1    it wrote more than it may, or hit pids_max and would have exited 0
//	                    124  it timed out
//	                    125  sandboxd could not run it, or a declared output is missing
//	                    128+n  signal n ended it (137 for its memory limit), or canceled this command
//	all other commands  0, 1 for an error, 2 for a wrong command line
//
// A task may exit with any of these numbers itself; --json tells them apart.
//
// Sizes are powers of two: 512M and 512MiB are both 512·2^20 bytes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/sandbox"
)

func main() {
	if makesSandboxes(os.Args[1:]) {
		if err := sandbox.Seal(); err != nil {
			fmt.Fprintf(os.Stderr, "sandboxd: %v\n", err)
			os.Exit(exitSandboxd)
		}
	}
	os.Exit(run(context.Background(), systemEnv()))
}

// makesSandboxes reports whether it pays to execute the program from memory first.
// Sandboxes are as safe without, and start more slowly.
func makesSandboxes(args []string) bool {
	return os.Geteuid() == 0 && len(args) > 0 && (args[0] == "serve" || args[0] == "run" && slices.Contains(args, "--local"))
}

// Exit statuses of sandboxd itself.
const (
	exitFailure  = 1
	exitUsage    = 2
	exitTimedOut = 124
	exitSandboxd = 125
	exitSignal   = 128 // and the signal's number
)

// env is all that the commands take from the process they run in.
type env struct {
	args           []string
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	// signals brings SIGINT, SIGTERM and SIGHUP.
	signals <-chan os.Signal
	// supervisor takes, once, what the process that started this one left for it.
	supervisor func() (supervisor, error)
	root       bool
	// configFile is read where it exists and no --config is given.
	configFile string
	parts      parts
}

func systemEnv() env {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// A reader of our stdout that goes must not end us before the task: with a
	// handler in place the write fails instead. Ignoring the signal would be
	// inherited by tasks.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return env{
		args: os.Args[1:], stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		getenv: os.Getenv, signals: signals, supervisor: systemSupervisor, root: os.Geteuid() == 0,
		configFile: defaultConfigFile, parts: systemParts(),
	}
}

// run is the program: it returns the exit status.
func run(ctx context.Context, e env) int {
	root := e.rootCommand()
	root.SetArgs(e.args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return e.report(cmd, err)
}

func (e *env) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "sandboxd",
		Short:         "Run build tasks in sandboxes, and never the same one twice",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(e.runCommand(), e.serveCommand(), e.pingCommand(), e.statusCommand(),
		e.capabilitiesCommand(), e.checkCommand(), e.cacheCommand(), e.versionCommand())
	return root
}

// usageError is a wrong command line.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitStatus ends the program without a word, which was said already.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// report tells of err and makes an exit status of it.
func (e *env) report(cmd *cobra.Command, err error) int {
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	// Cobra makes its own errors of a wrong command line only before a command runs.
	var usage usageError
	wrong := errors.As(err, &usage) || cmd.RunE == nil
	if f := cmd.Flags().Lookup("json"); f != nil && f.Value.String() == "true" {
		e.reportJSON(err, wrong)
	} else {
		fmt.Fprintf(e.stderr, "sandboxd: %v\n", err)
		if wrong {
			fmt.Fprintf(e.stderr, "See '%s --help'.\n", cmd.CommandPath())
		}
	}
	switch {
	case cmd.Name() == "run":
		return exitSandboxd
	case wrong:
		return exitUsage
	}
	return exitFailure
}

func (e *env) reportJSON(err error, wrong bool) {
	x := executor.AsError(err)
	kind := x.Kind
	if wrong && x.Kind == executor.Internal {
		kind = executor.Invalid
	}
	type text struct {
		Kind  executor.Kind `json:"kind"`
		Field string        `json:"field"`
		Text  string        `json:"text"`
	}
	if e2 := writeJSON(e.stdout, map[string]text{"error": {kind, x.Field, x.Text}}); e2 != nil {
		fmt.Fprintf(e.stderr, "sandboxd: %v; and that cannot be written to standard output: %v\n", err, e2)
	}
}

// noArgs is cobra.NoArgs as a usage error.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no argument such as %q", cmd.CommandPath(), args[0])
	}
	return nil
}
