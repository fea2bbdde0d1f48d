// Package integration tests sandboxd as its users have it: the program that is
// installed, on real sockets, kernels and files.
package integration_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
	"github.com/sandboxd/sandboxd/sandbox"
)

// programEnv names a sandboxd that is built already, for where nothing can be built.
const programEnv = "SANDBOXD_PROGRAM"

var built struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	if err := sandbox.Seal(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if built.dir != "" {
		if err := os.RemoveAll(built.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// program is the path of sandboxd, where every user may execute it.
func program(t testing.TB) string {
	t.Helper()
	if p := os.Getenv(programEnv); p != "" {
		return p
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "sandboxd-"); built.err != nil {
			return
		}
		if built.err = os.Chmod(built.dir, 0o755); built.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-tags", "runc_nocriu", "-o", built.dir, "../cmd/sandboxd", "../examples/client")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatalf("build sandboxd: %v", built.err)
	}
	return filepath.Join(built.dir, "sandboxd")
}

// inVM reports whether this is the test VM, which has little more than BusyBox and is slow.
func inVM() bool { return os.Getenv("SANDBOXD_VM") == "1" }

// newDir is a temporary directory that every user may pass through.
func newDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// rootAndClean is for a test that needs root, and leaves nothing on the machine.
func rootAndClean(t testing.TB) {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
}
