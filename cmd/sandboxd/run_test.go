package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/local"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

func ptr[T any](v T) *T { return &v }

func TestRunMakesTheSpecOfItsFlags(t *testing.T) {
	var got *executor.TaskSpec
	d := startDaemon(t, &scripted{run: func(_ context.Context, s *executor.TaskSpec) (*executor.TaskOutput, error) {
		got = s
		return &executor.TaskOutput{Cause: executor.CauseExited}, nil
	}})
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "build.sh")
	if err := os.WriteFile(script, []byte("make\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, args, stdin string
		want              executor.TaskSpec
	}{
		{"argv in the current directory", "-- make -j4 --network x", "", executor.TaskSpec{Name: "make", Argv: []string{"make", "-j4", "--network", "x"}, Workdir: cwd}},
		{"script", "-c true", "", executor.TaskSpec{Name: "script", Script: "true", Workdir: cwd}},
		{"file", "-f " + script, "", executor.TaskSpec{Name: "build.sh", Script: "make\n", Workdir: cwd}},
		{"file of stdin", "-f -", "date", executor.TaskSpec{Name: "script", Script: "date", Workdir: cwd}},
		{"stdin is not given unasked", "-c cat", "secret", executor.TaskSpec{Name: "script", Script: "cat", Workdir: cwd}},
		{"stdin", "--stdin -c cat", "hello", executor.TaskSpec{Name: "script", Script: "cat", Stdin: []byte("hello"), Workdir: cwd}},
		{"no workdir", "--workdir none -c id", "", executor.TaskSpec{Name: "script", Script: "id"}},
		{"relative workdir", "--workdir . -c id", "", executor.TaskSpec{Name: "script", Script: "id", Workdir: cwd}},
		{"modes", "--workdir-mode direct --network loopback --cache refresh -c id", "", executor.TaskSpec{
			Name: "script", Script: "id", Workdir: cwd, WorkdirMode: "direct", Network: "loopback", Cache: "refresh"}},
		{"rules", "--network controlled --allow a.example:443 --allow [2001:db8::/32]:1-2/udp --audit -c id", "", executor.TaskSpec{
			Name: "script", Script: "id", Workdir: cwd, Network: executor.NetworkControlled, Allow: []string{"a.example:443", "[2001:db8::/32]:1-2/udp"}, Audit: true}},
		{"modes by their default's name", "--workdir-mode overlay --network isolated --cache use -c id", "", executor.TaskSpec{Name: "script", Script: "id", Workdir: cwd}},
		{"priority", "--priority -3 -c id", "", executor.TaskSpec{Script: "id", Name: "script", Workdir: cwd, Priority: -3}},
		{"limits", "--memory 512M --cpus 1.5 --pids 64 --io-weight 200 --timeout 90s -c id", "", executor.TaskSpec{
			Name: "script", Script: "id", Workdir: cwd, Timeout: 90 * time.Second,
			Limits: executor.ResourceLimits{MemoryBytes: 512 << 20, CPUQuotaUS: 150_000, PidsMax: 64, IOWeight: 200}}},
		{"no limits", "--memory unlimited --pids unlimited -c id", "", executor.TaskSpec{
			Name: "script", Script: "id", Workdir: cwd, Limits: executor.ResourceLimits{MemoryBytes: -1, PidsMax: -1}}},
		{"lists", "--output a,b --output c --env K=a=b,c --env E= --input /etc/x --input /a:b:/c -c id", "", executor.TaskSpec{
			Name: "script", Script: "id", Workdir: cwd, Outputs: []string{"a,b", "c"}, Env: map[string]string{"K": "a=b,c", "E": ""},
			Inputs: []executor.Input{{Host: "/etc/x"}, {Host: "/a:b", Sandbox: "/c"}}}},
		{"names", "--name n --recipe r -- /bin/true", "", executor.TaskSpec{Name: "n", Recipe: "r", Argv: []string{"/bin/true"}, Workdir: cwd}},
		{"flags after others", "-c id --quiet --name n", "", executor.TaskSpec{Name: "n", Script: "id", Workdir: cwd}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got = nil
			code, _, stderr := d.client(c.stdin, "run", strings.Fields(c.args)...)
			if code != 0 {
				t.Fatalf("exit %d: %s", code, stderr)
			}
			// On its way an empty list may become none.
			want, _ := json.Marshal(c.want)
			have, _ := json.Marshal(got)
			if string(have) != string(want) {
				t.Errorf("got  %s\nwant %s", have, want)
			}
		})
	}
}

func TestRunRefusesBadFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", "nothing to run"},
		{"make", "write -- before"},
		{"make -- x", "write -- before"},
		{"-c a -- b", "exclude each other"},
		{"-c a -f b", "exclude each other"},
		{"--command=", "script is empty"},
		{"-f /nonexistent/x", "no such file"},
		{"-f - --stdin", "both read standard input"},
		{"--bogus -c id", "unknown flag: --bogus"},
		{"--memory 12parsecs -c id", "--memory: \"12parsecs\" is not a size"},
		{"--memory -5 -c id", "is not a size"},
		{"--memory 0 -c id", "--memory: 0 leaves nothing"},
		{"--memory 1k -c id", "limits.memory_bytes: 1024 is out of range"},
		{"--cpus many -c id", "--cpus: \"many\""},
		{"--cpus NaN -c id", "--cpus: \"NaN\""},
		{"--cpus 0 -c id", "--cpus: \"0\""},
		{"--pids few -c id", "--pids: \"few\""},
		{"--pids 9000000 -c id", "limits.pids_max: 9000000 is out of range"},
		{"--priority 11 -c id", "priority: 11"},
		{"--io-weight 0 -c id", "--io-weight: 0"},
		{"--io-weight 20000 -c id", "limits.io_weight: 20000"},
		{"--timeout 5 -c id", "timeout"},
		{"--timeout -5s -c id", "--timeout -5s is not a time"},
		{"--timeout 0 -c id", "--timeout 0s is not a time"},
		{"--timeout 9999h -c id", "timeout: 9999h0m0s is out of range"},
		{"--network controlled --allow a.example:x -c id", "allow: rule \"a.example:x\": port \"x\" is not a number"},
		{"--allow a.example -c id", "allow: is given with network isolated"},
		{"--network wifi -c id", "network: \"wifi\" is unknown; use isolated"},
		{"--workdir-mode rw -c id", "workdir_mode: \"rw\" is unknown; use overlay"},
		{"--cache maybe -c id", "cache: \"maybe\" is unknown"},
		{"--workdir none --workdir-mode direct -c id", "name the directory"},
		{"--env HOME -c id", "--env HOME=VALUE"},
		{"--env =x -c id", "has no name"},
		{"--output /etc/passwd -c id", "relative to the workdir"},
		{"--output ../x -c id", "leaves the workdir"},
		{"--input :/x -c id", "names no file"},
		{"--input /x:/proc -c id", "the sandbox's own"},
		{"--socket /x --local -c id", "leave one of them out"},
		{"--local -c id", "needs root"},
		{"--socket /x --cache-dir /y -c id", "are for --local"},
		{"--backend vm -c id", "--backend \"vm\" is unknown"},
		{"--backend wasm --local -c id", "leave one of them out"},
		{"--backend wasm --socket /x -c id", "leave one of them out"},
		{"--backend wasm --component= -c id", "--component is empty"},
		{"--backend wasm --component /nowhere/x.wasm --cache-dir /y -c id", "component: stat /nowhere/x.wasm"},
		{"--backend auto --local -c id", "leave one of them out"},
		{"--backend auto --platform wasip1/wasm -c id", "leave one of them out"},
		{"--backend auto --component x.wasm -c id", "use it with --backend wasm"},
		{"--backend auto --wasm-real-clock -c id", "is for --backend wasm"},
		{"--platform windows -c id", "platforms: \"windows\" is no platform"},
		{"--component x.wasm -c id", "use it with --backend wasm"},
		{"--wasm-real-clock -c id", "is for --backend wasm"},
	} {
		t.Run(c.args, func(t *testing.T) {
			e, out, errs := testEnv(append([]string{"run"}, strings.Fields(c.args)...)...)
			if code := run(context.Background(), e); code != exitSandboxd {
				t.Errorf("exit %d", code)
			}
			if !strings.Contains(errs.String(), c.want) || out.Len() > 0 {
				t.Errorf("want %q in %q; stdout %q", c.want, errs, out)
			}
		})
	}
}

