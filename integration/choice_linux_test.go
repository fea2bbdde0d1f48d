package integration_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestPoolOfTwoPlatforms: of a daemon with sandboxes and with WebAssembly, each task goes to what it is for, and to the other
// only if it may.
func TestPoolOfTwoPlatforms(t *testing.T) {
	skipInVM(t)
	rootAndClean(t)
	d := startDaemon(t, "[[executor]]\nname = \"boxes\"\nmax_parallel = 2\n[[executor]]\nname = \"modules\"\nbackend = \"wasm\"\nmax_parallel = 1\n")
	const native, wasm = executor.PlatformNative, executor.PlatformWasm
	signatures := map[string]string{}
	for _, c := range []struct {
		platforms []string
		more      []string
		want      string
	}{
		{nil, nil, native}, {[]string{native}, nil, native}, {[]string{wasm}, nil, wasm}, {[]string{native, wasm}, nil, native}, {[]string{wasm, native}, nil, wasm},
		{[]string{"plan9/mips", wasm}, nil, wasm},
		// What WebAssembly has not.
		{[]string{wasm, native}, []string{"--pids", "50"}, native},
	} {
		args := append(slices.Clone(c.more), "--workdir", "none", "-c", "uname -m")
		for _, p := range c.platforms {
			args = append([]string{"--platform", p}, args...)
		}
		if len(c.platforms) == 2 { // they were put in front
			args[1], args[3] = args[3], args[1]
		}
		r := d.runJSON(d.dir, args...)
		if r.Cause != "exited" || r.Platform != c.want || (r.Stdout == "wasm32\n") != (c.want == wasm) {
			t.Errorf("for %q: %+v; want it on %s", c.platforms, r, c.want)
		}
		if s, ok := signatures[c.want]; ok && s != r.Signature {
			t.Errorf("for %q: signature %s, and another's is %s", c.platforms, r.Signature, s)
		}
		signatures[c.want] = r.Signature
	}
	if signatures[native] == signatures[wasm] {
		t.Errorf("one signature for two platforms: %v", signatures)
	}
	if r := d.runJSON(d.dir, "--platform", wasm, "--network", "full", "-c", "true"); r.Error.Kind != string(executor.Unsupported) || !strings.Contains(r.Error.Text, "there is no network") {
		t.Errorf("what it has not, and may not go elsewhere for: %+v", r)
	}
	if r := d.runJSON(d.dir, "--platform", "plan9/mips", "-c", "true"); r.Error.Kind != string(executor.Unsupported) || r.Error.Field != "platforms" || !strings.Contains(r.Error.Text, native+", "+wasm) {
		t.Errorf("for none that is there: %+v", r)
	}
	if o := finish(t, d.as(0, d.dir, "status")); !strings.Contains(o.stdout, "\nboxes     "+native) || !strings.Contains(o.stdout, "\nmodules   "+wasm) {
		t.Errorf("%s", o.stdout)
	}
	// The configuration may say that tasks which name none go to WebAssembly.
	d.stop()
	d.reconfigure("[[executor]]", fmt.Sprintf("platforms = [%q, %q]\n[[executor]]", wasm, native))
	d.start()
	if r := d.runJSON(d.dir, "--workdir", "none", "-c", "uname -m"); r.Platform != wasm || !r.Cached || r.Signature != signatures[wasm] {
		t.Errorf("with platforms in the configuration: %+v", r)
	}
}

func skipInVM(t *testing.T) {
	if inVM() {
		t.Skip("nothing of it depends on the kernel, and an emulated machine compiles for minutes")
	}
}

// plain is a place for a daemon that makes no sandboxes.
type plain struct {
	t       *testing.T
	dir     string
	program string
	who     *syscall.SysProcAttr
	under   []string // what executes it; nil is nothing
}

// newPlain makes it, of a user without rights. That one owns code.
func newPlain(t *testing.T, program, code string) *plain {
	p := &plain{t: t, dir: newDir(t), program: program}
	must(t, os.Mkdir(p.path("work"), 0o755))
	if os.Geteuid() != 0 {
		return p
	}
	p.who = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: alice, Gid: alice}}
	for _, d := range []string{p.dir, p.path("work"), code} {
		must(t, os.Chown(d, alice, alice))
	}
	return p
}

