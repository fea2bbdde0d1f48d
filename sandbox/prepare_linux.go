package sandbox

import (
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

const (
	scriptDir  = "/.sandboxd"
	scriptPath = scriptDir + "/script"
)

// masked are parts of /proc that tell of the machine, or reach it; read-only are
// those through which a user namespace's root could do something (the lists of
// the OCI runtimes, and what newer kernels brought).
var (
	masked = []string{"acpi", "asound", "interrupts", "kcore", "keys", "kallsyms", "kmsg", "latency_stats", "pressure", "sched_debug",
		"scsi", "timer_list", "timer_stats", "sysrq-trigger", "config.gz", "kpagecgroup", "kpagecount", "kpageflags", "slabinfo", "vmallocinfo"}
	readOnly = []string{"bus", "fs", "irq", "sys"}
)

// mask is what hides one of masked, and where.
type mask struct{ from, at string }

// masks are those that this machine needs. All sandboxes have the same kernel.
func masks() (all []mask, err error) {
	for _, p := range masked {
		st, err := os.Lstat("/proc/" + p)
		switch {
		case os.IsNotExist(err):
			continue
		case err != nil:
			return nil, fmt.Errorf("mask /proc/%s: %w", p, err)
		case st.IsDir():
			all = append(all, mask{"/empty/dir", "/root/proc/" + p})
		default:
			all = append(all, mask{"/empty/file", "/root/proc/" + p})
		}
	}
	return all, nil
}

// setAttr adds the setting of a mount's attributes.
func (p *program) setAttr(what, path string, set uint64) {
	attr := make(raw, unsafe.Sizeof(unix.MountAttr{})) // what to set is its first field
	binary.NativeEndian.PutUint64(attr, set)
	p.call(what, unix.SYS_MOUNT_SETATTR, unix.AT_FDCWD, text(path), 0, attr, len(attr))
}

// attach adds the putting of a detached mount at a path of the new root's. Nobody but the first process
// has been there, and what is below is the root's skeleton, which is ours.
func (p *program) attach(what string, tree any, at string) {
	p.call(what, unix.SYS_MOVE_MOUNT, tree, text(""), unix.AT_FDCWD, text(at), unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func (p *program) bind(what, from, at string) {
	p.call(what, unix.SYS_MOUNT, text(from), text(at), 0, unix.MS_BIND, 0)
}

func (p *program) mount(what, kind, at string, flags int, options string) {
	p.call(what, unix.SYS_MOUNT, text("sandboxd"), text(at), text(kind), flags, text(options))
}

// preparation is what needs no task: the root, but for its work directory, inputs and script, and the process
// that will execute the command. Its files are so many doors of its control group, the root and /dev, both detached mounts, and
// that process's socket.
func preparation(doors int, masks []mask, filter []unix.SockFilter) *program {
	p := newProgram()
	for range doors { // before it has or does anything that counts
		p.call("join its control group", unix.SYS_WRITE, p.file(nil), raw("0"), 1)
	}
	tree, dev, sock := p.file(nil), p.file(nil), p.file(nil)
	p.call("prctl(PR_SET_NAME)", unix.SYS_PRCTL, unix.PR_SET_NAME, text(first.ProcessName))
	p.call("setgroups", unix.SYS_SETGROUPS, 0, 0)
	p.call("setresgid", unix.SYS_SETRESGID, 0, 0, 0)
	p.call("setresuid", unix.SYS_SETRESUID, 0, 0, 0)
	// The change of user may have made it readable again: prctl(2).
	p.call("prctl(PR_SET_DUMPABLE)", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	// Else all sandboxes had the zygote's, of both.
	p.call("setsid", unix.SYS_SETSID)
	p.call("a session keyring", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0)
	p.ignore(unix.ENOSYS)
	p.call("umask", unix.SYS_UMASK, 0)
	p.attach("attach the root", tree, "/root")
	p.attach("attach /dev", dev, "/root/dev")
	const own = unix.MS_NOSUID | unix.MS_NODEV
	p.mount("mount /tmp", "tmpfs", "/scratch", own, "mode=755,nr_inodes=1m")
	p.mount("mount /dev/shm", "tmpfs", "/root/dev/shm", own|unix.MS_NOEXEC, "mode=1777,nr_inodes=1m")
	p.mount("mount /dev/pts", "devpts", "/root/dev/pts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5")
	for _, d := range []struct {
		name, target string
		mode, owner  int
	}{{"tmp", "/tmp", 0o1777, 0}, {"vartmp", "/var/tmp", 0o1777, 0}, {"home", HomeDir, 0o755, UID}, {"script", scriptDir, 0o755, 0}} {
		from := "/scratch/" + d.name
		p.call("make "+d.target, unix.SYS_MKDIRAT, unix.AT_FDCWD, text(from), d.mode)
		if d.owner != 0 {
			p.call("make "+d.target, unix.SYS_FCHOWNAT, unix.AT_FDCWD, text(from), d.owner, d.owner, 0)
		}
		p.bind("mount "+d.target, from, "/root"+d.target)
	}
	p.setAttr("make "+scriptDir+" read-only", "/root"+scriptDir, unix.MOUNT_ATTR_RDONLY)
	// Before the container's own /proc is gone, without which the kernel refuses another.
	p.mount("mount /proc", "proc", "/root/proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	for _, m := range masks {
		p.bind("mask "+m.at, m.from, m.at)
	}
	for _, d := range readOnly {
		at := "/root/proc/" + d
		p.bind("mount "+at, at, at)
		p.ignore(unix.ENOENT)
		p.setAttr("make "+at+" read-only", at, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
		p.ignore(unix.ENOENT)
	}
	p.command(sock, filter)
	p.do("say that it is ready", first.OpSend, int(first.Ready), 0, 0, 0, 0)
	return p
}

// sizeOwn sets the size of what is the sandbox's own and writable. The script lies beside /tmp, and has room of its own there.
func (p *program) sizeOwn(bytes int64, script string) {
	if bytes <= 0 {
		return
	}
	page := int64(os.Getpagesize())
	room := (int64(len(script)) + page - 1) / page * page
	// With MS_BIND the mounts' flags would change and the size would not.
	const flags = unix.MS_REMOUNT | unix.MS_NOSUID | unix.MS_NODEV
	p.call("size /tmp", unix.SYS_MOUNT, text("sandboxd"), text("/scratch"), text("tmpfs"), flags, text(fmt.Sprintf("size=%d", bytes+room)))
	p.call("size /dev/shm", unix.SYS_MOUNT, text("sandboxd"), text("/root/dev/shm"), text("tmpfs"), flags|unix.MS_NOEXEC, text(fmt.Sprintf("size=%d", bytes)))
}

// workTree makes /build. The files are detached mounts, of the caller's; those that a mode has no use for are nil.
func (p *program) workTree(lower, layer, direct *os.File) {
	at := "/root" + WorkDir
	switch {
	case direct != nil:
		p.attach("attach the work directory", p.file(direct), at)
	case layer == nil:
		v := p.view("the work directory", p.file(lower))
		p.attach("attach the work directory", v, at)
		p.call("close", unix.SYS_CLOSE, v)
	case lower == nil:
		p.attach("attach the work layer", p.file(layer), "/layer")
		p.bind("attach the work directory", "/layer/upper", at)
	default:
		p.attach("attach the work layer", p.file(layer), "/layer")
		p.attach("attach the work directory", p.file(lower), "/lower")
		// volatile: the layer does not outlive the sandbox, so syncing it is waste.
		p.mount("mount the overlay of the work directory", "overlay", at, unix.MS_NOSUID|unix.MS_NODEV,
			"lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work,userxattr,volatile")
		// The kernel makes it read-only where its file system cannot hold an overlay's upper layer.
		st := p.room(int(unsafe.Sizeof(unix.Statfs_t{})))
		p.call("overlay of the work directory", unix.SYS_STATFS, text(at), st)
		p.do("the overlay of the work directory is read-only: its file system cannot hold an overlay's upper layer",
			first.OpMemory, addr(int(st)+int(unsafe.Offsetof(unix.Statfs_t{}.Flags))), 0, unix.ST_RDONLY)
	}
}

// view makes a detached, read-only overlay of a tree with an empty one, through which its files
// are seen and its sockets and FIFOs are none of the host's: the kernel knows them by
// an inode that is the overlay's, and nobody listens there. A read-only mount alone does
// not keep from connecting.
func (p *program) view(what string, tree file) slot {
	p.attach("attach "+what, tree, "/lower")
	call := func(nr uintptr, args ...any) { p.call("read-only overlay of "+what, nr, args...) }
	call(unix.SYS_FSOPEN, text("overlay"), unix.FSOPEN_CLOEXEC)
	fs := p.keep()
	for _, o := range [][2]string{{"source", "sandboxd"}, {"lowerdir", "/lower:/empty/dir"}} {
		call(unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, text(o[0]), text(o[1]), 0)
	}
	call(unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_FLAG, text("userxattr"), 0, 0)
	call(unix.SYS_FSCONFIG, fs, unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
	call(unix.SYS_FSMOUNT, fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	m := p.keep()
	call(unix.SYS_CLOSE, fs)
	call(unix.SYS_UMOUNT2, text("/lower"), unix.MNT_DETACH) // the overlay has a mount of its own
	return m
}

// input puts an input in its place, and makes the way there where it is not: no link is followed.
func (p *program) input(target string, tree *os.File, dir bool) {
	begin := len(p.steps)
	used := p.slots
	var source any = p.made(tree)
	var seen slot
	if dir {
		seen = p.view(target, source.(file))
		source = seen
	}
	p.call("open the root", unix.SYS_OPENAT, unix.AT_FDCWD, text("/root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	at := p.keep()
	p.slots += 2
	next, made := slot(p.slots-1), slot(p.slots)
	parts := strings.Split(strings.Trim(target, "/"), "/")
	for i, name := range parts {
		flags := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
		// Who cannot make it sees in the next step whether it is there.
		if i == len(parts)-1 && !dir {
			p.call("make its place", unix.SYS_OPENAT, at, text(name), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o444)
			p.ignore(unix.EEXIST, unix.EROFS)
			p.keepIn(made)
			p.call("close", unix.SYS_CLOSE, made)
			p.ignore(unix.EBADF)
		} else {
			flags |= unix.O_DIRECTORY
			p.call("make its place", unix.SYS_MKDIRAT, at, text(name), 0o755)
			p.ignore(unix.EEXIST, unix.EROFS)
		}
		p.call("open its place", unix.SYS_OPENAT, at, text(name), flags, 0)
		p.keepIn(next)
		p.call("close", unix.SYS_CLOSE, at)
		at, next = next, at
	}
	p.call("attach", unix.SYS_MOVE_MOUNT, source, text(""), at, text(""), unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	p.call("close", unix.SYS_CLOSE, at)
	if dir {
		p.call("close", unix.SYS_CLOSE, seen)
	}
	p.slots = used
	for i := begin; i < len(p.steps); i++ {
		p.steps[i].target = target
	}
}

// enterRoot makes the new root the root, and drops the old one with all below it. It returns the
// work directory, open.
func (p *program) enterRoot() slot {
	p.call("enter the root", unix.SYS_CHDIR, text("/root"))
	// Of the two at one place the old root lies on top (pivot_root(2)).
	p.call("pivot_root", unix.SYS_PIVOT_ROOT, text("."), text("."))
	p.call("leave the old root", unix.SYS_UMOUNT2, text("."), unix.MNT_DETACH)
	p.call("enter the root", unix.SYS_CHDIR, text("/"))
	p.call("open the work directory", unix.SYS_OPENAT, unix.AT_FDCWD, text(WorkDir), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return p.keep()
}

// script writes the script.
func (p *program) script(content string) {
	if content == "" {
		return
	}
	const what = "write the script"
	p.call(what, unix.SYS_OPENAT, unix.AT_FDCWD, text("/scratch/script/script"), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o555)
	f := p.keep()
	p.call(what, unix.SYS_WRITE, f, raw(content), len(content))
	n := p.keep()
	p.do(what, first.OpEqual, n, len(content), ^uint64(0))
	p.call(what, unix.SYS_CLOSE, f)
	p.slots -= 2
}

// What outlives the preparation: the signalfd of the first process, the process that will be the command, and
// the eventfd that this one waits for until all is there.
const (
	signals slot = keptSlots + iota
	hand
	goAhead
)

// command makes the process that will be the command. It is no more than the command by then, and waits for a
// program of its own, from sock.
func (p *program) command(sock file, filter []unix.SockFilter) {
	set := binary.NativeEndian.AppendUint64(nil, 1<<(uint(unix.SIGCHLD)-1))
	p.call("signalfd", unix.SYS_SIGNALFD4, ^uint64(0), raw(set), 8, unix.SFD_CLOEXEC|unix.SFD_NONBLOCK)
	p.keepIn(signals)
	p.call("eventfd", unix.SYS_EVENTFD2, 0, unix.EFD_CLOEXEC)
	p.keepIn(goAhead)
	fork := len(p.ops)
	p.do("fork", first.OpFork, 0)
	p.keepIn(hand)
	p.do("turn to its own socket", first.OpTurn, sock)
	p.confine(filter)
	p.readBack()
	p.do("stop", first.OpStop)
	p.ops[fork].Args[0] = uint64(len(p.ops))
}

// supervise lets the command go, tells of its end, and ends. The work directory, open, goes with the word of the end.
func (p *program) supervise(work slot) {
	p.call("let the command go", unix.SYS_WRITE, goAhead, raw(binary.NativeEndian.AppendUint64(nil, 1)), 8)
	p.do("close what came with the program", first.OpClose)
	p.do("wait for the command", first.OpSupervise, hand, signals)
	// Else the file is of the zygote's root, who is nobody here. Of the others, which must not read it, none is left.
	p.call("own usage", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1)
	p.call("own usage", unix.SYS_OPENAT, unix.AT_FDCWD, text("/proc/self/io"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	f := p.keep()
	status := p.room(maxStatus)
	p.call("own usage", unix.SYS_READ, f, status, maxStatus)
	n := p.keep()
	p.do("tell of the end", first.OpSend, int(first.Ended), status, n, work, 1)
	p.do("end", first.OpExit, 0)
}

// maxStatus bounds what is read of a file in /proc.
const maxStatus = 4096

// confine has the child be no more than the command.
func (p *program) confine(filter []unix.SockFilter) {
	// It is in its control group by now.
	p.call("a cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	for c := range unix.CAP_LAST_CAP + 1 {
		p.call(fmt.Sprintf("drop capability %d", c), unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		p.ignore(unix.EINVAL)
	}
	p.call("drop ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	p.call("prctl(PR_SET_NO_NEW_PRIVS)", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	p.call("setsid", unix.SYS_SETSID)
	p.call("umask", unix.SYS_UMASK, 0o022)
	p.call("setgroups", unix.SYS_SETGROUPS, 0, 0)
	p.call("setresgid", unix.SYS_SETRESGID, GID, GID, GID)
	p.call("setresuid", unix.SYS_SETRESUID, UID, UID, UID)
	prog := p.place(filterBytes(filter))
	fprog := p.place(binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, uint64(len(filter))), uint64(prog)))
	p.pointers = append(p.pointers, int(fprog)+8)
	p.call("install the seccomp filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, fprog)
}

// filterBytes are a filter as the kernel takes it: struct sock_filter.
func filterBytes(filter []unix.SockFilter) (b []byte) {
	for _, f := range filter {
		b = binary.NativeEndian.AppendUint16(b, f.Code)
		b = append(b, f.Jt, f.Jf)
		b = binary.NativeEndian.AppendUint32(b, f.K)
	}
	return b
}

// readBack has the child see that it is confined, and tell of it.
func (p *program) readBack() {
	const what = "read back"
	p.call(what, unix.SYS_PRCTL, unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	r := p.keep()
	p.do(what+": no_new_privs", first.OpEqual, r, 1, ^uint64(0))
	for c := range unix.CAP_LAST_CAP + 1 {
		p.call(what, unix.SYS_PRCTL, unix.PR_CAPBSET_READ, c, 0, 0, 0)
		p.ignore(unix.EINVAL)
		p.keepIn(r)
		p.do(fmt.Sprintf("%s: capability %d is in the bounding set", what, c), first.OpEqual, r, 0, 1)
	}
	header := binary.NativeEndian.AppendUint64(nil, unix.LINUX_CAPABILITY_VERSION_3)
	caps := p.room(24)
	p.call(what, unix.SYS_CAPGET, raw(header), caps)
	for i := range 3 {
		p.do(what+": it has capabilities", first.OpMemory, addr(int(caps)+8*i), 0, ^uint64(0))
	}
	p.call(what, unix.SYS_OPENAT, unix.AT_FDCWD, text("/root/proc/self/status"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	f := p.keep()
	status := p.room(maxStatus)
	p.call(what, unix.SYS_READ, f, status, maxStatus)
	n := p.keep()
	p.call(what, unix.SYS_CLOSE, f)
	p.do("tell that it is confined", first.OpSend, int(first.Ready), status, n, 0, 0)
	p.slots -= 3
}

// become is the program of the process that will be the command. It tells of the start before that: the
// command may take all of the sandbox down, by using up its memory, before there is time to say that it runs.
func (p *program) become(spec *Spec, openFiles unix.Rlimit) {
	for i, f := range spec.Stdio {
		p.call("standard files", unix.SYS_DUP3, p.file(f), i, 0)
	}
	p.do("close the others", first.OpClose)
	limit := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, openFiles.Cur), openFiles.Max)
	p.call("limit open files", unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, raw(limit), 0)
	p.call("wait until all is there", unix.SYS_READ, goAhead, p.room(8), 8)
	p.do("tell of the start", first.OpSend, int(first.Started), 0, 0, 0, 0)
	p.execute(spec)
}

// execute executes the command, or tells its caller that it cannot be: in the task's own standard error, since it
// is the task that is wrong.
func (p *program) execute(spec *Spec) {
	enter := len(p.ops)
	p.do("enter the work directory", first.OpEnter, text(WorkDir), 0)
	env := p.strings(spec.Env)
	name, argv, files := command(spec)
	args := p.strings(argv)
	for _, f := range files {
		p.do("execute", first.OpTry, text(f), args, env)
	}
	p.ops[enter].Args[1] = uint64(len(p.ops))
	say := func(errno syscall.Errno, why string, code int) {
		line := fmt.Sprintf("sandboxd: %.200q: %s\n", name, why)
		p.do("say why", first.OpGiveUp, int(errno), raw(line), len(line), code)
	}
	notFound := unix.ENOENT.Error()
	if len(files) > 1 || len(files) == 0 {
		notFound = "not found in PATH"
	}
	say(0, notFound, 127)
	say(unix.ENOENT, notFound, 127)
	for _, e := range []syscall.Errno{unix.EACCES, unix.ENOEXEC, unix.ENOTDIR, unix.ELOOP, unix.EISDIR, unix.E2BIG, unix.ELIBBAD,
		unix.EINVAL, unix.ENAMETOOLONG, unix.ETXTBSY, unix.EIO, unix.ENOMEM, unix.EAGAIN, unix.EPERM, unix.ENFILE, unix.ESTALE, unix.EFAULT} {
		say(e, e.Error(), 126)
	}
	say(first.AnyError, "it cannot be executed", 126)
}

// command is what to execute: the first of files that is there.
func command(spec *Spec) (name string, argv, files []string) {
	switch {
	case strings.HasPrefix(spec.Script, "#!"):
		return scriptPath, []string{scriptPath}, []string{scriptPath}
	case spec.Script != "":
		return scriptPath, []string{"/bin/sh", "-e", scriptPath}, []string{"/bin/sh"}
	case strings.Contains(spec.Argv[0], "/"):
		return spec.Argv[0], spec.Argv, spec.Argv[:1]
	}
	for _, kv := range spec.Env {
		dirs, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, d := range strings.Split(dirs, ":") {
			if !path.IsAbs(d) {
				d = path.Join(WorkDir, d)
			}
			if f := path.Join(d, spec.Argv[0]); !slices.Contains(files, f) {
				files = append(files, f)
			}
		}
	}
	return spec.Argv[0], spec.Argv, files
}
