package integration_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestSystemdActivation: the first client starts the daemon, and who may be one is for the
// group to say.
func TestSystemdActivation(t *testing.T) {
	d := underSystemd(t)
	if s := d.property("ActiveState"); s != "inactive" {
		t.Errorf("before the first client the service is %s", s)
	}
	st, err := os.Stat(unitSocket)
	if err != nil || st.Mode() != os.ModeSocket|0o660 || st.Sys().(*syscall.Stat_t).Uid != 0 || st.Sys().(*syscall.Stat_t).Gid == 0 {
		t.Errorf("the socket: %v, %v", st, err)
	}
	if o := d.run(d.dir, "--workdir", "none", "-c", "echo first"); o.code != 0 || o.stdout != "first\n" {
		t.Fatalf("the first task: %+v", o)
	}
	if s := d.property("ActiveState"); s != "active" {
		t.Errorf("after it the service is %s", s)
	}
	if s := d.property("StatusText"); !strings.Contains(s, "done") {
		t.Errorf("its status is %q", s)
	}
	if o := d.by("member", "run", "--workdir", "none", "-c", "id -un"); o.code != 0 || o.stdout != "build\n" {
		t.Errorf("a member of the group: %+v", o)
	}
	if o := d.by("stranger", "run", "--workdir", "none", "-c", "true"); o.code != 125 || !strings.Contains(o.stderr, "permission denied") {
		t.Errorf("a stranger: %+v", o)
	}
	// The socket is systemd's: it stays when the daemon goes, and brings it back.
	d.systemctl("stop", "sandboxd.service")
	if o := d.by("member", "ping"); o.code != 0 {
		t.Errorf("a client after the stop: %+v", o)
	}
}

func TestSystemdCheck(t *testing.T) {
	d := underSystemd(t)
	d.systemctl("start", "sandboxd.service")
	var found struct {
		Able     bool
		Findings []struct {
			Name, Detail string
			OK           bool
		}
	}
	o := finish(t, d.as(0, d.dir, "check", "--json"))
	if err := json.Unmarshal([]byte(o.stdout), &found); err != nil || o.code != 0 || !found.Able || len(found.Findings) < 8 {
		t.Fatalf("%v: %+v", err, o)
	}
	for _, f := range found.Findings {
		if !f.OK {
			t.Errorf("%s: %s", f.Name, f.Detail)
		}
	}
}

// TestSystemdWorkdirs: the unit's confinement hides no caller's directory from tasks, and
// its umask is not that of their files.
func TestSystemdWorkdirs(t *testing.T) {
	d := underSystemd(t)
	for _, parent := range []string{"/tmp", "/var/tmp", "/home", "/srv", "/opt", "/mnt"} {
		work, err := os.MkdirTemp(parent, "work")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(work); err != nil {
				t.Error(err)
			}
		})
		writeFile(t, work+"/in", parent)
		if err := os.Chown(work, memberUID, memberUID); err != nil {
			t.Fatal(err)
		}
		o := d.by("member", "run", "--workdir", work, "--output", "out", "-c", "mkdir out; cp in out/copy")
		b, err := os.ReadFile(work + "/out/copy")
		if o.code != 0 || err != nil || string(b) != parent {
			t.Errorf("below %s: %+v, %q, %v", parent, o, b, err)
			continue
		}
		for path, mode := range map[string]fs.FileMode{"/out": fs.ModeDir | 0o755, "/out/copy": 0o644} {
			if st, err := os.Stat(work + path); err != nil || st.Mode() != mode || st.Sys().(*syscall.Stat_t).Uid != memberUID {
				t.Errorf("%s below %s: %v, %v; want the member's, of mode %v", path, parent, st, err, mode)
			}
		}
	}
}