func (p *plain) path(name string) string { return filepath.Join(p.dir, name) }

func (p *plain) configure(more string) {
	writeFile(p.t, p.path("c.toml"), fmt.Sprintf("socket = %q\nstate_dir = %q\ncache_dir = %q\nmax_parallel = 1\n%s\n", p.path("s"), p.path("state"), p.path("cache"), more))
}

func (p *plain) command(args ...string) *exec.Cmd {
	argv := append(append(slices.Clone(p.under), p.program), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.SysProcAttr = p.path("work"), p.who
	cmd.Env = []string{"SANDBOXD_SOCKET=" + p.path("s"), "HOME=" + p.dir, "PATH=" + os.Getenv("PATH")}
	return cmd
}

func (p *plain) run(args ...string) outcome {
	p.t.Helper()
	return finish(p.t, p.command(append([]string{"run"}, args...)...))
}

func (p *plain) runJSON(args ...string) (r result) {
	p.t.Helper()
	o := p.run(append([]string{"--json"}, args...)...)
	if err := json.Unmarshal([]byte(o.stdout), &r); err != nil {
		p.t.Fatalf("%v: %+v", err, o)
	}
	return r
}

// serve starts a daemon, and returns what it logged until it was ready, and what stops it.
func (p *plain) serve(args ...string) (began string, stop func()) {
	p.t.Helper()
	cmd := p.command(append([]string{"serve", "--config", p.path("c.toml")}, args...)...)
	r, err := cmd.StderrPipe()
	must(p.t, err)
	must(p.t, cmd.Start())
	log := bufio.NewReader(r)
	var said strings.Builder
	for {
		l, err := log.ReadString('\n')
		said.WriteString(l)
		if strings.Contains(l, `"msg":"ready"`) {
			break
		}
		if err != nil {
			p.t.Fatalf("the daemon did not start: %v: %s, %v", err, said.String(), cmd.Wait())
		}
	}
	rest := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(log) // ends with the process
		rest <- b
	}()
	return said.String(), func() {
		p.t.Helper()
		must(p.t, cmd.Process.Signal(syscall.SIGTERM))
		b := <-rest
		if err := cmd.Wait(); err != nil {
			p.t.Errorf("the daemon: %v; it said: %s", err, b)
		}
	}
}

// refused wants a daemon that does not start, and says why.
func (p *plain) refused(why string, args ...string) {
	p.t.Helper()
	o := finish(p.t, p.command(append([]string{"serve", "--config", p.path("c.toml")}, args...)...))
	if o.code != 1 || !strings.Contains(o.stderr, why) {
		p.t.Errorf("serve %q: %+v; want %q", args, o, why)
	}
}

// works is a daemon's day.
func (p *plain) works() {
	p.t.Helper()
	must(p.t, os.WriteFile(p.path("work/words"), []byte("b\na\n"), 0o644))
	task := []string{"--output", "sorted", "-c", "sort words >sorted; echo out"}
	o := p.run(task...)
	if o.code != 0 || o.stdout != "out\n" || !strings.Contains(o.stderr, "wasip1/wasm, run)") {
		p.t.Errorf("%+v", o)
	}
	if b, err := os.ReadFile(p.path("work/sorted")); err != nil || string(b) != "a\nb\n" {
		p.t.Errorf("the output is %q, %v", b, err)
	}
	if o := p.run(task...); o.code != 0 || o.stdout != "out\n" || !strings.Contains(o.stderr, "wasip1/wasm, cached)") {
		p.t.Errorf("again: %+v", o)
	}
	if o := p.run("-c", "exit 7"); o.code != 7 {
		p.t.Errorf("exit 7: %+v", o)
	}
	if o := p.run("--timeout", "100ms", "-c", "while :; do :; done"); o.code != 124 {
		p.t.Errorf("a loop: %+v", o)
	}
	r := p.runJSON("--platform", executor.PlatformNative, "-c", "true")
	if r.Error.Kind != string(executor.Unsupported) || r.Error.Field != "platforms" {
		p.t.Errorf("what needs a sandbox: %+v", r)
	}
	if o := finish(p.t, p.command("capabilities")); o.code != 0 || !strings.Contains(o.stdout, "platforms          wasip1/wasm\n") {
		p.t.Errorf("%+v", o)
	}
}

