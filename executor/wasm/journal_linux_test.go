package wasm

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/executor/internal/statedir"
)

// TestKilledWhilePlacing: what an executor that is killed was putting into a work directory is removed by its successor.
func TestKilledWhilePlacing(t *testing.T) {
	const dirVar = "SANDBOXD_TEST_PLACING"
	if dir := os.Getenv(dirVar); dir != "" {
		e := openExecutor(t, Config{StateDir: filepath.Join(dir, "state")})
		spec := uncached("files /build/out/f 500")
		spec.Script = "mkdir /build/out\n" + spec.Script
		spec.Workdir, spec.Outputs = filepath.Join(dir, "work"), []string{"out"}
		for {
			run(t, e, spec)
		}
	}
	notInVM(t)
	dir := t.TempDir()
	work := filepath.Join(dir, "work")
	must(t, os.Mkdir(work, 0o755))
	self, err := os.Executable()
	must(t, err)
	worker, err := builtWorker()
	must(t, err)
	cmd := exec.Command(self, "-test.run=^TestKilledWhilePlacing$")
	cmd.Env = append(os.Environ(), dirVar+"="+dir, "TMPDIR="+t.TempDir(), "SANDBOXD_TEST_WORKER="+worker)
	must(t, cmd.Start())
	half := func() (n int) {
		entries, err := os.ReadDir(work)
		must(t, err)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".sandboxd-") {
				n++
			}
		}
		return n
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for half() == 0 {
		select {
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		default:
		}
	}
	must(t, cmd.Process.Kill())
	<-ended
	t.Logf("%d names were half in place", half())
	e := openExecutor(t, Config{StateDir: filepath.Join(dir, "state")})
	if n := half(); n != 0 {
		t.Errorf("%d names are left", n)
	}
	if _, err := New(Config{Cache: e.cfg.Cache, StateDir: e.cfg.StateDir}); !errors.Is(err, statedir.ErrInUse) {
		t.Errorf("a second executor: %v", err)
	}
	spec := uncached("mkdir /build/out\nwrite /build/out/f 3")
	spec.Workdir, spec.Outputs = work, []string{"out"}
	if out := run(t, e, spec); !out.Success() || len(out.OutputFiles) != 2 {
		t.Errorf("%+v", out)
	}
}
