package wasm

import (
	"context"
	"os"
	"path"
	"strings"

	"github.com/sandboxd/sandboxd/executor"
)

// maxMemory is all that a module can address.
const maxMemory = 4 << 30

// admit refuses what cannot be had here.
func admit(ctx context.Context, s *executor.TaskSpec) error {
	unsupported := func(field, format string, args ...any) error {
		e := executor.Errorf(executor.Unsupported, format+"; use an executor with sandboxes", args...)
		e.Field = field
		return e
	}
	if err := s.CheckPlatform(executor.PlatformWasm); err != nil {
		return err
	}
	if c, ok := executor.CallerFrom(ctx); ok && os.Geteuid() >= 0 && int64(c.UID) != int64(os.Geteuid()) {
		return executor.Errorf(executor.Denied, "tasks in WebAssembly have the rights of user %d, which the executor runs as, and user %d has not; "+
			"run it as user %d, or use an executor with sandboxes", os.Geteuid(), c.UID, c.UID)
	}
	switch {
	case s.Network != executor.NetworkIsolated && s.Network != executor.NetworkLoopback:
		return unsupported("network", "%s is not to be had in WebAssembly, where there is no network", s.Network)
	case s.WorkdirMode == executor.WorkdirDirect:
		return unsupported("workdir_mode", "direct is not to be had in WebAssembly")
	case s.Rootfs != "":
		return unsupported("rootfs", "a root file system is of no use in WebAssembly, where its programs do not run")
	case s.Debug:
		return unsupported("debug", "ptrace is not to be had in WebAssembly")
	case s.Limits.CPUQuotaUS > 0:
		return unsupported("limits.cpu_quota_us", "a CPU quota cannot be enforced in WebAssembly")
	case s.Limits.IOWeight != 0 && s.Limits.IOWeight != executor.DefaultIOWeight:
		return unsupported("limits.io_weight", "a share of disk time cannot be enforced in WebAssembly")
	}
	if i, ok := interpreter(s.Script); ok && !shells[path.Base(i)] {
		return unsupported("script", "the interpreter %.200q does not run in WebAssembly, where there is a shell alone", i)
	}
	return nil
}

var shells = map[string]bool{"sh": true, "bash": true, "dash": true, "ash": true}

// interpreter is what a script's first line names, if it names any.
func interpreter(script string) (string, bool) {
	line, _, _ := strings.Cut(script, "\n")
	rest, ok := strings.CutPrefix(line, "#!")
	f := strings.Fields(rest)
	if !ok || len(f) == 0 {
		return "", false
	}
	if path.Base(f[0]) == "env" && len(f) > 1 {
		return f[1], true
	}
	return f[0], true
}

// argv is what runs a task: as package local does, a script is run with -e where it names no interpreter.
func argv(s *executor.TaskSpec) []string {
	if s.Script == "" {
		return s.Argv
	}
	if _, ok := interpreter(s.Script); ok {
		return []string{"sh", "-c", s.Script}
	}
	return []string{"sh", "-e", "-c", s.Script}
}

// granted are the bounds that a task runs under.
type granted struct {
	memory, work, tmp, log, outputs int64
	openFiles                       int
}

func grant(s *executor.TaskSpec) granted {
	l := s.Limits.WithDefaults()
	g := granted{
		memory: l.MemoryBytes, tmp: l.TmpBytes, log: executor.DefaultLogBytes, outputs: executor.DefaultOutputBytes,
		openFiles: int(l.OpenFiles),
	}
	if g.memory < 0 || g.memory > maxMemory {
		g.memory = maxMemory
	}
	const most = 1 << 50
	switch {
	case l.OutputBytes > 0:
		g.log, g.outputs = l.OutputBytes, l.OutputBytes
	case l.OutputBytes < 0:
		g.log, g.outputs = most, most
	}
	if g.tmp < 0 {
		g.tmp = most
	}
	// What is written beside the outputs is on disk as they are.
	g.work = max(g.outputs, executor.DefaultOutputBytes)
	return g
}
