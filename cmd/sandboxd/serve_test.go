package main

import (
	"context"
	"encoding/json"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// makeStale leaves a socket that nobody serves.
func makeStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

func TestServeStartsAndStops(t *testing.T) {
	testutil.CheckLeaks(t)
	h := results(executor.TaskOutput{Cause: executor.CauseExited})
	d := startDaemon(t, h)
	info, err := os.Lstat(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	want := fs.FileMode(0o600)
	if _, err := user.LookupGroup(socketGroup); err == nil && os.Geteuid() == 0 {
		want = 0o660
	}
	if info.Mode().Perm() != want {
		t.Errorf("socket's mode is %v, want %v", info.Mode().Perm(), want)
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit %d: %s", code, d.log)
	}
	if _, err := os.Lstat(d.socket); err == nil {
		t.Error("the socket stayed")
	}
	if !h.isClosed() {
		t.Error("the executor was not closed")
	}
	left, _ := os.ReadDir(d.dir)
	if len(left) != 1 || left[0].Name() != "s.sock.lock" {
		t.Errorf("left behind: %v", left)
	}
}

func TestServeLogsALineForEachTask(t *testing.T) {
	fail := false
	d := startDaemon(t, &scripted{run: func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
		if fail {
			return nil, executor.Errorf(executor.Denied, "full is for root")
		}
		return &executor.TaskOutput{Cause: executor.CauseExited, ExitCode: 3, Cached: true}, nil
	}})
	d.client("", "run", "--name", "n", "--recipe", "r", "-c", "x")
	fail = true
	d.client("", "run", "--name", "n", "-c", "x")
	d.stop(t)
	var lines []map[string]any
	for l := range strings.Lines(d.log.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		if m["task"] == "n" {
			lines = append(lines, m)
		}
	}
	if len(lines) != 2 {
		t.Fatalf("%d lines: %s", len(lines), d.log)
	}
	for k, want := range map[string]any{"recipe": "r", "exit": 3.0, "cached": true, "cause": "exited", "level": "info"} {
		if lines[0][k] != want {
			t.Errorf("%s is %v, want %v", k, lines[0][k], want)
		}
	}
	for _, k := range []string{"duration", "caller_uid"} {
		if lines[0][k] == nil {
			t.Errorf("no %s", k)
		}
	}
	if lines[1]["kind"] != "denied" || lines[1]["error"] != "full is for root" {
		t.Errorf("%v", lines[1])
	}
}

func TestServeEndsTasksAfterTheGrace(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(file, []byte("shutdown_grace = \"1ms\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	h := &scripted{run: func(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
		close(begun)
		<-ctx.Done()
		return &executor.TaskOutput{Cause: executor.CauseCanceled}, nil
	}}
	d := startDaemon(t, h, "--config", file)
	code := make(chan int)
	go func() {
		c, _, _ := d.client("", "run", "-c", "x")
		code <- c
	}()
	<-begun
	if c := d.stop(t); c != 0 {
		t.Errorf("daemon's exit %d: %s", c, d.log)
	}
	if h.mu.Lock(); !h.refuses {
		t.Error("those that wait were not answered")
	}
	h.mu.Unlock()
	if c := <-code; c != exitSandboxd {
		t.Errorf("client's exit %d", c)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	d := startDaemon(t, results(executor.TaskOutput{Cause: executor.CauseExited}))
	e, _, errs := testEnv("serve", "--socket", d.socket)
	opened := false
	e.parts.openHost = func(context.Context, config, logrus.FieldLogger) (host, error) {
		opened = true
		return nil, errNotWanted
	}
	code := run(context.Background(), e)
	if code != 1 || !strings.Contains(errs.String(), "another daemon") {
		t.Errorf("exit %d, %s", code, errs)
	}
	if opened {
		t.Error("it opened the executor, which sweeps, before it knew to be alone")
	}
	if code, _, errs := d.client("", "ping"); code != 0 {
		t.Errorf("the first daemon is gone: %s", errs)
	}
}

var errNotWanted = executor.Errorf(executor.Internal, "must not be opened")

func TestServeAndWhatIsAtItsSocket(t *testing.T) {
	dir := socketDir(t)
	taken, file, stale := filepath.Join(dir, "taken"), filepath.Join(dir, "file"), filepath.Join(dir, "stale")
	l, err := net.Listen("unix", taken)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	makeStale(t, stale)
	for path, want := range map[string]string{taken: "another daemon answers", file: "is no socket"} {
		if _, err := claimSocket(path, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("it touched a file that is no socket")
	}
	c, err := claimSocket(stale, nil)
	if err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	log := logrus.New()
	log.SetOutput(newWatched())
	// What one left that was killed while it made its socket.
	if err := os.Mkdir(stale+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	makeStale(t, stale+".new/s")
	fresh, err := c.listen(log)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 6 { // three and their locks
		t.Errorf("beside the socket are %v, %v", left, err)
	}
	conn, err := net.DialTimeout("unix", stale, time.Second)
	if err != nil {
		t.Fatalf("nobody answers at what was stale: %v", err)
	}
	conn.Close()
	fresh.Close()
	if err := c.release(); err != nil {
		t.Fatal(err)
	}
}

func TestReleaseLeavesAnothersSocket(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	c, err := claimSocket(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(newWatched())
	l, err := c.listen(log)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	makeStale(t, path)
	if err := c.release(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's socket was removed: %v", err)
	}
}

// TestStatusOfAPool is the figures of all and of each.
func TestStatusOfAPool(t *testing.T) {
	s := executor.Status{Healthy: true, Active: 2, Queued: 7, Waited: 1500 * time.Microsecond, Executed: 8, Successful: 6, Failed: 2, CacheHits: 1, Members: []executor.MemberStatus{
		{Name: "fast", Healthy: true, Platforms: []string{"linux/amd64"}, MaxParallel: 4, Active: 2, Executed: 8, Successful: 6, Failed: 2, CacheHits: 1},
		{Name: "other", Fault: "it broke", Restarts: 3, MaxParallel: 1},
	}}
	want := `healthy, up 0s
active      2
queued      7 (1.5ms of late)
executed    8
successful  6 (1 from the cache)
failed      2
success     75.0 %

executor  platforms    at once  active  executed  successful            failed  restarts  
fast      linux/amd64  4        2       8         6 (1 from the cache)  2       0         healthy
other                  1        0       0         0 (0 from the cache)  0       3         takes no tasks: it broke
`
	if got := statusText(s); got != want {
		t.Errorf("%s", got)
	}
}

func TestAsking(t *testing.T) {
	d := startDaemon(t, results(executor.TaskOutput{Cause: executor.CauseExited}))
	for _, c := range []struct{ command, text, json string }{
		{"ping", "pong in ", `{"round_trip_ms":`},
		{"status", "executed    5\nsuccessful  4 (2 from the cache)", `"success_rate":0.8`},
		{"capabilities", "missing            io_weight: use cgroup v2", `"max_parallel":3`},
	} {
		if code, out, errs := d.client("", c.command); code != 0 || !strings.Contains(out, c.text) {
			t.Errorf("%s: exit %d, %q, %q", c.command, code, out, errs)
		}
		code, out, errs := d.client("", c.command, "--json")
		if code != 0 || !strings.Contains(out, c.json) || !json.Valid([]byte(out)) {
			t.Errorf("%s: exit %d, %q, %q", c.command, code, out, errs)
		}
	}
	d.stop(t)
	if code, _, errs := d.client("", "ping"); code != 1 || !strings.Contains(errs, "no daemon answers") {
		t.Errorf("exit %d, %q", code, errs)
	}
	if code, out, _ := d.client("", "ping", "--json"); code != 1 || !strings.HasPrefix(out, `{"error":{"kind":"unavailable"`) {
		t.Errorf("exit %d, %q", code, out)
	}
}

func TestDialErrorsSayWhatToDo(t *testing.T) {
	for err, want := range map[syscall.Errno]string{
		syscall.ENOENT: "systemctl start", syscall.ECONNREFUSED: "systemctl start", syscall.EACCES: "usermod -aG sandboxd", syscall.EMFILE: "dial /s",
	} {
		if got := dialError("/s", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", err)}); !strings.Contains(got.Error(), want) {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// TestSilentDaemon: a socket that is held for a daemon which does not come.
func TestSilentDaemon(t *testing.T) {
	path := filepath.Join(socketDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	e, _, _ := testEnv()
	if _, err := e.connect(ctx, path); executor.KindOf(err) != executor.Unavailable || !strings.Contains(err.Error(), "starting or stopping") {
		t.Errorf("%v", err)
	}
}
