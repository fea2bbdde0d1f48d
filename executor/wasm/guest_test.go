package wasm

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/process"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shared is a directory that the tests of one run have in common: what was compiled is compiled once.
var shared string

func TestMain(m *testing.M) {
	var err error
	if shared, err = os.MkdirTemp("", "wasm-test-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(shared)
	os.Exit(code)
}

// builtWorker is testdata/worker.
var builtWorker = sync.OnceValues(func() (string, error) {
	if p := os.Getenv("SANDBOXD_TEST_WORKER"); p != "" {
		return p, nil
	}
	to := filepath.Join(shared, "worker")
	cmd := exec.Command("go", "build", "-o", to, "./testdata/worker")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", &exec.Error{Name: string(out), Err: err}
	}
	return to, nil
})

// built is testdata/guest as a wasip1 command.
var built = sync.OnceValues(func() ([]byte, error) {
	to := filepath.Join(shared, "guest.wasm")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, "./testdata/guest")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, &exec.Error{Name: string(out), Err: err}
	}
	return os.ReadFile(to)
})

func guestModule(t testing.TB) []byte {
	t.Helper()
	b, err := built()
	must(t, err)
	return b
}

// openExecutor is openShell of testdata/guest.
func openExecutor(t testing.TB, cfg Config) *Executor {
	t.Helper()
	if cfg.Module == nil {
		cfg.Module = guestModule(t)
	}
	return openShell(t, cfg)
}

// openShell makes an Executor with a cache of its own, which the end of the test closes.
func openShell(t testing.TB, cfg Config) *Executor {
	t.Helper()
	c, err := cache.Open(filepath.Join(t.TempDir(), "cache"), cache.Config{})
	must(t, err)
	cfg.Cache, cfg.Version = c, "test"
	if cfg.CodeDir == "" {
		cfg.CodeDir = filepath.Join(shared, "code")
	}
	if raceEnabled && cfg.program == nil {
		p, err := builtWorker()
		must(t, err)
		cfg.program = []string{p, process.Name}
	}
	if cfg.MaxParallel == 0 {
		cfg.MaxParallel = 1
	}
	e, err := New(cfg)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		must(t, e.Close(ctx))
		must(t, c.Close())
	})
	return e
}

// run runs a task that must give an output.
func run(t testing.TB, e executor.Executor, spec *executor.TaskSpec) *executor.TaskOutput {
	t.Helper()
	out, err := e.Execute(t.Context(), spec)
	must(t, err)
	return out
}

// uncached is a script of testdata/guest.
func uncached(script string) *executor.TaskSpec {
	return &executor.TaskSpec{Script: script, Cache: executor.CacheOff}
}
