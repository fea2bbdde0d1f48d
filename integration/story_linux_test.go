package integration_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestStoryBuildTwice(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	work := newDir(t)
	writeFile(t, work+"/in.txt", "b\na\n")
	args := []string{"--output", "out", "--name", "sorting", "-c", "mkdir out; sort in.txt >out/sorted; chmod 750 out/sorted; ln -s sorted out/link; echo scratch >junk; echo done"}

	first := d.run(work, args...)
	if first.code != 0 || first.stdout != "done\n" || !strings.Contains(first.stderr, "sandboxd: ok in ") || !strings.Contains(first.stderr, ", run)") ||
		!strings.Contains(first.stderr, "dropped 1 write: junk") {
		t.Fatalf("first: %+v", first)
	}
	check := func() {
		t.Helper()
		b, err := os.ReadFile(work + "/out/sorted")
		st, err2 := os.Stat(work + "/out/sorted")
		to, err3 := os.Readlink(work + "/out/link")
		if err != nil || err2 != nil || err3 != nil || string(b) != "a\nb\n" || st.Mode() != 0o750 || to != "sorted" {
			t.Errorf("output %q, %v, %q: %v, %v, %v", b, st, to, err, err2, err3)
		}
		if names, err := filepath.Glob(work + "/*"); err != nil || len(names) != 2 {
			t.Errorf("work directory holds %v, %v", names, err)
		}
	}
	check()
	if err := os.RemoveAll(work + "/out"); err != nil {
		t.Fatal(err)
	}
	second := d.run(work, args...)
	if second.code != 0 || second.stdout != "done\n" || !strings.Contains(second.stderr, ", cached") {
		t.Errorf("second: %+v", second)
	}
	check()
	writeFile(t, work+"/in.txt", "c\n")
	if third := d.runJSON(work, args...); third.Cached || third.Cause != "exited" || !slices.Equal(third.UndeclaredWrites, []string{"junk"}) || len(third.OutputFiles) != 3 {
		t.Errorf("third: %+v", third)
	}
	if s := d.status(); s.Active != 0 || s.Executed != 3 || s.Successful != 3 || s.Failed != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestStoryDamagedBlob: a disk that lies costs one more run, and the operator hears of it.
func TestStoryDamagedBlob(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	work := newDir(t)
	args := []string{"--output", "out", "-c", "echo of the disk >out"}
	if r := d.runJSON(work, args...); r.Cached || r.Cause != "exited" {
		t.Fatalf("%+v", r)
	}
	flipped := 0
	must(t, filepath.WalkDir(filepath.Join(d.dir, "cache"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil || string(b) != "of the disk\n" {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt([]byte{b[3] ^ 1}, 3)
			flipped++
		}
		return errors.Join(err, f.Close())
	}))
	if flipped != 1 {
		t.Fatalf("the output is in %d files of the cache", flipped)
	}
	must(t, os.Remove(work+"/out"))
	for _, cached := range []bool{false, true} {
		r := d.runJSON(work, args...)
		b, err := os.ReadFile(work + "/out")
		if r.Cached != cached || err != nil || string(b) != "of the disk\n" {
			t.Errorf("%+v, output %q, %v; want cached %v", r, b, err, cached)
		}
	}
	if log, err := d.end(syscall.SIGTERM); err != nil || strings.Count(log, "a blob of the cache was damaged") != 1 {
		t.Errorf("%v; the log: %s", err, log)
	}
}

func TestStoryExitStatus(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	for _, c := range []struct {
		args  []string
		code  int
		cause string
	}{
		{[]string{"-c", "exit 7"}, 7, "exited"},
		{[]string{"--timeout", "300ms", "-c", "sleep 100"}, 124, "timed_out"},
		{[]string{"-c", "kill -SEGV $$"}, 139, "signaled"},
		{[]string{"--memory", "64M", "-c", "head -c 1073741824 /dev/zero | tail"}, 137, "oom_killed"},
		{[]string{"--output", "gone", "-c", "true"}, 125, "exited"},
		{[]string{"--", "no-such-program"}, 127, "exited"},
		{[]string{"--", "/etc/passwd"}, 126, "exited"},
	} {
		o := d.run(d.dir, append([]string{"--workdir", "none"}, c.args...)...)
		if o.code != c.code {
			t.Errorf("%q: exit %d, want %d: %s", c.args, o.code, c.code, o.stderr)
		}
		if r := d.runJSON(d.dir, append([]string{"--workdir", "none"}, c.args...)...); r.Cause != c.cause {
			t.Errorf("%q: %+v, want %s", c.args, r, c.cause)
		}
	}
}

// TestStoryBadInput: what is wrong is named, and nothing has been made.
func TestStoryBadInput(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	writeFile(t, d.dir+"/file", "x")
	for args, field := range map[string]string{
		"--workdir /nowhere -c true":                                 "workdir",
		"--workdir file -c true":                                     "workdir",
		"--workdir none --input /nowhere -c true":                    "inputs",
		"--workdir none --input /dev/null:/n -c true":                "inputs",
		"--workdir none --input file:/proc/x -c true":                "inputs",
		"--workdir none --output ../x -c true":                       "outputs",
		"--workdir none --output /abs -c true":                       "outputs",
		"--workdir none --env A-B=c\x00 -c true":                     "env",
		"--workdir none --memory 1M -c true":                         "limits.memory_bytes",
		"--workdir none --pids 9000000 -c true":                      "limits.pids_max",
		"--workdir none --timeout 10000h -c true":                    "timeout",
		"--workdir none --network host -c true":                      "network",
		"--workdir none --cache maybe -c true":                       "cache",
		"--workdir none --workdir-mode copy -c true":                 "workdir_mode",
		"--workdir none --name a\nb -c true":                         "name",
		"--workdir none --network sometimes -c true":                 "network",
		"--workdir none --network controlled --allow host:0 -c true": "allow",
		"--workdir none --allow host:1 -c true":                      "allow",
		"--workdir none --io-weight 20000 -c true":                   "limits.io_weight",
		"--workdir none --cpus 0.001 -c true":                        "--cpus",
		"--workdir none --env NOVALUE -c true":                       "--env",
		"--workdir none":                                             "nothing to run",
		"--workdir none -c true -- true":                             "exclude each other",
		"--local --socket /x -c true":                                "local",
		"--workdir none --no-such-flag -c true":                      "no-such-flag",
		"--workdir none -f /nowhere":                                 "script",
		"--workdir none --cache-dir /x -c true":                      "--cache-dir",
		"--workdir none --recipe a\x1b[2Jb -c true":                  "recipe",
		"--workdir none --output a --output a -c true":               "outputs",
	} {
		if strings.Contains(args, "\x00") {
			continue // no argument of a program can hold it
		}
		o := d.run(d.dir, strings.Split(args, " ")...)
		if o.code != 125 || !strings.Contains(o.stderr, field) || o.stdout != "" || strings.Contains(o.stderr, "\x1b") {
			t.Errorf("%q: exit %d, %q; want 125, and %q named", args, o.code, o.stderr, field)
		}
	}
	if s := d.status(); s.Active != 0 || s.Successful != 0 {
		t.Errorf("status %+v", s)
	}
	if layers, err := filepath.Glob(d.state + "/sandboxes/layers/*"); err != nil || len(layers) != 0 {
		t.Errorf("left: %v, %v", layers, err)
	}
}

// living starts a task of its own that tells when it runs, and returns the client's
// process, a reader that ends with the task's last process, and the client's output. flags
// are further ones of run.
func (d *daemon) living(uid int, script string, flags ...string) (*clientProcess, *os.File) {
	d.t.Helper()
	work := newDir(d.t)
	if err := os.Chown(work, uid, uid); err != nil {
		d.t.Fatal(err)
	}
	alive, hold := fifo(d.t, work, uid)
	args := append([]string{"run", "--workdir-mode", "direct"}, flags...)
	cmd := d.as(uid, work, append(args, "-c", "exec 9>alive; echo up >&9; "+script)...)
	out, err := cmd.StderrPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	errs := make(chan string, 1)
	said := make([]byte, 3)
	go func() {
		b, _ := io.ReadAll(out)
		errs <- string(b)
		hold.Close() // a client that has ended has no task to wait for
	}()
	if _, err := io.ReadFull(alive, said); err != nil || string(said) != "up\n" {
		d.t.Fatalf("the task did not start: %q, %v: %s", said, err, <-errs)
	}
	hold.Close()
	return &clientProcess{cmd.Process, cmd.Wait, errs, work}, alive
}

type clientProcess struct {
	p    *os.Process
	wait func() error
	errs <-chan string
	dir  string // its work directory
}

// ended waits for the client, and returns what it said.
func (c *clientProcess) ended() (string, int) {
	said := <-c.errs
	err := c.wait()
	if err == nil {
		return said, 0
	}
	var code int
	if _, e := fmt.Sscanf(err.Error(), "exit status %d", &code); e != nil {
		code = -1
	}
	return said, code
}

// gone waits until no process of the task is left.
func gone(t testing.TB, alive *os.File) {
	t.Helper()
	if b, err := io.ReadAll(alive); err != nil || len(b) != 0 {
		t.Errorf("%q, %v", b, err)
	}
}

const deaf = "trap '' TERM; setsid sleep 1000 & sleep 1000 & wait"

func TestStoryInterruptedClient(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	client, alive := d.living(0, "sleep 1000")
	if err := client.p.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if said, code := client.ended(); code != 130 || !strings.Contains(said, "canceled") {
		t.Errorf("exit %d, %s", code, said)
	}
	gone(t, alive)
	if s := d.status(); s.Active != 0 || s.Failed != 1 {
		t.Errorf("%+v", s)
	}
}

func TestStoryKilledClient(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	other, otherAlive := d.living(4711, "sleep 2")
	client, alive := d.living(4711, deaf)
	if err := client.p.Kill(); err != nil {
		t.Fatal(err)
	}
	client.ended()
	gone(t, alive)
	if said, code := other.ended(); code != 0 {
		t.Errorf("another client's task: exit %d, %s", code, said)
	}
	gone(t, otherAlive)
}

func TestStoryKilledDaemon(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	work := newDir(t)
	writeFile(t, work+"/in", "x")
	d.run(work, "--output", "o", "-c", "cp in o")
	client, alive := d.living(0, deaf)
	if _, err := d.end(syscall.SIGKILL); err == nil {
		t.Error("a killed daemon ended well")
	}
	gone(t, alive)
	if said, code := client.ended(); code != 125 || !strings.Contains(said, "daemon") {
		t.Errorf("the client: exit %d, %s", code, said)
	}
	d.start()
	if r := d.runJSON(work, "--output", "o", "-c", "cp in o"); !r.Cached {
		t.Errorf("after the restart: %+v", r)
	}
	if r := d.runJSON(work, "--cache", "off", "-c", "cat in"); r.Stdout != "x" {
		t.Errorf("after the restart: %+v", r)
	}
	d.stop() // with which the last of them is unmade
	if layers, err := os.ReadDir(d.state + "/sandboxes/layers"); err != nil || len(layers) != 0 {
		t.Errorf("left: %v, %v", layers, err)
	}
}

// TestStorySecondDaemon: what is a daemon's own, another refuses, also where the first does not
// answer; and the first and its tasks notice nothing. The cache is for all.
func TestStorySecondDaemon(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	work := newDir(t)
	writeFile(t, work+"/in", "x")
	if o := d.run(work, "--output", "o", "-c", "cat in >o"); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	client, alive := d.living(0, "until [ -e in ]; do sleep 0.05; done; cat in >out")
	state, second := []string{"serve", "--config", d.config, "--socket", d.dir + "/t"}, filepath.Join(d.dir, "second")
	for _, stopped := range []bool{false, true} {
		if !stopped && inVM() {
			continue
		}
		if stopped {
			if err := d.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}
		pid := fmt.Sprint("process ", d.cmd.Process.Pid)
		for want, args := range map[string][]string{
			"another daemon has " + d.socket:        {"serve", "--config", d.config},
			"another daemon has " + d.dir + "/s":    {"serve", "--config", d.config, "--state-dir", second, "--cache-dir", second + "-cache"},
			"is in use by another sandboxd, " + pid: state,
			"choose another with --state-dir":       append(slices.Clone(state), "--cache-dir", second+"-cache"),
		} {
			if o := finish(t, d.as(0, d.dir, args...)); o.code != 1 || !strings.Contains(o.stderr, want) {
				t.Errorf("%q, the first stopped: %v: %+v, want %q", args, stopped, o, want)
			}
		}
		if o := finish(t, d.as(0, work, "run", "--local", "--config", d.config, "--output", "o", "-c", "cat in >o")); o.code != 0 || !strings.Contains(o.stderr, "cached") {
			t.Errorf("run --local, the daemon stopped: %v: %+v", stopped, o)
		}
	}
	if err := d.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	writeFile(t, client.dir+"/in", "y\n")
	if said, code := client.ended(); code != 0 {
		t.Errorf("the first daemon's task: exit %d, %s", code, said)
	}
	gone(t, alive)
	// Another state directory and the same cache.
	other := &daemon{t: t, dir: d.dir, socket: d.dir + "/t", state: second, config: second + ".toml"}
	b, err := os.ReadFile(d.config)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, other.config, strings.NewReplacer(fmt.Sprintf("%q", d.socket), fmt.Sprintf("%q", other.socket), fmt.Sprintf("%q", d.state), fmt.Sprintf("%q", second)).Replace(string(b)))
	other.start()
	defer other.stop()
	if strings.Contains(other.began, "killed daemon") {
		t.Errorf("it removed what is the first's: %s", other.began)
	}
	for _, d := range []*daemon{other, d} {
		if r := d.runJSON(work, "--output", "o", "-c", "cat in >o"); !r.Cached {
			t.Errorf("%+v", r)
		}
		if r := d.runJSON(work, "--cache", "off", "-c", "cat in"); r.Stdout != "x" {
			t.Errorf("%+v", r)
		}
	}
}

