package wasm

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestUnprivileged runs the conformance suite as a user without any rights: all that the portable path asks for.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: TestConformance is as good")
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("", "wasm-nobody-") // t.TempDir is not for others
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	self, err := os.Executable()
	must(t, err)
	worker, err := builtWorker()
	must(t, err)
	files := map[string]string{"test": self, "worker": worker}
	env := append(os.Environ(), "SANDBOXD_TEST_WORKER="+filepath.Join(dir, "worker"))
	// The test itself lies where only root may go.
	for to, from := range files {
		b, err := os.ReadFile(from)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, to), b, 0o755))
	}
	tmp := filepath.Join(dir, "tmp")
	must(t, os.Mkdir(tmp, 0o700))
	must(t, os.Chown(tmp, nobody, nobody))
	cmd := exec.Command(filepath.Join(dir, "test"), "-test.run=^(TestConformance|TestWalls|TestWallsStand|TestWorkersLimits|TestStrangers)$", "-test.v")
	cmd.Dir, cmd.Env = tmp, append(env, "TMPDIR="+tmp, "HOME="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	last := "--- PASS: TestConformance/ClosedIsUnavailable"
	if inVM() {
		last = "--- PASS: TestWallsStand"
	}
	if err != nil || !strings.Contains(string(out), last) {
		t.Errorf("%v\n%s", err, out)
	}
}