func TestRunExitStatusAndClosingLine(t *testing.T) {
	sec := 1230 * time.Millisecond
	usage := executor.Usage{CPUUser: 2 * time.Second, CPUSystem: 100 * time.Millisecond, PeakMemory: ptr(int64(34 << 20))}
	for _, c := range []struct {
		name string
		o    executor.TaskOutput
		code int
		line string
	}{
		{"ok", executor.TaskOutput{Cause: "exited", Duration: sec, Usage: usage, UndeclaredWrites: []string{"a", "b\x1b[2J", "c", "d"}, UndeclaredTotal: 9},
			0, `sandboxd: ok in 1.23s (cpu 2.10s, peak 34 MiB, run); dropped 9 writes: a, "b\x1b[2J", c, …`},
		{"cached", executor.TaskOutput{Cause: "exited", Cached: true, UndeclaredWrites: []string{"a"}}, 0, "sandboxd: ok in 0.00s (cpu 0.00s, cached); dropped 1 write: a"},
		{"exit", executor.TaskOutput{Cause: "exited", ExitCode: 7, Duration: 2 * time.Hour}, 7, "sandboxd: exit 7 after 2h0m0s (cpu 0.00s, run)"},
		{"missing", executor.TaskOutput{Cause: "exited", MissingOutputs: []string{"hello"}}, 125, "sandboxd: incomplete after 0.00s (cpu 0.00s, run); missing 1 output: hello"},
		{"timeout", executor.TaskOutput{Cause: "timed_out", ExitCode: 143, Duration: sec}, 124, "sandboxd: timed out after 1.23s (cpu 0.00s, run)"},
		{"signal", executor.TaskOutput{Cause: "signaled", ExitCode: 139, Signal: 11}, 139, "sandboxd: killed by signal 11 (segmentation fault) after 0.00s (cpu 0.00s, run)"},
		{"oom", executor.TaskOutput{Cause: "oom_killed", ExitCode: 137}, 137, "sandboxd: out of memory (raise --memory) after 0.00s (cpu 0.00s, run)"},
		{"oom of a grandchild", executor.TaskOutput{Cause: "oom_killed"}, 137, "sandboxd: out of memory (raise --memory) after 0.00s (cpu 0.00s, run)"},
		{"pids", executor.TaskOutput{Cause: "pids_limit", ExitCode: 2}, 2, "sandboxd: out of processes (raise --pids) after 0.00s (cpu 0.00s, run)"},
		{"pids and exit 0", executor.TaskOutput{Cause: "pids_limit"}, 1, "sandboxd: out of processes (raise --pids) after 0.00s (cpu 0.00s, run)"},
		{"output", executor.TaskOutput{Cause: "output_limit", ExitCode: 143}, 1, "sandboxd: wrote too much output after 0.00s (cpu 0.00s, run)"},
		{"daemon stopped", executor.TaskOutput{Cause: "canceled", ExitCode: 143}, 125, "sandboxd: canceled after 0.00s (cpu 0.00s, run)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := startDaemon(t, results(c.o))
			code, out, errs := d.client("", "run", "-c", "x")
			if code != c.code || errs != c.line+"\n" || out != "" {
				t.Errorf("exit %d, want %d\ngot  %q\nwant %q\nstdout %q", code, c.code, errs, c.line, out)
			}
			if _, _, errs := d.client("", "run", "--quiet", "-c", "x"); errs != "" {
				t.Errorf("--quiet said %q", errs)
			}
		})
	}
}

