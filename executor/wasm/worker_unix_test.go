//go:build unix

package wasm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/process"
)

// pidOf is the process of an Executor's only worker.
func pidOf(e *Executor) int {
	s := <-e.seats
	defer func() { e.seats <- s }()
	<-s.ready
	return s.worker.cmd.Process.Pid
}

// TestWorkerDies: one that dies with nothing to do is replaced without a word, and one that dies of its task
// tells of that.
func TestWorkerDies(t *testing.T) {
	e := openExecutor(t, Config{})
	pid := pidOf(e)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	awaitDeath(t, pid)
	if out := run(t, e, uncached("echo fine")); string(out.Stdout.Inline) != "fine\n" {
		t.Errorf("%+v", out)
	}
	pid = pidOf(e)
	ctx := executor.WithEvents(t.Context(), func(ev executor.TaskEvent) {
		if ev.Kind == executor.EventStdout {
			must(t, syscall.Kill(pid, syscall.SIGKILL))
		}
	})
	out, err := e.Execute(ctx, uncached("echo ready\nspin"))
	must(t, err)
	if out.Cause != executor.CauseSignaled || out.Signal != 9 || out.ExitCode != 137 || string(out.Stdout.Inline) != "ready\n" {
		t.Errorf("%+v", out)
	}
	if out := run(t, e, uncached("echo fine")); string(out.Stdout.Inline) != "fine\n" {
		t.Errorf("%+v", out)
	}
}

// TestWorkerDiesBeforeItBegins: another is started, once, for a task that has not begun either.
func TestWorkerDiesBeforeItBegins(t *testing.T) {
	own, err := builtWorker()
	must(t, err)
	died := filepath.Join(t.TempDir(), "died")
	first := []string{"/bin/sh", "-c", `mkdir "$0" 2>/dev/null && exit 9; exec "$@"`, died, own, process.Name}
	if out := run(t, openShell(t, Config{Module: []byte(nothing), program: first}), uncached("x")); !out.Success() {
		t.Errorf("%+v", out)
	}
	if _, err := os.Stat(died); err != nil {
		t.Error(err)
	}
	e := openShell(t, Config{Module: []byte(nothing), program: []string{"/bin/sh", "-c", "echo crashed >&2; exit 9"}})
	for range 10 { // what each said is told, whether it is read before or after its death
		if out, err := e.Execute(t.Context(), uncached("x")); executor.KindOf(err) != executor.Unavailable || !strings.Contains(err.Error(), "crashed") {
			t.Errorf("where each dies: %+v, %v", out, err)
		}
	}
}

// TestOrphans: a worker ends with its executor's process, however that ended and whatever the guest does.
func TestOrphans(t *testing.T) {
	if os.Getenv("SANDBOXD_TEST_ORPHAN") == "1" {
		e := openExecutor(t, Config{})
		pid := pidOf(e)
		ctx := executor.WithEvents(t.Context(), func(ev executor.TaskEvent) {
			if ev.Kind == executor.EventStdout {
				fmt.Println("worker", pid)
			}
		})
		_, _ = e.Execute(ctx, uncached("echo ready\nspin"))
		return
	}
	notInVM(t)
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self, "-test.run=^TestOrphans$")
	cmd.Env = append(os.Environ(), "SANDBOXD_TEST_ORPHAN=1", "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var pid int
	_, err = fmt.Fscanf(out, "worker %d\n", &pid)
	must(t, err)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	awaitDeath(t, pid)
}

// awaitDeath waits until a process is gone, or a zombie.
func awaitDeath(t *testing.T, pid int) {
	t.Helper()
	for {
		out, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
		if err != nil || strings.HasPrefix(strings.TrimSpace(string(out)), "Z") {
			return
		}
	}
}

// TestWaitingIsTold: a task whose worker takes long to load the module says so before it starts.
func TestWaitingIsTold(t *testing.T) {
	own, err := builtWorker()
	must(t, err)
	gate := filepath.Join(t.TempDir(), "gate")
	must(t, syscall.Mkfifo(gate, 0o600))
	e := openExecutor(t, Config{program: []string{"/bin/sh", "-c", `read x <"$0"; exec "$@"`, gate, own, process.Name}})
	var events []string
	ctx := executor.WithEvents(t.Context(), func(ev executor.TaskEvent) {
		events = append(events, string(ev.Kind))
		if ev.Kind == executor.EventNotice {
			if !strings.Contains(ev.Text, "compiled") {
				t.Errorf("%q", ev.Text)
			}
			must(t, os.WriteFile(gate, []byte("\n"), 0)) // it waits for nothing else
		}
	})
	out, err := e.Execute(ctx, uncached("echo fine"))
	must(t, err)
	if got := strings.Join(events, " "); !out.Success() || got != "queued notice started stdout" {
		t.Errorf("%s; %+v", got, out)
	}
}