func TestStoryStoppedDaemon(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	client, alive := d.living(0, "sleep 1; echo done >finished")
	if log, err := d.end(syscall.SIGTERM); err != nil || !strings.Contains(log, `"msg":"stopped"`) {
		t.Errorf("%v: %s", err, log)
	}
	if said, code := client.ended(); code != 0 {
		t.Errorf("a task that had time to end: exit %d, %s", code, said)
	}
	gone(t, alive)
	if o := finish(t, d.as(0, d.dir, "ping")); o.code != 1 || !strings.Contains(o.stderr, "no daemon answers") {
		t.Errorf("ping: %+v", o)
	}
}

func TestStoryStoppedDaemonWithoutTime(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	// The last of a key in TOML would be an error, so the file is written anew.
	b, err := os.ReadFile(d.config)
	if err != nil {
		t.Fatal(err)
	}
	d.stop()
	writeFile(t, d.config, strings.Replace(string(b), `"10s"`, `"100ms"`, 1))
	d.start()
	client, alive := d.living(0, "sleep 1000")
	if _, err := d.end(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if said, code := client.ended(); code != 128+int(syscall.SIGTERM) && code != 125 || !strings.Contains(said, "cancel") {
		t.Errorf("exit %d, %s", code, said)
	}
	gone(t, alive)
}

// TestStoryOtherUsers: a user of the socket gets what is theirs.
func TestStoryOtherUsers(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	const uid = 4711
	work := newDir(t)
	if err := os.Chown(work, uid, uid); err != nil {
		t.Fatal(err)
	}
	secret := newDir(t)
	writeFile(t, secret+"/secret", "secret")
	if err := os.Chmod(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) outcome {
		return finish(t, d.as(uid, work, append([]string{"run"}, args...)...))
	}
	o := run("--output", "o", "-c", "echo mine >o; id -un")
	st, err := os.Stat(work + "/o")
	if o.code != 0 || o.stdout != "build\n" || err != nil || st.Sys().(*syscall.Stat_t).Uid != uid || st.Sys().(*syscall.Stat_t).Gid != uid {
		t.Errorf("%+v, %v, %v", o, st, err)
	}
	for _, c := range [][]string{
		{"--workdir", secret, "-c", "cat secret"},
		{"--input", secret + "/secret:/s", "-c", "cat /s"},
		{"--network", "full", "-c", "true"},
		{"--memory", "unlimited", "-c", "true"},
	} {
		if o := run(c...); o.code != 125 || o.stdout != "" || strings.Contains(o.stderr, ", run)") {
			t.Errorf("%q: %+v", c, o)
		}
	}
	// The same task of another user is not answered from this user's results.
	if err := os.Chmod(work, 0o777); err != nil {
		t.Fatal(err)
	}
	if r := d.runJSON(work, "--output", "o", "-c", "echo mine >o; id -un"); r.Cached {
		t.Errorf("root got another user's result: %+v", r)
	}
	for _, args := range [][]string{{"run", "--local", "-c", "true"}, {"serve", "--config", d.config}} {
		if o := finish(t, d.as(uid, work, args...)); o.code == 0 || !strings.Contains(o.stderr, "root") && !strings.Contains(o.stderr, "permission") && !strings.Contains(o.stderr, "in use") {
			t.Errorf("%q without root: %+v", args, o)
		}
	}
	if err := os.Chmod(d.socket, 0o600); err != nil {
		t.Fatal(err)
	}
	if o := run("-c", "true"); o.code != 125 || !strings.Contains(o.stderr, "no permission") {
		t.Errorf("a stranger: %+v", o)
	}
}

func TestStoryLocal(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	d.stop()
	work := newDir(t)
	args := []string{"run", "--local", "--config", d.config, "--output", "o", "-c", "echo $(hostname) >o; cat o"}
	for i, want := range []string{", run)", ", cached"} {
		if o := finish(t, d.as(0, work, args...)); o.code != 0 || o.stdout == "" || !strings.Contains(o.stderr, want) {
			t.Errorf("%d: %+v", i, o)
		}
	}
	// What the daemon of the same cache finds.
	d.start()
	if r := d.runJSON(work, args[4:]...); !r.Cached {
		t.Errorf("by the daemon: %+v", r)
	}
	// Beside it, and beside each other.
	var all []*exec.Cmd
	var said [3]strings.Builder
	for i := range said {
		cmd := d.as(0, work, "run", "--local", "--config", d.config, "-c", fmt.Sprintf("sleep 0.3; echo %d", i))
		cmd.Stdout, cmd.Stderr = &said[i], &said[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, cmd)
	}
	for i, cmd := range all {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%d of three: %v, %s", i, err, &said[i])
		}
	}
}

func TestStoryCheck(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	d.stop()
	if o := finish(t, d.as(0, d.dir, "check", "--config", d.config)); o.code != 0 {
		t.Errorf("%+v", o)
	}
	for _, args := range [][]string{{"version"}, {"cache", "stats", "--config", d.config}, {"cache", "verify", "--config", d.config}, {"cache", "gc", "--config", d.config}} {
		if o := finish(t, d.as(0, d.dir, args...)); o.code != 0 || o.stdout == "" {
			t.Errorf("%q: %+v", args, o)
		}
	}
}

// TestExampleClient runs the program of examples/client.
func TestExampleClient(t *testing.T) {
	rootAndClean(t)
	if os.Getenv(programEnv) != "" {
		t.Skip("the example is built only where the program is")
	}
	d := startDaemon(t, "")
	cmd := d.as(0, d.dir)
	cmd.Path = filepath.Join(filepath.Dir(program(t)), "client")
	cmd.Args = []string{"client", d.socket}
	if o := finish(t, cmd); o.code != 0 || !strings.HasPrefix(o.stdout, "hello from build\nbye\nexited with exit code 0") {
		t.Errorf("%+v", o)
	}
}