// TestSystemdLimits: each limit by the file of the kernel that holds it, and by what it does.
func TestSystemdLimits(t *testing.T) {
	d := underSystemd(t)
	d.systemctl("start", "sandboxd.service")
	pid := d.property("MainPID")
	client, alive := d.living(0, "while :; do :; done", "--memory", "64M", "--pids", "20", "--cpus", "0.2", "--io-weight", "50")
	var group string // of the task, however deep
	err := filepath.WalkDir(unitGroup+"/tasks", func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == "memory.max" {
			if b, _ := os.ReadFile(p); string(b) == "67108864\n" {
				group = filepath.Dir(p)
			}
		}
		return err
	})
	if err != nil || group == "" {
		t.Fatalf("no group below %s has the task's limit: %v", unitGroup, err)
	}
	// Of the processes, one is the sandbox's own.
	for file, want := range map[string]string{
		"memory.max": "67108864", "memory.swap.max": "0", "pids.max": "21", "cpu.max": "20000 100000", "io.weight": "default 50",
	} {
		b, err := os.ReadFile(filepath.Join(group, file))
		if got := strings.TrimSpace(string(b)); got != want && !(file == "memory.swap.max" && os.IsNotExist(err)) {
			t.Errorf("%s is %q, %v; want %q", file, got, err, want)
		}
	}
	throttled := 0
	for throttled == 0 {
		b, err := os.ReadFile(group + "/cpu.stat")
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			if n, ok := strings.CutPrefix(l, "nr_throttled "); ok {
				if throttled, err = strconv.Atoi(strings.TrimSpace(n)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := client.p.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	client.ended()
	gone(t, alive)

	for _, c := range []struct {
		args            []string
		cause, evidence string
	}{
		{[]string{"--memory", "64M", "-c", "head -c 1G /dev/zero | tail"}, "oom_killed", "oom_kill counter"},
		{[]string{"--pids", "20", "-c", "for i in $(seq 40); do sleep 100 & done; wait"}, "pids_limit", "pids controller refused"},
		{[]string{"-c", "head -c 40M /dev/zero | tail -c 30M | wc -c"}, "exited", ""},
	} {
		o := d.run(d.dir, append([]string{"--json", "--workdir", "none", "--timeout", "60s"}, c.args...)...)
		var r struct {
			Cause, Evidence string
			Usage           struct {
				PeakMemory int64 `json:"peak_memory_bytes"`
			}
		}
		if err := json.Unmarshal([]byte(o.stdout), &r); err != nil || r.Cause != c.cause || !strings.Contains(r.Evidence, c.evidence) {
			t.Errorf("%q: %v, %+v", c.args, err, o)
		}
		if c.cause == "exited" && (r.Usage.PeakMemory < 30<<20 || r.Usage.PeakMemory > 200<<20) {
			t.Errorf("a task of 30 MiB had a peak of %d bytes", r.Usage.PeakMemory)
		}
	}
	if now := d.property("MainPID"); now != pid {
		t.Errorf("with a task that ran out of memory the daemon went: pid %s and then %s", pid, now)
	}
}

// TestSystemdNetworks: what a task of each network policy reaches.
func TestSystemdNetworks(t *testing.T) {
	d := underSystemd(t)
	var can struct{ Networks []string }
	o := finish(t, d.as(0, d.dir, "capabilities", "--json"))
	if err := json.Unmarshal([]byte(o.stdout), &can); err != nil {
		t.Fatalf("%v: %+v", err, o)
	}
	far := newFarHost(t)
	const look = "grep -q " + uplink + ": /proc/net/dev && echo uplink; { echo >/dev/udp/127.0.0.1/9; } 2>/dev/null && echo loopback; " +
		"{ read line </dev/tcp/" + farAddress + "/8080; } 2>/dev/null && echo $line; true"
	for network, want := range map[string]string{
		"isolated": "", "loopback": "loopback\n", "full": "uplink\nloopback\nopen\n",
	} {
		if !slices.Contains(can.Networks, network) {
			t.Errorf("the daemon has no network %s", network)
		}
		if o := d.run(d.dir, "--workdir", "none", "--network", network, "--", "bash", "-c", look); o.code != 0 || o.stdout != want {
			t.Errorf("%s: %+v, want %q", network, o, want)
		}
	}
	if o := d.by("member", "run", "--workdir", "none", "--network", "full", "-c", "true"); o.code != 125 || !strings.Contains(o.stderr, "network") {
		t.Errorf("full for a member: %+v", o)
	}
	t.Run("controlled", func(t *testing.T) {
		testutil.Require(t, slices.Contains(can.Networks, "controlled"), "the daemon says that it has no controlled network")
		far.listen(t, 8081, "closed")
		script := "read line </dev/tcp/" + farAddress + "/8080; read other </dev/tcp/" + farAddress + "/8081; echo $line-$other; grep -q " + uplink + ": /proc/net/dev && echo uplink; true"
		o := d.run(d.dir, "--workdir", "none", "--network", "controlled", "--allow", farAddress+":8080/tcp", "--", "bash", "-c", script)
		if o.code != 0 || o.stdout != "open-\n" {
			t.Errorf("%+v, want the allowed port to be open alone", o)
		}
	})
}

const (
	uplink     = "up0"
	farAddress = "192.0.2.2"
)

// farHost is a network namespace beyond the machine's uplink.
type farHost struct{ path string }

// newFarHost makes one, with a server on port 8080.
func newFarHost(t *testing.T) farHost {
	t.Helper()
	ip := func(args string) {
		t.Helper()
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	ip("netns add far")
	t.Cleanup(func() {
		ip("netns del far") // and both ends of the cable
		if err := unix.Unmount("/run/netns", 0); err != nil {
			t.Error(err)
		}
	})
	ip("link add " + uplink + " type veth peer name far0 netns far")
	ip("addr add 192.0.2.1/24 dev " + uplink)
	ip("link set " + uplink + " up")
	ip("route add default via " + farAddress)
	ip("-n far addr add " + farAddress + "/24 dev far0")
	ip("-n far link set far0 up")
	f := farHost{"/run/netns/far"}
	f.listen(t, 8080, "open")
	return f
}

// listen has a server in there say a line to whoever connects.
func (f farHost) listen(t *testing.T, port int, line string) {
	t.Helper()
	made := make(chan error)
	var l net.Listener
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		ns, err := os.Open(f.path)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			l, err = net.Listen("tcp", fmt.Sprintf("%s:%d", farAddress, port))
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, line)
			c.Close()
		}
	}()
}

