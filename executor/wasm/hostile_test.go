package wasm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
)

func hostileModule(t *testing.T) []byte {
	t.Helper()
	notInVM(t)
	to := filepath.Join(shared, "hostile.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-trimpath", "-ldflags=-s -w", "-o", to, "./testdata/hostile")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(to)
	must(t, err)
	return b
}

// TestHostileComponent: one that lies, or does what it may not, ends with what it did, and costs
// its own instance alone.
func TestHostileComponent(t *testing.T) {
	e := openShell(t, Config{Module: hostileModule(t)})
	worker := func() int {
		s := <-e.seats
		defer func() { e.seats <- s }()
		<-s.ready
		return s.worker.cmd.Process.Pid
	}
	pid := worker()
	for script, want := range map[string]string{
		"return 0xfffffff8": "of a memory of", "return 0xffffffff": "not aligned", "unaligned": "not aligned to 8",
		"tag 2": "discriminant 2", "tag 255": "discriminant 255", "string at 0xfffffff0": "of a memory of", "string of 0xffffffff": "larger than",
		"string of 0x3000000": "of a memory of", "string not UTF-8": "stdout is not UTF-8", "files of 0xffffffff": "output-files has",
		"files of 100000": "", "files unaligned": "not aligned to 4", "files that are large": "larger than",
		"log at 0xfffffff8": "of a memory of", "log of 0x7fffffff": "larger than", "log not UTF-8": "a level is not UTF-8",
		"store at 0xfffffff8": "of a memory of", "store of 0xf0000000": "larger than", "store to 0xfffffff8": "of a memory of", "store to 2": "not aligned to 4",
		"fetch to 0xfffffff8": "of a memory of", "realloc beyond": "cabi_realloc returned", "realloc unaligned": "",
		"realloc small": "cabi_realloc returned", "realloc calls": "while the host may not be", "realloc traps": "unreachable",
		"post traps": "unreachable", "post calls": "while the host may not be", "nowhere": `calls "nothing" of "nowhere"`,
		"exit": "exited with 3", "panic": "",
	} {
		out, err := e.Execute(t.Context(), uncached(script))
		if err != nil {
			t.Errorf("%s: %v", script, err)
			continue
		}
		if out.Success() != (script == "realloc unaligned") || want != "" && !strings.Contains(out.Evidence, want) {
			t.Errorf("%s: exit %d, %s; want %q", script, out.ExitCode, out.Evidence, want)
		}
	}
	if out := run(t, e, uncached("code")); out.ExitCode != 255 {
		t.Errorf("exit code -1 is %d", out.ExitCode)
	}
	const line = `x\n[error] y\x1b[2J\u009b` + "\tz"
	if out := run(t, e, uncached("log lines")); string(out.Stderr.Inline) != "["+line+"] "+line+"\n" {
		t.Errorf("what is to be one line is %q", out.Stderr.Inline)
	}
	if out := run(t, e, uncached("fetch nothing")); !out.Success() {
		t.Errorf("what is not to be had: %+v", out)
	}
	for _, script := range []string{"output /etc/passwd x", "output ../x x", "output a/../../x x", "output a x", "output a " + strings.Repeat("0", 64)} {
		spec := uncached(script)
		if strings.HasPrefix(script, "output a ") {
			spec.Outputs = []string{"a"}
		}
		if out, err := e.Execute(t.Context(), spec); executor.KindOf(err) != executor.Invalid {
			t.Errorf("%s: %+v, %v", script, out, err)
		}
	}
	twice := uncached("twice " + cache.DigestOf([]byte("x")).Hash)
	twice.Workdir, twice.Outputs = t.TempDir(), []string{"a"}
	must(t, os.WriteFile(filepath.Join(twice.Workdir, "x"), []byte("x"), 0o600))
	if out, err := e.Execute(t.Context(), twice); executor.KindOf(err) != executor.Invalid || !strings.Contains(err.Error(), `"a" twice`) {
		t.Errorf("one output, twice: %+v, %v", out, err)
	}
	if out := run(t, e, uncached("fine")); string(out.Stdout.Inline) != "fine\n" || worker() != pid {
		t.Errorf("after all that: %+v, worker %d, was %d", out, worker(), pid)
	}
	spec := uncached("realloc spins")
	spec.Timeout = 200 * time.Millisecond
	if out := run(t, e, spec); out.Cause != executor.CauseTimedOut {
		t.Errorf("one that spins as the host allocates: %+v", out)
	}
	if out := run(t, e, uncached("fine")); string(out.Stdout.Inline) != "fine\n" {
		t.Errorf("after that: %+v", out)
	}
}
