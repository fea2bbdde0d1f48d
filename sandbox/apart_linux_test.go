package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// TestZygoteStaysSmall: what is asked of a zygote leaves nothing in its memory, of which each first process has a copy.
func TestZygoteStaysSmall(t *testing.T) {
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector's own memory grows")
	}
	f := newFixture(t)
	rss := func() int {
		pid, err := f.host.zygote.now.process.Pid()
		must(t, err)
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		must(t, err)
		_, after, _ := strings.Cut(string(b), "VmRSS:")
		n, err := strconv.Atoi(strings.Fields(after)[0])
		must(t, err)
		return n
	}
	const many = 1500
	var before int
	for i := range many {
		ids, err := f.host.ranges.take()
		must(t, err)
		line := fmt.Sprintf("0 %d %d\n", ids.base, rangeSize)
		n, err := f.host.zygote.clone(f.host, first.Request{UIDs: line, GIDs: line})
		must(t, err)
		must(t, errors.Join(n.sock.Close(), awaitExit(n.pidfd), n.pidfd.Close(), n.of.release(), f.host.ranges.give(ids)))
		if i == many/3 {
			before = rss()
		}
	}
	if after := rss(); after > before+4<<10 {
		t.Errorf("%d kB after %d sandboxes, %d kB after %d", before, many/3, after, many)
	}
}

func awaitExit(pidfd *os.File) error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, -1)
		if err != unix.EINTR {
			return err
		}
	}
}

// TestSessionKeyringIsItsOwn: on that of a zygote's all sandboxes would meet.
func TestSessionKeyringIsItsOwn(t *testing.T) {
	f := newFixture(t)
	x, err := f.host.templates.make(f.root, nil)
	must(t, err)
	defer func() { must(t, x.close()) }()
	for range 2 {
		b, err := f.host.prepare(x, kindOf{network: netpolicy.Isolated}, limits.Limits{})
		must(t, err)
		defer func() { must(t, b.undoAll()) }()
		p := newProgram()
		name := p.room(256)
		p.call("session keyring", unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, uint64(1<<64-3), 0) // KEY_SPEC_SESSION_KEYRING
		p.ignore(unix.ENOSYS)
		id := p.keep()
		p.call("describe it", unix.SYS_KEYCTL, unix.KEYCTL_DESCRIBE, id, name, 256)
		p.ignore(unix.ENOSYS)
		n := p.keep()
		p.do("tell", first.OpSend, int(first.Ready), name, n, 0, 0)
		text, files, err := b.run(p, first.Ready)
		must(t, err)
		first.CloseAll(files)
		if strings.Contains(text, "zygote") {
			t.Errorf("the session keyring is %q", text)
		}
	}
}

// TestTemplateThatFailed: what kept one task from its root does not keep all later ones.
func TestTemplateThatFailed(t *testing.T) {
	f := newFixture(t)
	fifo := filepath.Join(f.root.Dir(), "fifo")
	must(t, unix.Mkfifo(fifo, 0o644))
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must(t, err)
	defer null.Close()
	spec := Spec{Root: f.root, Shared: true, Argv: []string{"/bin/true"}, Stdio: [3]*os.File{null, null, null}}
	if _, err := f.host.Start(context.Background(), spec); err == nil {
		t.Fatal("a root with a FIFO was taken")
	}
	must(t, os.Remove(fifo))
	if r := f.run(Spec{Shared: true, Argv: []string{"true"}}); r.Code != 0 {
		t.Errorf("%+v %s", r.Exit, r.err)
	}
	must(t, f.host.Forget(f.root))
}

// TestWarmHasNoLimitsOfOthers: whatever limits a prepared sandbox has, it gets the task's.
func TestWarmHasNoLimitsOfOthers(t *testing.T) {
	f := newFixture(t)
	k := &kind{used: time.Now()}
	key := kindOf{root: f.root, network: netpolicy.Isolated}
	must(t, f.host.ready(key, k))
	b, err := f.host.prepare(k.template, key, limits.Limits{})
	must(t, err)
	must(t, b.group.Limit(limits.Limits{MemoryBytes: 64 << 20, PidsMax: 5, CPUQuotaUS: 50_000}))
	k.boxes = append(k.boxes, b)
	f.host.mu.Lock()
	f.host.kinds[key] = k
	f.host.mu.Unlock()
	defer func() { must(t, f.host.Forget(f.root)) }()
	r := f.run(Spec{Shared: true, Script: "for i in 1 2 3 4 5 6 7 8; do sleep 0.01 & done; wait"})
	if r.box.id != b.id {
		t.Fatal("it was not taken")
	}
	if a := r.box.Group().Applied(); r.Code != 0 || a["pids.max"] != "" || a["cpu.max"] != "" || a["memory.max"] != "" || a["memory.limit_in_bytes"] != "" {
		t.Errorf("%+v %s; applied %v", r.Exit, r.err, a)
	}
}

