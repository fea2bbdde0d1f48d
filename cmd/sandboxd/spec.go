package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/sandboxd/sandboxd/executor"
)

// taskFlags are the flags of run that make a TaskSpec.
type taskFlags struct {
	workdir, workdirMode string
	outputs, inputs, env []string
	platforms            []string
	network, cache       string
	allow                []string
	audit                bool
	memory, cpus, pids   string
	ioWeight             int64
	priority             int
	timeout              time.Duration
	name, recipe         string
	script, scriptFile   string
	stdin                bool
}

func (f *taskFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.workdir, "workdir", "", "directory seen at /build (default: the current one); none for an empty one")
	fs.StringVar(&f.workdirMode, "workdir-mode", "overlay", "overlay (keep only declared outputs), direct or readonly")
	// StringArray and not StringSlice: a comma is a character like any other.
	fs.StringArrayVar(&f.outputs, "output", nil, "file or directory, relative to the workdir, that the task makes (repeatable)")
	fs.StringArrayVar(&f.inputs, "input", nil, "HOST[:SANDBOX], another read-only file or directory (repeatable)")
	fs.StringArrayVar(&f.env, "env", nil, "K=V of the environment (repeatable); nothing is inherited")
	fs.StringArrayVar(&f.platforms, "platform", nil, "GOOS/GOARCH that the task may run on, the best first (repeatable): "+executor.PlatformNative+" in a sandbox, "+executor.PlatformWasm+" in WebAssembly (default: as the executor is set up)")
	fs.StringVar(&f.network, "network", "isolated", "isolated, loopback, full or controlled")
	fs.StringArrayVar(&f.allow, "allow", nil, "HOST[:PORTS][/tcp|/udp] that --network controlled permits (repeatable): a name, *.NAME, an address or a CIDR")
	fs.BoolVar(&f.audit, "audit", false, "with --network controlled: permit what the daemon may, and print the --allow that it takes")
	fs.StringVar(&f.memory, "memory", "", "memory such as 512M or 4GiB, in powers of two (default 4GiB); unlimited for no limit")
	fs.StringVar(&f.cpus, "cpus", "", "processors, such as 2 or 0.5 (default: no quota)")
	fs.StringVar(&f.pids, "pids", "", "processes and threads (default 1024); unlimited for no limit")
	fs.Int64Var(&f.ioWeight, "io-weight", 0, "share of disk time, 1 to 10000 (default 100)")
	fs.DurationVar(&f.timeout, "timeout", 0, "wall time such as 90s or 2h (default 1h)")
	fs.IntVar(&f.priority, "priority", 0, "-10 to 10: before all waiting tasks with less; above 0 takes root or an access rule")
	fs.StringVar(&f.name, "name", "", "name in logs (default: the command's)")
	fs.StringVar(&f.recipe, "recipe", "", "what the task belongs to, for logs")
	fs.StringVar(&f.cache, "cache", "use", "use, refresh (run, then store) or off")
	fs.StringVarP(&f.script, "command", "c", "", "shell script to run")
	fs.StringVarP(&f.scriptFile, "file", "f", "", "file with the shell script to run; - for standard input")
	fs.BoolVar(&f.stdin, "stdin", false, "give the task our standard input, up to 2 MiB of it")
}