func TestRunTellsErrors(t *testing.T) {
	d := startDaemon(t, &scripted{run: func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
		return nil, &executor.Error{Kind: executor.Unsupported, Field: "network", Text: "controlled is not had here; use loopback"}
	}})
	code, _, errs := d.client("", "run", "-c", "x")
	if want := "sandboxd: network: controlled is not had here; use loopback\n"; code != 125 || errs != want {
		t.Errorf("exit %d, %q", code, errs)
	}
	code, out, errs := d.client("", "run", "--json", "-c", "x")
	if want := `{"error":{"kind":"unsupported","field":"network","text":"controlled is not had here; use loopback"}}` + "\n"; code != 125 || out != want || errs != "" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	_, out, _ = d.client("", "run", "--json", "--env", "x", "-c", "x")
	if !strings.HasPrefix(out, `{"error":{"kind":"invalid","field":"","text":"--env`) {
		t.Errorf("%q", out)
	}
}

func TestRunStreamsOutputOnce(t *testing.T) {
	d := startDaemon(t, &scripted{run: func(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
		f := executor.EventsFrom(ctx)
		f(executor.TaskEvent{Kind: executor.EventQueued})
		f(executor.TaskEvent{Kind: executor.EventNotice, Text: "it takes a while"})
		f(executor.TaskEvent{Kind: executor.EventStarted})
		f(executor.TaskEvent{Kind: executor.EventStdout, Data: []byte("out 1\n")})
		f(executor.TaskEvent{Kind: executor.EventStderr, Data: []byte("err\n")})
		f(executor.TaskEvent{Kind: executor.EventStdout, Data: []byte("out 2\n")})
		return &executor.TaskOutput{Cause: executor.CauseExited, Stdout: executor.Stream{Inline: []byte("out 1\nout 2\n")}, Stderr: executor.Stream{Inline: []byte("err\n")}}, nil
	}})
	code, out, errs := d.client("", "run", "--quiet", "-c", "x")
	if code != 0 || out != "out 1\nout 2\n" || errs != "err\n" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	code, out, errs = d.client("", "run", "-c", "x")
	if code != 0 || out != "out 1\nout 2\n" || !strings.HasPrefix(errs, "sandboxd: it takes a while\nerr\nsandboxd: ok") {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	code, out, errs = d.client("", "run", "--json", "-c", "x")
	if code != 0 || !strings.Contains(out, `"stdout":"out 1\nout 2\n"`) || strings.Count(out, "\n") != 1 || errs != "" {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
}

func TestRunPrintsCachedOutput(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", executor.InlineBytes/16*2)
	digest := executor.Digest{Hash: fmt.Sprintf("%x", sha256.Sum256([]byte(long))), Size: int64(len(long))}
	h := results(executor.TaskOutput{
		Cause: executor.CauseExited, Cached: true, Stderr: executor.Stream{Inline: []byte("warning\n")},
		Stdout: executor.Stream{Inline: []byte(long[:executor.InlineBytes]), Digest: digest, Truncated: true},
	})
	h.blobs = map[executor.Digest]string{digest: long}
	d := startDaemon(t, h)
	code, out, errs := d.client("", "run", "--quiet", "-c", "x")
	if code != 0 || out != long || errs != "warning\n" {
		t.Errorf("exit %d, %d bytes, %q", code, len(out), errs)
	}
	h.blobs = nil
	if code, _, errs = d.client("", "run", "-c", "x"); code != 125 || !strings.Contains(errs, "is gone") {
		t.Errorf("exit %d, %q", code, errs)
	}
}

func TestRunJSON(t *testing.T) {
	digest := executor.Digest{Hash: strings.Repeat("0f", 32), Size: 3}
	full := executor.TaskOutput{
		Signature:   "sig/1",
		OutputFiles: []executor.OutputFile{{Path: "a<b", Kind: executor.KindFile, Digest: digest, Mode: 0o755}},
		Stdout:      executor.Stream{Inline: []byte("hi\n"), Digest: digest}, Stderr: executor.Stream{Inline: []byte("\xff!"), Truncated: true},
		ExitCode: 139, Signal: 11, Cause: executor.CauseSignaled, Evidence: "wait status", Platform: executor.PlatformWasm, Duration: 1500 * time.Millisecond,
		Usage:            executor.Usage{CPUUser: time.Second, CPUSystem: 2 * time.Millisecond, PeakMemory: ptr(int64(5)), PeakPids: ptr(int64(6)), IORead: ptr(int64(7)), IOWrite: ptr(int64(8))},
		Applied:          executor.Applied{Network: "isolated", Limits: map[string]string{"memory.max": "1"}, Sandbox: []string{"pid"}},
		UndeclaredWrites: []string{"x"}, UndeclaredTotal: 1, MissingOutputs: []string{"y"},
		DeniedConnections: []executor.DeniedConnection{{Protocol: "tcp", Address: "192.0.2.1", Port: 80, Name: "a", Count: 2, Rule: "no"}}, DeniedTotal: 3,
		NetworkTraffic: []executor.RuleTraffic{{Rule: "b:1", Connections: 1, Sent: 2, Received: 3}}, NeededAllow: []string{"c:2"},
	}
	const empty = `{"signature":"","output_files":[],"stdout":"","stderr":"","exit_code":0,"duration_ms":0,"cause":"exited","cached":false,"platform":"",` +
		`"usage":{"cpu_user_ms":0,"cpu_system_ms":0},"applied":{"network":"","limits":{},"sandbox":[]},"undeclared_writes":[]}` + "\n"
	hash := strings.Repeat("0f", 32)
	golden := `{"signature":"sig/1","output_files":[{"path":"a<b","kind":"file","digest":{"hash":"` + hash + `","size":3},"mode":493}],` +
		`"stdout":"hi\n","stdout_digest":{"hash":"` + hash + `","size":3},"stderr":"` + "\uFFFD" + `!","stderr_base64":"/yE=","stderr_truncated":true,` +
		`"exit_code":139,"signal":11,"duration_ms":1500,"cause":"signaled","evidence":"wait status","cached":false,"platform":"wasip1/wasm",` +
		`"usage":{"cpu_user_ms":1000,"cpu_system_ms":2,"peak_memory_bytes":5,"peak_pids":6,"io_read_bytes":7,"io_write_bytes":8},` +
		`"applied":{"network":"isolated","limits":{"memory.max":"1"},"sandbox":["pid"]},"undeclared_writes":["x"],"undeclared_total":1,"missing_outputs":["y"],` +
		`"denied_connections":[{"protocol":"tcp","address":"192.0.2.1","port":80,"name":"a","count":2,"rule":"no"}],"denied_total":3,` +
		`"network_traffic":[{"rule":"b:1","connections":1,"sent_bytes":2,"received_bytes":3}],"needed_allow":["c:2"]}` + "\n"
	for want, o := range map[string]executor.TaskOutput{empty: {Cause: executor.CauseExited}, golden: full} {
		code, out, errs := startDaemon(t, results(o)).client("", "run", "--json", "-c", "x")
		if out != want || errs != "" || code != o.ExitCode {
			t.Errorf("exit %d, stderr %q\ngot  %swant %s", code, errs, out, want)
		}
	}
}

// Every field of a TaskOutput must be in the JSON, also those that come later.
func TestJSONHasEveryField(t *testing.T) {
	have := map[string]bool{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[taskJSON]()) {
		have[f.Name] = true
	}
	have["Duration"] = have["DurationMS"]
	for _, f := range reflect.VisibleFields(reflect.TypeFor[executor.TaskOutput]()) {
		if !have[f.Name] {
			t.Errorf("--json leaves out %s", f.Name)
		}
	}
}

func TestRunWithoutDaemon(t *testing.T) {
	dir := socketDir(t)
	stale := filepath.Join(dir, "stale")
	makeStale(t, stale)
	for _, path := range []string{filepath.Join(dir, "none"), stale} {
		e, _, errs := testEnv("run", "--socket", path, "-c", "x")
		e.root = true // --socket was given: no falling back to this process
		code := run(context.Background(), e)
		if code != 125 || !strings.Contains(errs.String(), "no daemon answers at "+path) || !strings.Contains(errs.String(), "sandboxd serve") {
			t.Errorf("exit %d, %q", code, errs)
		}
	}
}

func TestSocketOfTheEnvironment(t *testing.T) {
	d := startDaemon(t, results(executor.TaskOutput{Cause: executor.CauseExited, ExitCode: 3}))
	e, _, errs := testEnv("run", "-c", "x")
	e.getenv = func(k string) string {
		if k != socketEnv {
			return ""
		}
		return d.socket
	}
	if code := run(context.Background(), e); code != 3 {
		t.Errorf("exit %d, %s", code, errs)
	}
}

func TestRunLocal(t *testing.T) {
	h := results(executor.TaskOutput{Cause: executor.CauseExited, ExitCode: 4, Stdout: executor.Stream{
		Truncated: true, Digest: executor.Digest{Hash: "h", Size: 1}}})
	h.blobs = map[executor.Digest]string{{Hash: "h", Size: 1}: "whole"}
	e, out, errs := testEnv("run", "--local", "--cache-dir", "/elsewhere", "--quiet", "-c", "x")
	e.root = true
	var got config
	e.parts.openHost = func(_ context.Context, c config, _ logrus.FieldLogger) (host, error) {
		if got = c; filepath.Base(c.StateDir) == "0" {
			return nil, fmt.Errorf("another one: %w", local.ErrInUse)
		}
		return h, nil
	}
	if code := run(context.Background(), e); code != 4 || out.String() != "whole" {
		t.Errorf("exit %d, %q, %s", code, out, errs)
	}
	if !h.isClosed() || got.CacheDir != "/elsewhere" || got.StateDir != "/var/lib/sandboxd/local/1" {
		t.Errorf("closed %v, %+v", h.isClosed(), got)
	}
}

type brokenWriter struct{ err error }

func (b brokenWriter) Write([]byte) (int, error) { return 0, b.err }

func TestRunCancelsWhenItsOutputHasNoReader(t *testing.T) {
	d := startDaemon(t, &scripted{run: func(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
		executor.EventsFrom(ctx)(executor.TaskEvent{Kind: executor.EventStdout, Data: []byte("x")})
		<-ctx.Done()
		return &executor.TaskOutput{Cause: executor.CauseCanceled}, nil
	}})
	for err, want := range map[error]int{syscall.EPIPE: 141, io.ErrShortWrite: 125} {
		e, _, errs := testEnv("run", "--socket", d.socket, "-c", "x")
		e.stdout = brokenWriter{err}
		if code := run(context.Background(), e); code != want {
			t.Errorf("%v: exit %d, %s", err, code, errs)
		}
	}
}

// The program itself, with real signals: the first cancels the task and is
// answered only once the task is gone.
func TestSignalCancelsAndWaits(t *testing.T) {
	testutil.Require(t, runtime.GOOS != "windows", "needs signals between processes")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		gone := make(chan struct{})
		d := startDaemon(t, &scripted{run: func(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
			executor.EventsFrom(ctx)(executor.TaskEvent{Kind: executor.EventStdout, Data: []byte("begun\n")})
			<-ctx.Done()
			close(gone)
			return &executor.TaskOutput{Cause: executor.CauseCanceled, ExitCode: 143}, nil
		}})
		cmd := exec.Command(exe, "run", "--socket", d.socket, "-c", "x")
		cmd.Env = append(os.Environ(), "SANDBOXD_TEST_AS_PROGRAM=1")
		out, errs := newWatched(), newWatched()
		cmd.Stdout, cmd.Stderr = out, errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		out.await("begun\n")
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 128+int(sig) || !strings.Contains(errs.String(), "canceled after") {
			t.Errorf("%v: exit %d, %s", sig, code, errs)
		}
		select {
		case <-gone:
		default:
			t.Errorf("%v: ended before its task", sig)
		}
	}
}

// TestSignalBeforeATask: a signal ends the program while that waits for its standard input, or for a daemon's first answer.
func TestSignalBeforeATask(t *testing.T) {
	silent := filepath.Join(socketDir(t), "s.sock")
	l, err := net.Listen("unix", silent)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	in, writer := io.Pipe()
	defer writer.Close()
	for name, args := range map[string][]string{
		"script": {"run", "-f", "-"}, "standard input": {"run", "--stdin", "--", "cat"}, "daemon": {"run", "--socket", silent, "-c", "x"}, "status": {"status", "--socket", silent},
	} {
		e, _, errs := testEnv(args...)
		signals := make(chan os.Signal)
		e.signals, e.stdin = signals, in
		code := make(chan int)
		go func() { code <- run(context.Background(), e) }()
		signals <- os.Interrupt
		if c := <-code; c != 130 || errs.String() != "" {
			t.Errorf("%s: exit %d, %q", name, c, errs)
		}
	}
}

func TestSecondSignalDoesNotWait(t *testing.T) {
	begun, canceled, release := make(chan struct{}), make(chan struct{}), make(chan struct{})
	d := startDaemon(t, &scripted{run: func(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
		close(begun)
		<-ctx.Done()
		close(canceled)
		<-release
		return &executor.TaskOutput{Cause: executor.CauseCanceled}, nil
	}})
	e, _, _ := testEnv("run", "--socket", d.socket, "-c", "x")
	signals := make(chan os.Signal)
	e.signals = signals
	code := make(chan int)
	go func() { code <- run(context.Background(), e) }()
	<-begun
	signals <- os.Interrupt
	<-canceled
	signals <- os.Interrupt
	if c := <-code; c != 130 {
		t.Errorf("exit %d", c)
	}
	close(release)
}

func TestStatusLineGivesWayToOutput(t *testing.T) {
	out := newWatched()
	s := &screen{stdout: out, stderr: out, status: out, name: "n", began: time.Now(), state: "waiting", written: map[executor.EventKind]int64{}}
	s.tick()
	s.event(executor.TaskEvent{Kind: executor.EventStarted})
	s.event(executor.TaskEvent{Kind: executor.EventStdout, Data: []byte("half")})
	s.tick() // must not overwrite the half line
	s.event(executor.TaskEvent{Kind: executor.EventStdout, Data: []byte(" line\n")})
	s.tick()
	s.erase()
	s.erase()
	want := "\r\x1b[Ksandboxd: \"n\" waiting, 0s\r\x1b[Khalf line\n\r\x1b[Ksandboxd: \"n\" running, 0s\r\x1b[K"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out, want)
	}
}

