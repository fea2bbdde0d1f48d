package wasm

import (
	"path"
	"runtime"
	"strings"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/access"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// maxMemory is what a module can have.
const maxMemory = wire.MaxMemory

// nobody is whom files belong to that are nobody's, and workers are run as.
const nobody = 65534

// stranger says whether the task is another user's than the one whom the executor runs as.
func (t *task) stranger() bool { return t.caller.UID != caller.Self().UID }

// admit refuses what this caller may not have, and what cannot be had here.
func (t *task) admit() error {
	s := t.spec
	if t.stranger() {
		if self := caller.Self(); runtime.GOOS != "linux" || self.UID != 0 {
			return executor.Errorf(executor.Denied, "tasks of user %d take its rights, which an executor of user %d cannot take on; "+
				"run it as root on Linux, or as user %d", t.caller.UID, self.UID, t.caller.UID)
		}
		if t.caller.UID == nobody || t.caller.GID == nobody {
			return executor.Errorf(executor.Denied, "user %d with group %d is nobody; call as another", t.caller.UID, t.caller.GID)
		}
	}
	if err := supported(s); err != nil {
		return err
	}
	g, err := t.access.Load().For(t.caller).Grant(t.caller, s, maxMemory)
	if err != nil {
		return err
	}
	t.granted = grant(g)
	return nil
}

// supported refuses what cannot be had here.
func supported(s *executor.TaskSpec) error {
	unsupported := func(field, format string, args ...any) error {
		e := executor.Errorf(executor.Unsupported, format+"; use an executor with sandboxes", args...)
		e.Field = field
		return e
	}
	if err := s.CheckPlatform(executor.PlatformWasm); err != nil {
		return err
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

// granted are the bounds that a task runs under. They can be compared.
type granted struct {
	access.Granted
	memory, work, tmp int64
	openFiles         int
}

func grant(a access.Granted) granted {
	l := a.Asked.WithDefaults()
	g := granted{Granted: a, memory: l.MemoryBytes, tmp: l.TmpBytes, openFiles: int(l.OpenFiles)}
	if g.memory < 0 || g.memory > maxMemory {
		g.memory = maxMemory
	}
	const most = 1 << 50
	if l.OutputBytes < 0 {
		g.LogBytes, g.OutputBytes = most, most
	}
	if g.tmp < 0 {
		g.tmp = most
	}
	// What is written beside the outputs is on disk as they are.
	g.work = max(g.OutputBytes, executor.DefaultOutputBytes)
	return g
}
