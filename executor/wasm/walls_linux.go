package wasm

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

const (
	// insideID is who a worker of root's is in its user namespace: nobody, outside.
	insideID = 1000
	// spareSpace is what it may have of addresses beyond what it has and all that: an instance or two, which have 4 GiB each. Tables of
	// pages are memory, too, where all that is mapped is one page of zeros.
	spareSpace = 16 << 30
	// spareFiles is what it may have open beyond its task's files.
	spareFiles = 1024
	// spareThreads is what it may have of threads beyond those for processors.
	spareThreads = 256
)

// namespaces are what a worker has of its own, by the names that /proc has for them.
var namespaces = map[string]uintptr{
	"user": unix.CLONE_NEWUSER, "mnt": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID, "net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS,
}

// start starts the process: in namespaces of its own, where they can be had.
func (w *worker) start(argv []string) error {
	w.asks, w.walls = true, &wire.Walls{Filter: true}
	root := os.Geteuid() == 0
	err := w.spawn(argv, true)
	if err == nil {
		if root {
			w.walls.ID, w.walls.Root = insideID, true
		}
		return nil
	}
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if root {
		w.walls.ID = nobody
	}
	w.lacks = fmt.Sprintf("namespaces: %v", err)
	return w.spawn(argv, false)
}

func (w *worker) spawn(argv []string, apart bool) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	w.files = os.NewFile(uintptr(pair[0]), "files")
	theirs := os.NewFile(uintptr(pair[1]), "files")
	defer theirs.Close()
	// The least there is, for a few messages: what a worker does not take is open.
	if err := unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
		return errors.Join(fmt.Errorf("a worker's socket: %w", err), w.files.Close())
	}
	attr := &syscall.SysProcAttr{Setpgid: true}
	if apart {
		for _, flag := range namespaces {
			attr.Cloneflags |= flag
		}
		// Who has no number outside has no capabilities, once it is executed.
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: insideID, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: insideID, HostID: os.Getegid(), Size: 1}}
		if os.Geteuid() == 0 {
			// Root to begin with, to reach the compiled code, and to leave all that root has.
			attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}, {ContainerID: insideID, HostID: nobody, Size: 1}}
			attr.GidMappings, attr.GidMappingsEnableSetgroups = attr.UidMappings, true
		}
	}
	w.command(argv, attr)
	w.cmd.ExtraFiles = []*os.File{theirs} // wire.Files
	if err := w.run(); err != nil {
		return errors.Join(err, w.files.Close())
	}
	return nil
}

// look reads back from the kernel which walls stand, once the worker has said that it raised them.
func (w *worker) look() error {
	pid := w.cmd.Process.Pid
	status, err := readStatus(pid)
	if err != nil {
		return fmt.Errorf("a worker's status: %w", err)
	}
	add := func(stands bool, what string) {
		if stands {
			w.stands = append(w.stands, what)
		} else {
			w.missing = append(w.missing, what)
		}
	}
	none := func(s string) bool { return strings.Trim(s, "0") == "" && s != "" }
	if _, err := fmt.Sscanf(status["VmSize"], "%d kB", &w.space); err != nil {
		return fmt.Errorf("a worker's address space: %w", err)
	}
	w.space <<= 10
	filtered := status["Seccomp"] == "2" && status["NoNewPrivs"] == "1"
	w.stands = []string{"worker process"}
	add(filtered, "no_new_privs, and a system call filter by which it opens nothing and runs nothing")
	add(none(status["CapPrm"]) && none(status["CapEff"]) && none(status["CapInh"]) && none(status["CapAmb"]), "no capabilities")
	if os.Geteuid() == 0 {
		unlike := !slices.Contains(append(strings.Fields(status["Uid"]), strings.Fields(status["Gid"])...), "0") && status["Groups"] == ""
		add(unlike, "a user without files")
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid))
		add(err == nil && len(entries) == 0, "an empty root")
	}
	var own []string
	for name := range namespaces {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		ours, err2 := os.Readlink("/proc/self/ns/" + name)
		if err == nil && err2 == nil && theirs != ours {
			own = append(own, name)
		}
	}
	slices.Sort(own)
	add(len(own) == len(namespaces), "namespaces of its own")
	if len(own) == len(namespaces) {
		most := uint64(spareThreads + 4*runtime.NumCPU())
		limit := unix.Rlimit{Cur: most, Max: most}
		add(unix.Prlimit(pid, unix.RLIMIT_NPROC, &limit, nil) == nil, "a limit of threads")
	}
	return nil
}

// readStatus reads /proc/PID/status.
func readStatus(pid int) (map[string]string, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all := map[string]string{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		k, v, _ := strings.Cut(s.Text(), ":")
		all[k] = strings.TrimSpace(v)
	}
	return all, s.Err()
}

// bound bounds what the kernel lets a worker have while it runs a task that is granted g, for what the limits
// of the module do not see.
func (w *worker) bound(g granted) error {
	if w.bounds == g {
		return nil
	}
	for resource, most := range map[int]int64{
		unix.RLIMIT_DATA: g.memory + spare, unix.RLIMIT_AS: w.space + g.memory + spare + spareSpace,
		unix.RLIMIT_FSIZE: max(g.work, g.tmp), unix.RLIMIT_NOFILE: int64(g.openFiles) + spareFiles,
	} {
		var l unix.Rlimit
		if err := unix.Prlimit(w.cmd.Process.Pid, resource, nil, &l); err != nil {
			return fmt.Errorf("a worker's limits: %w", err)
		}
		l.Cur = min(l.Max, uint64(most))
		if err := unix.Prlimit(w.cmd.Process.Pid, resource, &l, nil); err != nil {
			return fmt.Errorf("a worker's limits: %w", err)
		}
	}
	w.bounds = g
	return nil
}