// spec makes a valid TaskSpec of the flags and of argv, which followed --.
func (f *taskFlags) spec(fs *pflag.FlagSet, argv []string, stdin io.Reader) (*executor.TaskSpec, error) {
	t := &executor.TaskSpec{
		Recipe: f.recipe, Argv: argv, Outputs: f.outputs, Timeout: f.timeout,
		WorkdirMode: executor.WorkdirMode(zeroFor(f.workdirMode, "overlay")),
		Network:     executor.NetworkPolicy(zeroFor(f.network, "isolated")),
		Allow:       f.allow, Audit: f.audit, Platforms: f.platforms,
		Cache: executor.CacheMode(zeroFor(f.cache, "use")), Priority: f.priority,
	}
	for _, set := range []func() error{
		func() error { return f.setCommand(fs, t, stdin) },
		func() error { return f.setWorkdir(t) },
		func() error { return f.setInputs(t) },
		func() error { return f.setEnv(t) },
		func() error { return f.setLimits(fs, t) },
		func() error { return checkTimeout(fs, f.timeout) },
		t.Validate,
	} {
		if err := set(); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// zeroFor gives the zero value its name on the command line.
func zeroFor(v, name string) string {
	if v == name {
		return ""
	}
	return v
}

func checkTimeout(fs *pflag.FlagSet, d time.Duration) error {
	if fs.Changed("timeout") && d <= 0 {
		return usagef("--timeout %v is not a time to run; use 1ms to %v", d, executor.MaxTimeout)
	}
	return nil
}

func (f *taskFlags) setCommand(fs *pflag.FlagSet, t *executor.TaskSpec, stdin io.Reader) error {
	ways := 0
	for _, given := range []bool{fs.Changed("command"), fs.Changed("file"), len(t.Argv) > 0} {
		if given {
			ways++
		}
	}
	switch {
	case ways == 0:
		return usagef("there is nothing to run; give -c SCRIPT, -f FILE or -- COMMAND ARGUMENTS")
	case ways > 1:
		return usagef("-c, -f and -- COMMAND exclude each other; give one of them")
	case f.scriptFile == "-" && f.stdin:
		return usagef("-f - and --stdin both read standard input; put the script into a file")
	}
	t.Script, t.Name = f.script, f.name
	name := "script"
	if fs.Changed("file") {
		b, err := readScript(f.scriptFile, stdin)
		if err != nil {
			return err
		}
		t.Script = string(b)
		if f.scriptFile != "-" {
			name = filepath.Base(f.scriptFile)
		}
	}
	if len(t.Argv) > 0 {
		name = filepath.Base(t.Argv[0])
	} else if t.Script == "" {
		return usagef("the script is empty; give commands to run")
	}
	if !fs.Changed("name") {
		t.Name = printableName(name)
	}
	if !f.stdin {
		return nil
	}
	b, err := readBounded(stdin, "standard input", executor.MaxStdinBytes)
	t.Stdin = b
	return err
}

// printableName makes a name fit for a TaskSpec of any file's name.
func printableName(s string) string {
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
	return strings.ToValidUTF8(s[:min(len(s), executor.MaxNameBytes)], "")
}

func readScript(file string, stdin io.Reader) ([]byte, error) {
	if file == "-" {
		return readBounded(stdin, "the script", executor.MaxScriptBytes)
	}
	r, err := os.Open(file)
	if err != nil {
		return nil, executor.FieldErrorf("script", "%w", err)
	}
	defer r.Close()
	return readBounded(r, file, executor.MaxScriptBytes)
}

func readBounded(r io.Reader, what string, most int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err != nil {
		return nil, executor.Errorf(executor.Invalid, "read %s: %w", what, err)
	}
	if len(b) > most {
		return nil, executor.Errorf(executor.Invalid, "%s is longer than %d bytes; use an --input", what, most)
	}
	return b, nil
}

func (f *taskFlags) setWorkdir(t *executor.TaskSpec) error {
	if f.workdir == "none" {
		return nil
	}
	dir, err := filepath.Abs(f.workdir) // of "" the current directory
	if err != nil {
		return executor.FieldErrorf("workdir", "current directory: %w; use --workdir DIR", err)
	}
	t.Workdir = dir
	return nil
}

func (f *taskFlags) setInputs(t *executor.TaskSpec) error {
	for _, s := range f.inputs {
		host, target := s, ""
		// The sandbox's path is absolute, so that other colons stay in the host's.
		if i := strings.LastIndex(s, ":/"); i >= 0 {
			host, target = s[:i], s[i+1:]
		}
		if host == "" {
			return usagef("--input %q names no file; write HOST or HOST:/SANDBOX", s)
		}
		abs, err := filepath.Abs(host)
		if err != nil {
			return executor.FieldErrorf("inputs", "%q: %w", host, err)
		}
		t.Inputs = append(t.Inputs, executor.Input{Host: abs, Sandbox: target})
	}
	return nil
}

func (f *taskFlags) setEnv(t *executor.TaskSpec) error {
	for _, s := range f.env {
		k, v, ok := strings.Cut(s, "=")
		if ok && k == "" {
			return usagef("--env %q has no name; give K=V", s)
		}
		if !ok {
			return usagef("--env %q is not K=V; nothing is inherited, so give the value: --env %s=VALUE", s, k)
		}
		if t.Env == nil {
			t.Env = map[string]string{}
		}
		t.Env[k] = v
	}
	return nil
}

func (f *taskFlags) setLimits(fs *pflag.FlagSet, t *executor.TaskSpec) (err error) {
	l := &t.Limits
	for _, x := range []struct {
		flag, v string
		to      *int64
		parse   func(string) (int64, error)
	}{
		{"memory", f.memory, &l.MemoryBytes, orUnlimited(parseSize)},
		{"pids", f.pids, &l.PidsMax, orUnlimited(parseCount)},
		{"cpus", f.cpus, &l.CPUQuotaUS, parseCPUs},
	} {
		if !fs.Changed(x.flag) {
			continue
		}
		if *x.to, err = x.parse(x.v); err != nil {
			return usagef("--%s: %w", x.flag, err)
		}
		// Zero in a TaskSpec is the default, which nobody means by writing it.
		if *x.to == 0 {
			return usagef("--%s: 0 leaves nothing to run with; give more, or leave the flag out for the default", x.flag)
		}
	}
	if l.IOWeight = f.ioWeight; fs.Changed("io-weight") && f.ioWeight < 1 {
		return usagef("--io-weight: %d is out of range; use 1 to 10000", f.ioWeight)
	}
	return nil
}

func orUnlimited(parse func(string) (int64, error)) func(string) (int64, error) {
	return func(s string) (int64, error) {
		if s == "unlimited" {
			return executor.Unlimited, nil
		}
		return parse(s)
	}
}

func parseCount(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a number; write one such as 1024, or unlimited", s)
	}
	return n, nil
}

// parseCPUs turns processors into microseconds per 100 ms.
func parseCPUs(s string) (int64, error) {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(v) || v < 0.01 || v > 4096 {
		return 0, fmt.Errorf("%q is not a number of processors; use 0.01 to 4096", s)
	}
	return int64(math.Round(v * 100_000)), nil
}