// TestSystemdDelegation: of the tree of control groups the daemon changes its own part alone.
func TestSystemdDelegation(t *testing.T) {
	d := underSystemd(t)
	// systemd gives controllers to whom they are delegated, and takes them back: so that
	// it has done so before, and goes on to, there is another such unit.
	const other = "story-delegated.service"
	if out, err := exec.Command("systemd-run", "--unit", other, "-p", "Delegate=yes", "sleep", "infinity").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { d.systemctl("stop", other) })
	before := outside(t)
	client, alive := d.living(0, "sleep 1000", "--memory", "64M", "--pids", "20", "--cpus", "0.5", "--io-weight", "50")
	during := outside(t)
	tree, err := exec.Command("systemd-cgls", "--no-pager", "-l", "-u", "sandboxd.service").CombinedOutput()
	if err != nil || !strings.Contains(string(tree), "daemon") || !strings.Contains(string(tree), "tasks") ||
		!strings.Contains(string(tree), "sleep 1000") || !strings.Contains(string(tree), "sandboxd serve") {
		t.Errorf("systemd-cgls: %v: %s", err, tree)
	}
	pid := d.property("MainPID")
	if b, err := os.ReadFile("/proc/" + pid + "/cgroup"); err != nil || string(b) != "0::/system.slice/sandboxd.service/daemon\n" {
		t.Errorf("the daemon is in %q, %v", b, err)
	}
	if err := client.p.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	client.ended()
	gone(t, alive)
	d.systemctl("stop", "sandboxd.service")
	for when, now := range map[string]map[string]string{"with a task": during, "after it": outside(t)} {
		for k, v := range now {
			if was, ok := before[k]; !ok || was != v {
				t.Errorf("%s, %s is %q, and was %q", when, k, v, was)
			}
		}
		for k := range before {
			if _, ok := now[k]; !ok {
				t.Errorf("%s, %s is gone", when, k)
			}
		}
	}
}

