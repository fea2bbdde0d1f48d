package wasm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// example builds examples/components/NAME.
func example(t *testing.T, name string) []byte {
	t.Helper()
	to := filepath.Join(shared, "component-"+name)
	must(t, os.MkdirAll(to, 0o755))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join("../../examples/components", name, "build.sh"), to)
	cmd.WaitDelay = time.Second // what it started may hold its output
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(to, "executor.wasm"))
	must(t, err)
	return b
}

func TestComponentInC(t *testing.T) {
	notInVM(t)
	_, err := exec.LookPath("clang-19")
	testutil.Require(t, err == nil, "clang-19 builds the component: apt-get install clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32")
	runComponent(t, example(t, "c"))
}

func TestComponentInGo(t *testing.T) {
	notInVM(t)
	runComponent(t, example(t, "go"))
}

func TestComponentInJavaScript(t *testing.T) {
	notInVM(t)
	_, err := exec.LookPath("npm")
	testutil.Require(t, err == nil, "npm builds the component: apt-get install npm")
	if testing.Short() {
		t.Skip("npm fetches 200 packages for this component the first time")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "npm", "view", "--fetch-retries=0", "@bytecodealliance/jco@1.15.0", "version").CombinedOutput()
	testutil.Require(t, err == nil, fmt.Sprintf("npm reaches no registry that has the packages (%v): %.400s", err, out))
	runComponent(t, example(t, "js"))
}

// runComponent runs what all components in examples/components understand.
func runComponent(t *testing.T, module []byte) {
	e := openShell(t, Config{Module: module})
	work := t.TempDir()
	must(t, os.WriteFile(filepath.Join(work, "in"), []byte("input\n"), 0o600))
	input := filepath.Join(t.TempDir(), "another")
	must(t, os.WriteFile(input, []byte("another\n"), 0o600))
	hash := func(s string) string { return cache.DigestOf([]byte(s)).Hash }
	spec := &executor.TaskSpec{
		Name: "component", Workdir: work, Inputs: []executor.Input{{Host: input, Sandbox: "/src/another"}}, Outputs: []string{"greeting", "dir"},
		Script: strings.Join([]string{
			"say hello", "put greeting hello world", "put dir/a/b below", "get " + hash("input\n"), "get " + hash("another\n"), "get " + hash("below"),
		}, "\n"),
	}
	for _, cached := range []bool{false, true} {
		out, err := e.Execute(t.Context(), spec)
		must(t, err)
		if got, want := string(out.Stdout.Inline), "hello\ninput\nanother\nbelow"; !out.Success() || got != want || out.Cached != cached {
			t.Errorf("%+v\nstdout %q, want %q", out, got, want)
		}
		if got := string(out.Stderr.Inline); got != "[info] component\n" {
			t.Errorf("the log is %q", got)
		}
		var got []string
		for _, f := range out.OutputFiles {
			got = append(got, f.Path+" "+string(f.Kind))
		}
		if s := strings.Join(got, ", "); s != "dir dir, dir/a dir, dir/a/b file, greeting file" {
			t.Errorf("outputs %s", s)
		}
		if b, err := os.ReadFile(filepath.Join(work, "greeting")); err != nil || string(b) != "hello world" {
			t.Errorf("the output is %q, %v", b, err)
		}
		must(t, os.Remove(filepath.Join(work, "greeting")))
	}
	if out := run(t, e, &executor.TaskSpec{Script: "say x\nexit 7"}); out.ExitCode != 7 || out.Cause != executor.CauseExited || string(out.Stdout.Inline) != "x\n" {
		t.Errorf("exit 7: %+v", out)
	}
	if _, err := e.Execute(t.Context(), uncached("dance")); executor.KindOf(err) != executor.Unsupported || !strings.Contains(err.Error(), "no such command: dance") {
		t.Errorf("what it does not know: %v", err)
	}
	// What of the cache is another task's is not this one's.
	if _, err := e.Execute(t.Context(), uncached("get "+hash("below"))); !strings.Contains(err.Error(), "neither one of the task's inputs") {
		t.Errorf("another task's blob: %v", err)
	}
	spec = uncached("put other x")
	if _, err := e.Execute(t.Context(), spec); executor.KindOf(err) != executor.Invalid || !strings.Contains(err.Error(), "not declared") {
		t.Errorf("an undeclared output: %v", err)
	}
	spec = uncached("say x")
	spec.Outputs = []string{"missing"}
	if out := run(t, e, spec); out.Success() || len(out.MissingOutputs) != 1 {
		t.Errorf("a missing output: %+v", out)
	}
	if _, err := e.Execute(t.Context(), &executor.TaskSpec{Argv: []string{"x"}, Cache: executor.CacheOff}); executor.KindOf(err) != executor.Unsupported || executor.AsError(err).Field != "argv" {
		t.Errorf("arguments: %v", err)
	}
}
