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
	if len(os.Args) == 3 && pretenders[os.Args[1]] != nil {
		pretenders[os.Args[1]](os.Args[2])
		return
	}
	var err error
	if shared, err = os.MkdirTemp("", "wasm-test-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(shared)
	os.Exit(code)
}

// builtWorker is a program that can be a worker: this one, or with the race detector testdata/worker.
var builtWorker = sync.OnceValues(func() (string, error) {
	if p := os.Getenv("SANDBOXD_TEST_WORKER"); p != "" {
		return p, nil
	}
	if !raceEnabled {
		return os.Executable()
	}
	to := filepath.Join(shared, "worker")
	cmd := exec.Command("go", "build", "-o", to, "./testdata/worker")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", &exec.Error{Name: string(out), Err: err}
	}
	return to, nil
})

// pretenders are what this program is in place of a worker, by the first of two arguments.
var pretenders map[string]func(arg string)

// nothing is a command that does that.
const nothing = "\x00asm\x01\x00\x00\x00" + "\x01\x04\x01\x60\x00\x00" + "\x03\x02\x01\x00" + "\x05\x03\x01\x00\x01" +
	"\x07\x13\x02\x06_start\x00\x00\x06memory\x02\x00" + "\x0a\x04\x01\x02\x00\x0b"

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
	notInVM(t)
	b, err := built()
	must(t, err)
	return b
}

func inVM() bool { return os.Getenv("SANDBOXD_VM") == "1" }

// notInVM skips a test with a module of some size, of which nothing depends on the kernel.
func notInVM(t testing.TB) {
	t.Helper()
	if inVM() {
		t.Skip("an emulated machine compiles the module for minutes")
	}
}

// openExecutor is openShell of testdata/guest.
func openExecutor(t testing.TB, cfg Config) *Executor {
	t.Helper()
	if cfg.Module == nil {
		cfg.Module = guestModule(t)
	}
	return openShell(t, cfg)
}

// openShell makes an Executor, with a cache of its own if cfg has none, which the end of the test closes.
func openShell(t testing.TB, cfg Config) *Executor {
	t.Helper()
	if cfg.Module == nil {
		notInVM(t)
	}
	if cfg.Cache == nil {
		cfg.Cache = openCache(t)
	}
	cfg.Version = "test"
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
	})
	return e
}

// openCache opens a new cache, which the end of the test closes.
func openCache(t testing.TB) *cache.Cache {
	t.Helper()
	c, err := cache.Open(filepath.Join(t.TempDir(), "cache"), cache.Config{})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return c
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