func TestPrintableName(t *testing.T) {
	for in, want := range map[string]string{"a b": "a b", "a\nb\xff": "a?b?", strings.Repeat("é", 200): strings.Repeat("é", 128)} {
		if got := printableName(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
	if n := printableName("x" + strings.Repeat("é", 200)); len(n) > executor.MaxNameBytes || !strings.HasSuffix(n, "é") {
		t.Errorf("%d bytes: %q", len(n), n)
	}
}

func TestClosingLineOfANetwork(t *testing.T) {
	o := &executor.TaskOutput{
		Cause: executor.CauseExited, Duration: time.Second, DeniedTotal: 7, NeededAllow: []string{"a.example:443/tcp"},
		DeniedConnections: []executor.DeniedConnection{
			{Protocol: "tcp", Address: "2001:db8::1", Port: 80}, {Protocol: "dns", Name: "a\x1bb"}, {Protocol: "dns", Name: "evil", Address: "127.0.0.1"}, {Protocol: "icmp", Address: "192.0.2.1"},
		},
	}
	want := "sandboxd: ok in 1.00s (cpu 0.00s, run); refused 7 connections: [2001:db8::1]:80/tcp, \"a\\x1bb/dns\", evil (127.0.0.1)/dns, …\n" +
		"sandboxd: needed --allow a.example:443/tcp"
	if got := closingLine(o); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
