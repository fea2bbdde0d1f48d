package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRunWasmModule: what is no module says so. What runs is in package integration.
func TestRunWasmModule(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": "", "cannot be compiled": "no module", "exports neither _start": "\x00asm\x01\x00\x00\x00"} {
		file := filepath.Join(dir, "m.wasm")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		e, _, errs := testEnv("run", "--backend", "wasm", "--cache-dir", filepath.Join(dir, "cache"), "--component", file, "--workdir", "none", "-c", "true")
		if code := run(context.Background(), e); code != exitSandboxd || !strings.Contains(errs.String(), name) {
			t.Errorf("exit %d, %q; want %s", code, errs, name)
		}
	}
}