// outside is what can be set of all groups but the daemon's.
func outside(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir("/sys/fs/cgroup", func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case p == unitGroup:
			return fs.SkipDir
		case e.IsDir():
			all[p] = "a group"
			return nil
		}
		info, err := e.Info()
		// What has no bit for writing counts what happens.
		if err != nil || info.Mode()&0o200 == 0 || info.Mode()&0o400 == 0 {
			return err
		}
		switch name := e.Name(); {
		case name == "cgroup.procs", name == "cgroup.threads", strings.HasSuffix(name, ".pressure"), strings.HasSuffix(name, ".peak"), name == "memory.reclaim":
			return nil // who is in it, and counters that can be reset
		}
		b, err := os.ReadFile(p)
		if err != nil {
			b = []byte(err.Error())
		}
		all[p] = string(b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 100 {
		t.Fatalf("only %d settings of control groups were found", len(all))
	}
	return all
}

// TestSystemdWatchdog: a daemon that hangs is killed and started again, and whoever
// came meanwhile is served.
func TestSystemdWatchdog(t *testing.T) {
	d := underSystemd(t)
	d.dropIn("[Service]\nWatchdogSec=6s\n")
	client, alive := d.living(0, deaf)
	pid, err := strconv.Atoi(d.property("MainPID"))
	if err != nil {
		t.Fatal(err)
	}
	j := d.journal()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	o := d.run(d.dir, "--workdir", "none", "-c", "echo served") // by the next daemon
	if o.code != 0 || o.stdout != "served\n" {
		t.Errorf("%+v", o)
	}
	j.await(entry{"UNIT": "sandboxd.service", "MESSAGE": "sandboxd.service: Watchdog timeout"})
	gone(t, alive)
	if said, code := client.ended(); code != 125 {
		t.Errorf("the client of the daemon that hung: exit %d, %s", code, said)
	}
	if n, now := d.property("NRestarts"), d.property("MainPID"); n != "1" || now == strconv.Itoa(pid) {
		t.Errorf("restarts: %s, pid %d and then %s", n, pid, now)
	}
}

// TestSystemdRestart: tasks that end in time end well, the others are canceled, and who
// comes meanwhile waits for the next daemon.
func TestSystemdRestart(t *testing.T) {
	d := underSystemd(t)
	d.configureUnit("shutdown_grace = \"4s\"\nmax_parallel = 4\n")
	quick, quickAlive := d.living(0, "sleep 1; echo done >finished")
	slow, slowAlive := d.living(0, "sleep 1000")
	pid := d.property("MainPID")
	j := d.journal()
	restart := exec.Command("systemctl", "restart", "sandboxd.service")
	if err := restart.Start(); err != nil {
		t.Fatal(err)
	}
	j.await(entry{"_SYSTEMD_UNIT": "sandboxd.service", "MESSAGE": "stopping"})
	if o := d.by("member", "run", "--workdir", "none", "-c", "echo next"); o.code != 0 || o.stdout != "next\n" {
		t.Errorf("a client while the daemon stops: %+v", o)
	}
	if said, code := quick.ended(); code != 0 {
		t.Errorf("a task that had time to end: exit %d, %s", code, said)
	}
	if said, code := slow.ended(); code == 0 || !strings.Contains(said, "cancel") {
		t.Errorf("a task that had not: exit %d, %s", code, said)
	}
	gone(t, quickAlive)
	gone(t, slowAlive)
	if err := restart.Wait(); err != nil {
		t.Errorf("systemctl restart: %v", err)
	}
	if now := d.property("MainPID"); now == pid || d.property("Result") != "success" {
		t.Errorf("pid %s and then %s, result %s", pid, now, d.property("Result"))
	}
}

// TestSystemdKilled: of a daemon that is killed with its tasks nothing is left, and the next
// one works.
func TestSystemdKilled(t *testing.T) {
	d := underSystemd(t)
	work := newDir(t)
	writeFile(t, work+"/in", "x")
	if o := d.run(work, "--output", "o", "-c", "cp in o"); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	idle := d.left()
	client, alive := d.living(0, deaf)
	if n := len(d.left()); n <= len(idle) {
		t.Errorf("a task has nothing of the machine: %d things with it, %d without", n, len(idle))
	}
	d.systemctl("kill", "--kill-whom=main", "-s", "KILL", "sandboxd.service")
	gone(t, alive)
	if said, code := client.ended(); code != 125 || !strings.Contains(said, "daemon") {
		t.Errorf("the client: exit %d, %s", code, said)
	}
	if r := d.runJSON(work, "--output", "o", "-c", "cp in o"); !r.Cached {
		t.Errorf("after the restart: %+v", r)
	}
	if r := d.runJSON(work, "--cache", "off", "-c", "cat in"); r.Stdout != "x" {
		t.Errorf("after the restart: %+v", r)
	}
	if n := d.property("NRestarts"); n != "1" {
		t.Errorf("%s restarts", n)
	}
	for _, l := range d.left() {
		if !strings.HasPrefix(l, "process ") && !slices.Contains(idle, l) && !strings.Contains(l, "/tasks/") && !strings.HasPrefix(l, "layer ") && !strings.HasPrefix(l, "state ") {
			t.Errorf("left behind: %s", l) // the last task is still being unmade, and others are prepared; the rest are looked for at the end
		}
	}
}

// TestSystemdReload: what can follow the configuration does, the rest is told, and a file
// with an error changes nothing.
func TestSystemdReload(t *testing.T) {
	d := underSystemd(t)
	j := d.journal()
	full := func() outcome {
		t.Helper()
		return d.by("member", "run", "--workdir", "none", "--network", "full", "-c", "true")
	}
	if o := full(); o.code != 125 {
		t.Errorf("before: %+v", o)
	}
	pid := d.property("MainPID")
	reload := func(text string, wanted ...entry) {
		t.Helper()
		d.configureUnit(text)
		d.systemctl("reload", "sandboxd.service")
		for _, w := range wanted {
			w["_SYSTEMD_UNIT"] = "sandboxd.service"
			j.await(w)
		}
	}
	const debug = "log_level = \"debug\"\ncache_max_bytes = \"1GiB\"\n"
	rights := fmt.Sprintf("[[access]]\nuser = %d\nnetworks = [\"full\"]\n", memberUID)
	reload(debug+"max_parallel = 7\n"+rights,
		entry{"SANDBOXD_KEY": "cache_max_bytes", "PRIORITY": "6"}, entry{"SANDBOXD_KEY": "max_parallel", "PRIORITY": "4", "MESSAGE": "configuration changed, but this key takes a restart"},
		entry{"SANDBOXD_KEY": "log_level", "SANDBOXD_TO": "debug"}, entry{"SANDBOXD_KEY": "access"}, entry{"MESSAGE": "configuration reloaded"})
	if o := full(); o.code != 0 {
		t.Errorf("with the right: %+v", o)
	}
	reload(debug+"no_such_key = 1\n", entry{"PRIORITY": "3", "MESSAGE": "the configuration is not reloaded"})
	if o := full(); o.code != 0 {
		t.Errorf("after a file with an error: %+v", o)
	}
	reload(debug, entry{"MESSAGE": "configuration reloaded"})
	if o := full(); o.code != 125 {
		t.Errorf("without the right: %+v", o)
	}
	if now := d.property("MainPID"); now != pid || d.property("ActiveState") != "active" {
		t.Errorf("pid %s and then %s, %s", pid, now, d.property("ActiveState"))
	}
}

// TestSystemdJournal: a task's line can be found by its fields.
func TestSystemdJournal(t *testing.T) {
	d := underSystemd(t)
	j := d.journal()
	o := d.by("member", "run", "--workdir", "none", "--name", "a name PRIORITY=0", "--recipe", "recipe", "-c", "exit 3")
	if o.code != 3 {
		t.Fatalf("%+v", o)
	}
	e := j.await(entry{"_SYSTEMD_UNIT": "sandboxd.service", "MESSAGE": "task done"})
	for k, want := range map[string]string{
		"SANDBOXD_TASK": "a name PRIORITY=0", "SANDBOXD_RECIPE": "recipe", "SANDBOXD_EXIT": "3", "SANDBOXD_CAUSE": "exited", "SANDBOXD_CACHED": "false",
		"SANDBOXD_CALLER_UID": strconv.Itoa(memberUID), "PRIORITY": "6", "SYSLOG_IDENTIFIER": "sandboxd", "_COMM": "sandboxd",
	} {
		if e[k] != want {
			t.Errorf("%s is %v, want %q", k, e[k], want)
		}
	}
}
