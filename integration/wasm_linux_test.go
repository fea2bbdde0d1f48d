package integration_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestRunWasm runs tasks in WebAssembly with the program as it is, by no daemon, and as a user without rights where the
// test has any itself.
func TestRunWasm(t *testing.T) {
	if inVM() {
		t.Skip("nothing of it depends on the kernel, and an emulated machine compiles for minutes")
	}
	testutil.CheckLeaks(t)
	dir := newDir(t)
	home, work := filepath.Join(dir, "home"), filepath.Join(dir, "work")
	for _, d := range []string{home, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var who *syscall.SysProcAttr
	if os.Geteuid() == 0 {
		const nobody = 65534
		who = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		for _, d := range []string{home, work} {
			if err := os.Chown(d, nobody, nobody); err != nil {
				t.Fatal(err)
			}
		}
	}
	command := func(args ...string) (int, string, string) {
		t.Helper()
		cmd := exec.Command(program(t), args...)
		var out, errs bytes.Buffer
		cmd.Dir, cmd.Env, cmd.SysProcAttr, cmd.Stdout, cmd.Stderr = work, []string{"HOME=" + home}, who, &out, &errs
		if err := cmd.Run(); cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), out.String(), errs.String()
	}
	do := func(args ...string) (int, string, string) {
		t.Helper()
		return command(append([]string{"run", "--backend", "wasm"}, args...)...)
	}
	task := []string{"--output", "o", "-c", "echo out; echo err >&2; date -u +%Y | tr 2 3 >o; echo x >dropped"}
	code, out, errs := do(task...)
	if code != 0 || out != "out\n" || !strings.Contains(errs, "err\nsandboxd: ok in") || !strings.Contains(errs, "dropped 1 write: dropped") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, out, errs)
	}
	if b, err := os.ReadFile(filepath.Join(work, "o")); err != nil || string(b) != "3033\n" {
		t.Errorf("the output is %q, %v", b, err)
	}
	if code, _, errs := do(task...); code != 0 || !strings.Contains(errs, "cached)") {
		t.Errorf("again: exit %d, %q", code, errs)
	}
	if code, out, errs := do("--wasm-real-clock", "-c", "date -u +%Y"); code != 0 || out == "2022\n" {
		t.Errorf("with the real clock: exit %d, %q, %q", code, out, errs)
	}
	if code, _, errs := do("--", "false"); code != 1 || !strings.Contains(errs, "exit 1") {
		t.Errorf("false: exit %d, %q", code, errs)
	}
	if code, _, errs := do("--timeout", "100ms", "-c", "while :; do :; done"); code != 124 {
		t.Errorf("a loop: exit %d, %q", code, errs)
	}
	if code, _, errs := do("--network", "full", "-c", "true"); code != 125 || !strings.Contains(errs, "there is no network") {
		t.Errorf("network full: exit %d, %q", code, errs)
	}
	// Whoever can have no sandbox is told of this.
	if code, out, errs := command("check"); code != 1 || !strings.Contains(out, "MISSING  root") || !strings.Contains(out, "ok       task in WebAssembly: ran in") {
		t.Errorf("check: exit %d, %q, %q", code, out, errs)
	}
}
