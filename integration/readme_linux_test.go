package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// blocks are the contents of README.md's code blocks of one language.
func blocks(t *testing.T, language string) []string {
	t.Helper()
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for i, part := range strings.Split(string(b), "\n```") {
		if code, ok := strings.CutPrefix(part, language+"\n"); ok && i%2 == 1 {
			all = append(all, code)
		}
	}
	return all
}

// TestReadmeTour runs what the README tells to run, as it stands there.
func TestReadmeTour(t *testing.T) {
	if inVM() {
		t.Skip("the README is not in the guest")
	}
	rootAndClean(t)
	dir := newDir(t)
	if err := os.Mkdir(dir+"/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program(t), dir+"/bin/sandboxd"); err != nil {
		t.Fatal(err)
	}
	tour := blocks(t, "sh")
	if len(tour) < 5 {
		t.Fatalf("%d blocks", len(tour))
	}
	cmd := exec.Command("bash", "-eu", "-c", strings.Join(tour, "\n"))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	o := finish(t, cmd)
	if o.code != 0 {
		t.Fatalf("exit %d\n%s\n%s", o.code, o.stdout, o.stderr)
	}
	for _, want := range []string{
		"uid=1000(build)", "/build\n", "be\nsorted\nto\n", `"cached":false`,
		"exit status 124: timed out", "exit status 137: out of memory", "no network", "executed    ", "parallel tasks",
	} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("%q is not in\n%s", want, o.stdout)
		}
	}
	for _, want := range []string{"dropped 1 write: tmp", ", cached", "out of memory", "Network is unreachable", "Connection refused", "refused 1 connection: 192.0.2.1:80/tcp"} {
		if !strings.Contains(o.stderr, want) {
			t.Errorf("%q is not in\n%s", want, o.stderr)
		}
	}
}

func TestReadmeConfiguration(t *testing.T) {
	if inVM() {
		t.Skip("the README is not in the guest")
	}
	for _, text := range blocks(t, "toml") {
		file := filepath.Join(t.TempDir(), "sandboxd.toml")
		writeFile(t, file, text)
		cmd := exec.Command(program(t), "serve", "--check-config", "--config", file)
		if o := finish(t, cmd); o.code != 0 || o.stdout != "ok\n" {
			t.Errorf("%+v", o)
		}
	}
}
