package integration_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
	"github.com/sandboxd/sandboxd/netpolicy/netpolicytest"
)

// daemon is a running sandboxd serve.
type daemon struct {
	t                  testing.TB
	dir, socket, state string
	config             string
	in                 *netpolicytest.Namespace // its network; nil is the machine's
	cmd                *exec.Cmd
	log                *bufio.Reader
	began              string      // what it logged until it was ready
	rest               chan []byte // what it logged after it was ready
}

// startDaemon starts sandboxd with a configuration and directories of its own; more is
// further configuration. It ends with the test.
func startDaemon(t testing.TB, more string) *daemon {
	t.Helper()
	return startDaemonIn(t, nil, more)
}

// startDaemonIn is startDaemon with a network to be in.
func startDaemonIn(t testing.TB, in *netpolicytest.Namespace, more string) *daemon {
	t.Helper()
	dir := newDir(t)
	d := &daemon{
		t: t, in: in, dir: dir, socket: filepath.Join(dir, "s"), state: filepath.Join(dir, "state"), config: filepath.Join(dir, "sandboxd.toml"),
	}
	if !strings.Contains(more, "warm = ") {
		more = "warm = 0\n" + more // what waits is there when nothing runs
	}
	text := fmt.Sprintf("socket = %q\nstate_dir = %q\ncache_dir = %q\nmax_parallel = 4\nshutdown_grace = \"10s\"\n%s\n[limits]\ncgroup_parent = %q\n",
		d.socket, d.state, filepath.Join(dir, "cache"), more, testutil.CgroupParent())
	if err := os.WriteFile(d.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d.start()
	t.Cleanup(d.stop)
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	d.cmd = exec.Command(program(d.t), "serve", "--config", d.config)
	r, err := d.cmd.StderrPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if d.in == nil {
		must(d.t, d.cmd.Start())
	} else {
		d.in.Do(d.t, d.cmd.Start)
	}
	d.log = bufio.NewReader(r)
	var said strings.Builder
	for {
		l, err := d.log.ReadString('\n')
		said.WriteString(l)
		if strings.Contains(l, `"msg":"ready"`) {
			d.began = said.String()
			break
		}
		if err != nil {
			d.t.Fatalf("the daemon did not start: %v: %s, %v", err, said.String(), d.cmd.Wait())
		}
	}
	// The socket is open to root alone until an administrator gives it a group.
	if err := os.Chmod(d.socket, 0o666); err != nil {
		d.t.Fatal(err)
	}
	d.rest = make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(d.log) // ends with the process
		d.rest <- b
	}()
}

// reconfigure replaces a piece of the configuration of a daemon that does not run.
func (d *daemon) reconfigure(old, with string) {
	d.t.Helper()
	b, err := os.ReadFile(d.config)
	if err != nil {
		d.t.Fatal(err)
	}
	if !strings.Contains(string(b), old) {
		d.t.Fatalf("%q is not in the configuration", old)
	}
	writeFile(d.t, d.config, strings.Replace(string(b), old, with, 1))
}

// end sends sig and returns what the daemon logged and how it ended.
func (d *daemon) end(sig syscall.Signal) (log string, err error) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.t.Fatal(err)
	}
	var b []byte
	select {
	case b = <-d.rest:
	case <-time.After(3 * time.Minute):
		d.t.Fatalf("the daemon, or who holds its log, does not end: %s", processes())
	}
	err = d.cmd.Wait()
	d.cmd = nil
	return string(b), err
}

// processes tells of all that there are, and what each waits for.
func processes() string {
	var b strings.Builder
	all, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	for _, p := range all {
		stat, _ := os.ReadFile(p + "/stat")
		wchan, _ := os.ReadFile(p + "/wchan")
		stack, _ := os.ReadFile(p + "/stack")
		log, _ := os.Readlink(p + "/fd/2")
		f := strings.SplitAfterN(string(stat), " ", 5)
		if len(stack) == 0 { // the kernel's own
			continue
		}
		fmt.Fprintf(&b, "%s%s log %s, in %s\n", strings.Join(f[:min(4, len(f))], ""), "", log, wchan)
		if len(f) > 2 && strings.TrimSpace(f[2]) != "S" {
			fmt.Fprintf(&b, "%s", stack)
		}
	}
	return b.String()
}

func (d *daemon) stop() {
	if d.cmd == nil {
		return
	}
	if log, err := d.end(syscall.SIGTERM); err != nil {
		d.t.Errorf("the daemon: %v; it said: %s", err, log)
	}
}

// outcome is how a client's run ended.
type outcome struct {
	code           int
	stdout, stderr string
}

// as makes a client's command of user uid, in dir.
func (d *daemon) as(uid int, dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(program(d.t), args...)
	cmd.Dir = dir
	cmd.Env = []string{"SANDBOXD_SOCKET=" + d.socket, "PATH=" + os.Getenv("PATH")}
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	return cmd
}

func finish(t testing.TB, cmd *exec.Cmd) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	code := cmd.ProcessState.ExitCode()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		code = -int(ws.Signal())
	}
	return outcome{code, stdout.String(), stderr.String()}
}

// run is sandboxd run as root in dir.
func (d *daemon) run(dir string, args ...string) outcome {
	d.t.Helper()
	return finish(d.t, d.as(0, dir, append([]string{"run"}, args...)...))
}

// result is the JSON of run --json.
type result struct {
	Cause, Stdout, Evidence string
	ExitCode                int `json:"exit_code"`
	Cached                  bool
	Platform                string
	Signature               string
	OutputFiles             []struct{ Path string } `json:"output_files"`
	UndeclaredWrites        []string                `json:"undeclared_writes"`
	MissingOutputs          []string                `json:"missing_outputs"`
	Applied                 struct {
		Network string
		Sandbox []string
	} `json:"applied"`
	Denied      []executor.DeniedConnection `json:"denied_connections"`
	DeniedTotal int64                       `json:"denied_total"`
	Traffic     []executor.RuleTraffic      `json:"network_traffic"`
	Needed      []string                    `json:"needed_allow"`
	Error       struct{ Kind, Field, Text string }
}

func (d *daemon) runJSON(dir string, args ...string) result {
	d.t.Helper()
	o := d.run(dir, append([]string{"--json"}, args...)...)
	var r result
	if err := json.Unmarshal([]byte(o.stdout), &r); err != nil {
		d.t.Fatalf("%v: %+v", err, o)
	}
	return r
}

// status is the number of tasks that run or wait, and those that did.
func (d *daemon) status() (s struct {
	Active             int `json:"active_tasks"`
	Queued             int `json:"queued_tasks"`
	Executed           int `json:"total_executed"`
	Successful, Failed int
}) {
	d.t.Helper()
	o := finish(d.t, d.as(0, d.dir, "status", "--json"))
	if err := json.Unmarshal([]byte(o.stdout), &s); err != nil {
		d.t.Fatalf("%v: %+v", err, o)
	}
	return s
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// fifo is how a test learns that a task lives, and when it is gone: the task, in direct
// mode, holds the writing end. Until hold is closed there is a writer besides.
func fifo(t testing.TB, dir string, uid int) (r, hold *os.File) {
	t.Helper()
	p := filepath.Join(dir, "alive")
	if err := syscall.Mkfifo(p, 0o666); err != nil {
		t.Fatal(err)
	}
	hold, err := os.OpenFile(p, os.O_RDWR, 0) // waits for nobody
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hold.Close() })
	if r, err = os.Open(p); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	// Whoever is not the work directory's owner is nobody in the sandbox.
	if err := os.Chown(p, uid, uid); err != nil {
		t.Fatal(err)
	}
	return r, hold
}
