//go:build unix

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
	// The test itself lies where only root may go.
	program := filepath.Join(dir, "test")
	b, err := os.ReadFile(self)
	must(t, err)
	must(t, os.WriteFile(program, b, 0o755))
	tmp := filepath.Join(dir, "tmp")
	must(t, os.Mkdir(tmp, 0o700))
	must(t, os.Chown(tmp, nobody, nobody))
	cmd := exec.Command(program, "-test.run=^TestConformance$", "-test.v")
	cmd.Dir, cmd.Env = tmp, append(os.Environ(), "TMPDIR="+tmp, "HOME="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestConformance/ClosedIsUnavailable") {
		t.Errorf("%v\n%s", err, out)
	}
}
