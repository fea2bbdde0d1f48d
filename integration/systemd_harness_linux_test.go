package integration_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

const (
	unitSocket = "/run/sandboxd/sandboxd.sock"
	unitGroup  = "/sys/fs/cgroup/system.slice/sandboxd.service"
	unitConfig = "/etc/sandboxd/sandboxd.toml"
	// memberUID is in the group sandboxd, strangerUID is not.
	memberUID, strangerUID = 4711, 4712
)

var installed struct {
	once sync.Once
	err  error
}

// underSystemd is for a test of what `make install` installs, on a machine that is the
// test's own: its service has just been stopped, its socket listens. The test leaves
// nothing of it.
func underSystemd(t *testing.T) *daemon {
	t.Helper()
	if os.Getenv("SANDBOXD_SYSTEMD") != "1" {
		t.Skip("only in the test VM with systemd: make test-vm-systemd")
	}
	comm, err := os.ReadFile("/proc/1/comm")
	testutil.Require(t, err == nil && string(comm) == "systemd\n", "needs systemd as the first process")
	testutil.RequireRoot(t)
	installed.once.Do(func() { installed.err = install() })
	if installed.err != nil {
		t.Fatal(installed.err)
	}
	testutil.CheckLeaks(t)
	d := &daemon{t: t, dir: newDir(t), socket: unitSocket, state: "/var/lib/sandboxd"}
	d.systemctl("reset-failed", "sandboxd.service") // with which its starts are counted anew
	since := fmt.Sprintf("--since=@%d", time.Now().Unix())
	before := d.left()
	t.Cleanup(func() {
		d.systemctl("stop", "sandboxd.service")
		for _, l := range d.left() {
			if !slices.Contains(before, l) {
				t.Errorf("left behind: %s", l)
			}
		}
		if t.Failed() {
			out, _ := exec.Command("journalctl", "-u", "sandboxd.service", since, "--no-pager", "-o", "short-monotonic").CombinedOutput()
			t.Logf("the journal:\n%s", out)
		}
	})
	return d
}

// install does what an administrator does after make install.
func install() error {
	if _, err := os.Stat("/usr/local/lib/systemd/system/sandboxd.service"); err != nil {
		return err
	}
	// Without costs of its I/O, a disk has no shares for io.weight to divide.
	dev, err := os.ReadFile("/sys/block/vda/dev")
	if err != nil {
		return err
	}
	if err := os.WriteFile("/sys/fs/cgroup/io.cost.qos", []byte(strings.TrimSpace(string(dev))+" enable=1 ctrl=auto"), 0); err != nil {
		return err
	}
	for _, c := range [][]string{
		{"systemd-sysusers"},
		{"systemd-tmpfiles", "--create"},
		{"systemd-sysusers", "--inline", fmt.Sprintf("u member %d", memberUID), fmt.Sprintf("u stranger %d", strangerUID), "m member sandboxd"},
		{"systemctl", "daemon-reload"},
		{"systemctl", "enable", "--now", "sandboxd.socket"},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, out)
		}
	}
	return nil
}

func (d *daemon) systemctl(args ...string) string {
	d.t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		d.t.Errorf("systemctl %s: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// by is how a client's command of a named user ends, who has the groups that the machine
// knows the user to be in.
func (d *daemon) by(user string, args ...string) outcome {
	d.t.Helper()
	cmd := d.as(0, "/", args...)
	cmd.Path, cmd.Args = "/usr/bin/setpriv", append([]string{
		"setpriv", "--reuid", user, "--regid", user, "--init-groups", program(d.t)}, args...)
	return finish(d.t, cmd)
}

// configureUnit writes the daemon's configuration, for this test.
func (d *daemon) configureUnit(text string) {
	d.t.Helper()
	writeFile(d.t, unitConfig, text)
	d.t.Cleanup(func() {
		if err := os.RemoveAll(filepath.Dir(unitConfig)); err != nil {
			d.t.Error(err)
		}
	})
}

// dropIn changes the unit, for this test.
func (d *daemon) dropIn(text string) {
	d.t.Helper()
	const dir = "/run/systemd/system/sandboxd.service.d"
	writeFile(d.t, dir+"/story.conf", text)
	d.systemctl("daemon-reload")
	d.t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			d.t.Error(err)
		}
		d.systemctl("daemon-reload")
	})
}

// property of the service.
func (d *daemon) property(name string) string {
	d.t.Helper()
	return d.systemctl("show", "--value", "-p", name, "sandboxd.service")
}

// left is what the daemon and its tasks have of the machine.
func (d *daemon) left() (all []string) {
	d.t.Helper()
	_ = filepath.WalkDir(unitGroup, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			all = append(all, "cgroup "+p)
		}
		return nil
	})
	procs, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		d.t.Fatal(err)
	}
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), "sandboxd") {
			all = append(all, "process "+p)
		}
	}
	for _, f := range []string{"/proc/1/mountinfo", "/proc/1/net/dev"} {
		b, err := os.ReadFile(f)
		if err != nil {
			d.t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			if fields := strings.Fields(l); f == "/proc/1/mountinfo" {
				all = append(all, "mount "+fields[4])
			} else {
				all = append(all, "interface "+fields[0])
			}
		}
	}
	layers, err := os.ReadDir(filepath.Join(d.state, "sandboxes", "layers"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.t.Fatal(err)
	}
	for _, e := range layers {
		all = append(all, "layer "+e.Name())
	}
	return all
}

// entry is one of the journal's.
type entry map[string]any

// journal follows what the daemon logs from now on; await returns the first that fits.
type journal struct {
	t   testing.TB
	cmd *exec.Cmd
	r   *bufio.Scanner
}

func (d *daemon) journal() *journal {
	d.t.Helper()
	cursor, err := exec.Command("journalctl", "-n", "1", "-o", "export", "--output-fields=MESSAGE").Output()
	if err != nil {
		d.t.Fatal(err)
	}
	var after string
	for l := range strings.Lines(string(cursor)) {
		if v, ok := strings.CutPrefix(l, "__CURSOR="); ok {
			after = strings.TrimSpace(v)
		}
	}
	j := &journal{t: d.t, cmd: exec.Command("journalctl", "-f", "-o", "json", "--all", "--after-cursor", after)}
	out, err := j.cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := j.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	j.r = bufio.NewScanner(out)
	j.r.Buffer(nil, 1<<20)
	d.t.Cleanup(func() {
		_ = j.cmd.Process.Kill()
		_ = j.cmd.Wait()
	})
	return j
}

// await returns the next entry of which the fields have these values; all others until then are passed over.
func (j *journal) await(want entry) entry {
	j.t.Helper()
next:
	for j.r.Scan() {
		var e entry
		if err := json.Unmarshal(j.r.Bytes(), &e); err != nil {
			j.t.Fatalf("%v: %s", err, j.r.Bytes())
		}
		for k, v := range want {
			got, _ := e[k].(string)
			if !strings.HasPrefix(got, v.(string)) {
				continue next
			}
		}
		return e
	}
	j.t.Fatalf("the journal ended before %v: %v", want, j.r.Err())
	return nil
}
