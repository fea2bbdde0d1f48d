package wasm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// TestHeldUp: that a worker does not get to run is not the module's fault, and another is started.
func TestHeldUp(t *testing.T) {
	self, err := os.Executable()
	must(t, err)
	cfg := Config{Module: []byte(nothing), program: []string{self, "late", filepath.Join(t.TempDir(), "first")}, trying: time.Second}
	if out := run(t, openShell(t, cfg), uncached("x")); !out.Success() {
		t.Errorf("%+v", out)
	}
	cfg.program = []string{self, "late", ""}
	cfg.trying = 400 * time.Millisecond
	e := openShell(t, cfg)
	for range 2 {
		if out, err := e.Execute(t.Context(), uncached("x")); executor.KindOf(err) != executor.Unavailable || !strings.Contains(err.Error(), "held up") {
			t.Errorf("where each is: %+v, %v", out, err)
		}
	}
}