// TestCommandSeesNothingOfOthers lists what a command has got: descriptors, mounts, and what it can do to the first process.
func TestCommandSeesNothingOfOthers(t *testing.T) {
	f := newFixture(t)
	dir := makeTree(t, 1000, 1000, map[string]string{"a": ""})
	r := f.run(Spec{Work: Work{Dir: dir, UID: 1000, GID: 1000}, Script: `
ls /proc/self/fd | tr '\n' ' '; echo
for f in exe cwd root fd environ mem maps ns/user io stack syscall auxv; do cat /proc/1/$f >/dev/null 2>&1 || readlink /proc/1/$f 2>/dev/null && echo "/proc/1/$f is open"; done
for s in STOP KILL TERM SEGV HUP; do kill -$s 1 2>/dev/null && echo "PID 1 takes $s"; done
(echo 1000 >/proc/1/oom_score_adj) 2>/dev/null && echo "PID 1 can be made a victim"
cut -d' ' -f5 /proc/self/mountinfo | grep -E 'scratch|lower|layer|empty|^/root'
sed 's/.*://' /proc/self/cgroup | sort -u
`})
	if want := "0 1 2 3 \n"; !strings.HasPrefix(r.out, want) || strings.Trim(r.out[len(want):], "/\n") != "" {
		t.Errorf("%q\n%s", r.out, r.err)
	}
}

// TestTemplateIsOutOfReach: not even a sandbox's root can write to what others' roots are made of.
func TestTemplateIsOutOfReach(t *testing.T) {
	f := newFixture(t)
	x, err := f.host.templates.make(f.root, nil)
	must(t, err)
	defer func() { must(t, x.close()) }()
	b, err := f.host.prepare(x, kindOf{network: netpolicy.Isolated}, limits.Limits{})
	must(t, err)
	defer func() { must(t, b.undoAll()) }()
	p := newProgram()
	attr := make(raw, unsafe.Sizeof(unix.MountAttr{}))
	attr[8] = unix.MOUNT_ATTR_RDONLY // what to clear is the second field
	p.call("make it writable", unix.SYS_MOUNT_SETATTR, unix.AT_FDCWD, text("/root"), 0, attr, len(attr))
	p.ignore(unix.EPERM)
	p.call("write", unix.SYS_FACCESSAT, unix.AT_FDCWD, text("/root/etc"), unix.W_OK)
	p.do("tell", first.OpSend, int(first.Ready), 0, 0, 0, 0)
	_, files, err := b.run(p, first.Ready)
	first.CloseAll(files)
	if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) {
		t.Error(err)
	}
}

// TestZygoteThatDied: its sandboxes end with it, and the next ones have another.
func TestZygoteThatDied(t *testing.T) {
	f := newFixture(t)
	for range 3 {
		s, _, _ := f.start(Spec{Argv: []string{"sleep", "1000"}})
		must(t, f.host.zygote.now.process.Signal(os.Kill))
		e, err := s.Wait(context.Background())
		must(t, err)
		if !e.Lost {
			t.Errorf("%+v", e)
		}
		must(t, s.Close())
		if r := f.run(Spec{Argv: []string{"true"}}); r.Code != 0 {
			t.Errorf("afterwards: %+v", r.Exit)
		}
	}
}

// TestZygoteThatRefuses: what keeps one sandbox from being made, as a limit of the machine's does, ends no other.
func TestZygoteThatRefuses(t *testing.T) {
	f := newFixture(t)
	s, _, _ := f.start(Spec{Argv: []string{"sleep", "1000"}})
	if _, err := f.host.zygote.clone(f.host, first.Request{UIDs: "none", GIDs: "none"}); err == nil {
		t.Error("a process without ids was made")
	}
	if r := f.run(Spec{Argv: []string{"true"}}); r.Code != 0 {
		t.Errorf("afterwards: %+v", r.Exit)
	}
	must(t, s.Terminate())
	e, err := s.Wait(context.Background())
	must(t, err)
	if e.Lost || e.Signal != int(unix.SIGTERM) {
		t.Errorf("the other ended by %+v", e)
	}
}