// TestWithoutSandboxes: where none can be had, a daemon starts and a task runs in WebAssembly if the configuration or the caller
// allows that, and else neither does.
func TestWithoutSandboxes(t *testing.T) {
	skipInVM(t)
	testutil.CheckLeaks(t)
	code := newDir(t) // compiled once
	must(t, os.Chmod(code, 0o700))
	t.Run("user", func(t *testing.T) {
		withoutSandboxes(newPlain(t, program(t), code), code, "id-mapped mounts need root")
	})
	t.Run("user, no cgo", func(t *testing.T) {
		withoutSandboxes(newPlain(t, programWithoutCgo(t), code), code, "built without cgo")
	})
	t.Run("root of a container", func(t *testing.T) {
		testutil.RequireRoot(t)
		_, err := exec.LookPath("setpriv")
		testutil.Require(t, err == nil, "setpriv takes root's capabilities away: apt-get install util-linux")
		p := &plain{t: t, dir: newDir(t), program: program(t), under: []string{"setpriv", "--bounding-set=-all", "--inh-caps=-all"}}
		must(t, os.Mkdir(p.path("work"), 0o755))
		own := newDir(t)
		must(t, os.Chmod(own, 0o700))
		withoutSandboxes(p, own, "mounts need CAP_SYS_ADMIN")
	})
}

func withoutSandboxes(p *plain, code, why string) {
	wasm := fmt.Sprintf("[wasm]\ncode_dir = %q", code)
	p.configure(wasm)
	// Nobody allows it.
	p.refused(why)
	p.configure("[[executor]]\nname = \"a\"\n[[executor]]\nname = \"b\"\nbackend = \"wasm\"\n" + wasm)
	p.refused(why)
	p.configure(wasm)
	if o := p.run("-c", "true"); o.code != 125 || !strings.Contains(o.stderr, "no daemon answers") {
		p.t.Errorf("no daemon: %+v", o)
	}
	if o := p.run("--local", "--config", p.path("c.toml"), "-c", "true"); o.code != 125 || !strings.Contains(o.stderr, "root") && !strings.Contains(o.stderr, why) {
		p.t.Errorf("--local: %+v", o)
	}
	if _, err := os.Lstat(p.path("s")); !errors.Is(err, os.ErrNotExist) {
		p.t.Errorf("a socket is left: %v", err)
	}
	// The caller does.
	auto := []string{"--backend", "auto", "--config", p.path("c.toml"), "--cache-dir", p.path("cache")}
	o := p.run(append(auto, "-c", "uname -m")...)
	if o.code != 0 || o.stdout != "wasm32\n" || !strings.Contains(o.stderr, "runs in WebAssembly: ") || !strings.Contains(o.stderr, "wasip1/wasm, run)") {
		p.t.Errorf("--backend auto: %+v", o)
	}
	// The configuration does.
	p.configure("backend = \"auto\"\n" + wasm)
	began, stop := p.serve()
	if !strings.Contains(began, "its tasks run in WebAssembly") || !strings.Contains(began, why) {
		p.t.Errorf("the log does not say so: %s", began)
	}
	p.works()
	if o := p.run(append(auto, "-c", "uname -m")...); o.code != 0 || strings.Contains(o.stderr, "runs in WebAssembly: ") || !strings.Contains(o.stderr, "wasip1/wasm, ") {
		p.t.Errorf("--backend auto at a daemon: %+v", o)
	}
	stop()
	// It is all that it has, by a flag.
	p.configure(wasm)
	began, stop = p.serve("--backend", "wasm", "--cache-dir", p.path("another"))
	if strings.Contains(began, why) {
		p.t.Errorf("nobody asked for sandboxes: %s", began)
	}
	p.works()
	stop()
}

// programWithoutCgo is the program as it is built where there is no C compiler.
func programWithoutCgo(t *testing.T) string {
	t.Helper()
	_, err := exec.LookPath("go")
	testutil.Require(t, err == nil, "needs Go to build the program")
	to := filepath.Join(newDir(t), "sandboxd")
	cmd := exec.Command("go", "build", "-o", to, "../cmd/sandboxd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return to
}
