package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRunWasm runs tasks in WebAssembly, by no daemon and with no rights.
func TestRunWasm(t *testing.T) {
	dir := t.TempDir()
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	do := func(args ...string) (int, string, string) {
		t.Helper()
		e, out, errs := testEnv(append([]string{"run", "--backend", "wasm", "--cache-dir", filepath.Join(dir, "cache"), "--workdir", work}, args...)...)
		code := run(context.Background(), e)
		return code, out.String(), errs.String()
	}
	code, out, errs := do("--output", "o", "-c", "echo out; echo err >&2; date -u +%Y >o; exit 0")
	if code != 0 || out != "out\n" || !strings.HasPrefix(errs, "err\nsandboxd: ok in") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, out, errs)
	}
	if b, err := os.ReadFile(filepath.Join(work, "o")); err != nil || string(b) != "2022\n" {
		t.Errorf("the output is %q, %v", b, err)
	}
	if code, _, errs := do("--output", "o", "-c", "echo out; echo err >&2; date -u +%Y >o; exit 0"); code != 0 || !strings.Contains(errs, "cached)") {
		t.Errorf("again: exit %d, %q", code, errs)
	}
	if code, out, errs := do("--wasm-real-clock", "-c", "date -u +%Y"); code != 0 || out == "2022\n" {
		t.Errorf("with the real clock: exit %d, %q, %q", code, out, errs)
	}
	if code, _, errs := do("--", "false"); code != 1 || !strings.Contains(errs, "exit 1") {
		t.Errorf("false: exit %d, %q", code, errs)
	}
	if code, _, errs := do("--network", "full", "-c", "true"); code != exitSandboxd || !strings.Contains(errs, "there is no network") {
		t.Errorf("network full: exit %d, %q", code, errs)
	}
	bad := filepath.Join(dir, "bad.wasm")
	if err := os.WriteFile(bad, []byte("no module"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := do("--component", bad, "-c", "true"); code != exitSandboxd || !strings.Contains(errs, "cannot be compiled") {
		t.Errorf("what is no module: exit %d, %q", code, errs)
	}
}
