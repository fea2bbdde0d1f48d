package integration_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/local"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// probeEnv names the probe that this binary is to be, when it is a task's program.
const probeEnv = "SANDBOXD_PROBE"

// probePath is where a task sees this binary.
const probePath = "/probe/program"

// caller is neither root nor the id that it has inside.
const callerUID = 4711

// outcomes are what a probe found, by name.
type outcomes map[string]string

func init() {
	name := os.Getenv(probeEnv)
	if name == "" {
		return
	}
	probe := map[string]func() outcomes{"posture": posture, "escape": tryAll, "set id": setID, "listeners": connecting, "foreign": foreignCalls, "network": tryNetwork, "listen": listenForEver}[name]
	if probe == nil {
		fmt.Fprintln(os.Stderr, "no probe", name)
		os.Exit(99)
	}
	if err := json.NewEncoder(os.Stdout).Encode(probe()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(98)
	}
	os.Exit(0)
}

// errnoName is an outcome of a system call: "allowed", or why not.
func errnoName(err error) string {
	var e unix.Errno
	switch {
	case err == nil:
		return "allowed"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fixture is an executor, and this binary where any user may read it.
type fixture struct {
	*testing.T
	local   *local.Executor
	program string
}

var warmed bool

func newFixture(t *testing.T) *fixture {
	t.Helper()
	testutil.RequireRoot(t)
	if !warmed {
		// libcontainer keeps two descriptors from the first time on.
		warmed = true
		t.Run("warm up", func(t *testing.T) { openFixture(t).run(&executor.TaskSpec{Script: "true"}) })
	}
	testutil.CheckLeaks(t)
	return openFixture(t)
}

func openFixture(t *testing.T) *fixture {
	t.Helper()
	dir := openDir(t)
	store, err := cache.Open(filepath.Join(dir, "cache"), cache.Config{})
	must(t, err)
	t.Cleanup(func() { must(t, store.Close()) })
	e, err := local.New(local.Config{
		StateDir: filepath.Join(dir, "state"), Cache: store, MaxParallel: 4, RangesDir: filepath.Join(dir, "ids"),
		CgroupParent: testutil.CgroupParent(),
	})
	must(t, err)
	t.Cleanup(func() { must(t, e.Close(context.Background())) })
	b, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	program := filepath.Join(dir, "program")
	must(t, os.WriteFile(program, b, 0o755))
	return &fixture{T: t, local: e, program: program}
}

// openDir is a temporary directory that others may pass through.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o711))
	}
	return dir
}

func (f *fixture) run(spec *executor.TaskSpec) *executor.TaskOutput {
	f.Helper()
	spec.Cache = executor.CacheOff
	ctx := executor.WithCaller(context.Background(), executor.Caller{UID: callerUID, GID: callerUID})
	out, err := f.local.Execute(ctx, spec)
	must(f.T, err)
	return out
}

// probe runs this binary inside, as spec otherwise says.
func (f *fixture) probe(name string, spec executor.TaskSpec) outcomes {
	f.Helper()
	spec.Argv = []string{probePath}
	spec.Inputs = append(spec.Inputs, executor.Input{Host: f.program, Sandbox: probePath})
	spec.Env = map[string]string{probeEnv: name}
	out := f.run(&spec)
	if !out.Success() {
		f.Fatalf("probe %s: %s, code %d\n%s%s", name, out.Cause, out.ExitCode, out.Stdout.Inline, out.Stderr.Inline)
	}
	var o outcomes
	must(f.T, json.Unmarshal(out.Stdout.Inline, &o))
	return o
}
