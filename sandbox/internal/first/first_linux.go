package first

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// run is PID 1 of a sandbox. It returns its exit status.
func run() int {
	sock := os.NewFile(socketFD, "host")
	unix.CloseOnExec(socketFD)
	unix.Close(ProgramFD)
	if err := lead(sock); err != nil {
		r := Report{Error: err.Error()}
		if bad := (*blame)(nil); errors.As(err, &bad) {
			r = Report{Target: bad.target, Output: bad.output, Error: bad.reason}
		}
		if sendReport(sock, r) != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return 1
	}
	return 0
}

// SetName names the calling thread, and the process if that is its first, for ps(1): what is
// executed from a descriptor is called by its number. The kernel takes 15 bytes.
func SetName(name string) error {
	b := append([]byte(name), 0)
	err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
	runtime.KeepAlive(b)
	if err != nil {
		return fmt.Errorf("prctl(PR_SET_NAME): %w", err)
	}
	return nil
}

// lead takes the order, runs the command and reports its end.
func lead(sock *os.File) error {
	spared := make(chan struct{})
	go func() {
		defer close(spared)
		spareThreads(4)
	}()
	if err := SetName(Name); err != nil {
		return err
	}
	// Not to be read or traced, whatever its user.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_DUMPABLE): %w", err)
	}
	o, files, err := receiveOrder(sock)
	if err != nil {
		return err
	}
	before, err := used() // before it was in its control group
	if err != nil {
		return err
	}
	if err := assembleRoot(o, files); err != nil {
		return err
	}
	network, err := o.Network.Setup()
	if err != nil {
		return err
	}
	work, err := os.OpenFile(WorkDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	stdio := []*os.File{files[o.Stdio[0]], files[o.Stdio[1]], files[o.Stdio[2]]}
	for _, f := range files {
		if !slices.Contains(stdio, f) {
			f.Close()
		}
	}
	if err := errors.Join(limitFiles(o.OpenFiles), heedSignals()); err != nil {
		return err
	}
	<-spared
	pid, err := start(o, stdio, func(found []string) error {
		return sendReport(sock, Report{Started: true, Found: found, Network: network})
	})
	CloseAll(stdio)
	if err != nil {
		return err
	}
	go obey(sock)
	status := reap(pid)
	if err := killRest(); err != nil {
		return err
	}
	own, err := used()
	if err != nil {
		return err
	}
	own.UserUS, own.SystemUS = own.UserUS-before.UserUS, own.SystemUS-before.SystemUS
	own.Read, own.Write = own.Read-before.Read, own.Write-before.Write
	return sendReport(sock, Report{Ended: true, Status: uint32(status), Own: own}, work)
}

// used is what this process has used. The I/O of those it waited for is in its own.
func used() (o Own, err error) {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return o, fmt.Errorf("own usage: %w", err)
	}
	o.UserUS, o.SystemUS = r.Utime.Nano()/1000, r.Stime.Nano()/1000
	for file, want := range map[string]map[string]*int64{
		"/proc/self/status": {"Threads:": &o.Threads},
		"/proc/self/io":     {"read_bytes:": &o.Read, "write_bytes:": &o.Write},
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			return o, fmt.Errorf("own usage: %w", err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) != 2 || want[f[0]] == nil {
				continue
			}
			if *want[f[0]], err = strconv.ParseInt(f[1], 10, 64); err != nil {
				return o, fmt.Errorf("own usage: %s: %w", file, err)
			}
		}
	}
	return o, nil
}

// limitFiles sets the limit of open files that the command inherits, and makes syscall
// forget the one that it would otherwise give to the command. It comes late, since the
// files of an order may be more.
func limitFiles(most uint64) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("limit open files: %w", err)
	}
	l.Max = min(l.Max, most) // the daemon's own may be lower than the default
	l.Cur = min(l.Max, softOpenFiles)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("limit open files to %d: %w", l.Max, err)
	}
	return nil
}

// heedSignals gives signals their default effect that the daemon's starter, nohup(1) for
// one, had them ignored: it is inherited, by what is executed as well. Those that Go has a
// handler for are reset by execve(2).
func heedSignals() error {
	type action struct { // of the kernel, on 64-bit machines: see rt_sigaction(2)
		handler, flags, restorer uintptr
		mask                     uint64
	}
	const ignore = 1
	for sig := uintptr(1); sig <= 64; sig++ {
		var now, dflt action
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), unsafe.Sizeof(now.mask), 0, 0)
		if errno == 0 && now.handler == ignore {
			_, _, errno = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&dflt)), 0, unsafe.Sizeof(now.mask), 0, 0)
		}
		if errno != 0 {
			return fmt.Errorf("heed signal %d: %w", sig, errno)
		}
	}
	return nil
}

// spareThreads makes n threads for later. The command may use up pids_max, and a Go
// program that needs a thread and gets none crashes.
func spareThreads(n int) {
	var locked, ended sync.WaitGroup
	all := make(chan struct{})
	for range n {
		locked.Add(1)
		ended.Go(func() {
			runtime.LockOSThread() // so that each has its own
			locked.Done()
			<-all
			runtime.UnlockOSThread()
		})
	}
	locked.Wait()
	close(all)
	ended.Wait()
}

// obey passes on what the host asks for, and ends the sandbox with the host.
func obey(sock *os.File) {
	for {
		msg, files, err := receive(sock)
		CloseAll(files)
		if err != nil {
			os.Exit(1)
		}
		if len(msg) == 1 && msg[0] == msgTerminate {
			unix.Kill(-1, unix.SIGTERM) //nolint:errcheck // ESRCH: nobody is left to tell
		}
	}
}

// reap collects all that end until the command does.
func reap(command int) syscall.WaitStatus {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		if pid == command && (ws.Exited() || ws.Signaled()) {
			return ws
		}
		if err != nil && err != syscall.EINTR {
			// Not possible while the command is our child.
			return syscall.WaitStatus(unix.SIGKILL)
		}
	}
}

// killRest ends what the command left behind.
func killRest() error {
	for {
		if err := unix.Kill(-1, unix.SIGKILL); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill what the command left behind: %w", err)
		}
		_, err := syscall.Wait4(-1, nil, 0, nil)
		if err == syscall.ECHILD {
			return nil
		}
		if err != nil && err != syscall.EINTR {
			return fmt.Errorf("wait for what the command left behind: %w", err)
		}
	}
}

// start runs the command on a thread that can do no more than it. Before, it calls
// ready with what the kernel says of that thread: the command may take all of
// the sandbox down, by using up its memory, before there is time to say that it runs.
func start(o *Order, stdio []*os.File, ready func(found []string) error) (pid int, err error) {
	// The error of execve alone would not say which file was meant.
	argv, file, notFound := command(o)
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread() // for good: the thread is spoilt
		var found []string
		// Of this thread alone, and so of the command. It is in its control group only now.
		if err = unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			err = fmt.Errorf("a cgroup namespace: %w", err)
		} else if found, err = confine(o.Filter); err == nil {
			err = ready(found)
		}
		if err == nil {
			pid, err = launch(o, stdio, file, argv, notFound)
		}
		close(done)
		select {} // the thread stays: a parent-death signal is of the thread
	}()
	<-done
	return pid, err
}

// command is what to execute. A command that is not there is notFound, for the
// task's own standard error: it is the task that is wrong.
func command(o *Order) (argv []string, file, notFound string) {
	switch {
	case strings.HasPrefix(o.Script, "#!"):
		return []string{scriptPath}, scriptPath, ""
	case o.Script != "":
		return []string{"/bin/sh", "-e", scriptPath}, "/bin/sh", ""
	case strings.Contains(o.Argv[0], "/"):
		return o.Argv, o.Argv[0], ""
	}
	for _, kv := range o.Env {
		dirs, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, d := range strings.Split(dirs, ":") {
			p := path.Join(WorkDir, d, o.Argv[0])
			if path.IsAbs(d) {
				p = path.Join(d, o.Argv[0])
			}
			if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
				return o.Argv, p, ""
			}
		}
	}
	return nil, "", "not found in PATH"
}

// launch executes the command, or what tells its caller that it cannot be.
func launch(o *Order, stdio []*os.File, file string, argv []string, notFound string) (pid int, err error) {
	attr := &syscall.ProcAttr{
		Dir: WorkDir, Env: o.Env,
		Files: []uintptr{stdio[0].Fd(), stdio[1].Fd(), stdio[2].Fd()},
		Sys:   &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: UID, Gid: GID}, Setsid: true},
	}
	why, code := notFound, "127"
	if notFound == "" {
		pid, err = syscall.ForkExec(file, argv, attr)
		if err == nil {
			return pid, nil
		}
		if !slices.Contains([]error{syscall.ENOENT, syscall.EACCES, syscall.ENOEXEC, syscall.ENOTDIR, syscall.ELOOP,
			syscall.EISDIR, syscall.E2BIG, syscall.ELIBBAD, syscall.EINVAL, syscall.ENAMETOOLONG, syscall.ETXTBSY}, err) {
			return 0, fmt.Errorf("execute %q: %w", file, err)
		}
		why = err.Error()
		if err != syscall.ENOENT {
			code = "126"
		}
	}
	name := scriptPath
	if len(o.Argv) > 0 {
		name = o.Argv[0]
	}
	fmt.Fprintf(stdio[2], "sandboxd: %.200q: %s\n", name, why)
	pid, err = syscall.ForkExec("/bin/sh", []string{"sh", "-c", "exit " + code}, attr)
	if err != nil {
		return 0, fmt.Errorf("execute %q: %s; and /bin/sh of the root: %w", name, why, err)
	}
	return pid, nil
}

// confine takes capabilities and system calls from the calling thread, and reads
// back that it did.
func confine(filter []unix.SockFilter) (found []string, err error) {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
			return nil, fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("drop ambient capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("prctl(PR_SET_NO_NEW_PRIVS): %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return nil, fmt.Errorf("install the seccomp filter: %w", errno)
	}
	return readBack()
}

// readBack is what /proc says of the calling thread, and an error unless it is
// what a command must have. Its user changes yet, in the child, and with it go
// the permitted and effective capabilities (capabilities(7)).
func readBack() (found []string, err error) {
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return nil, fmt.Errorf("read back: %w", err)
	}
	want := map[string]string{
		"CapInh": "0000000000000000", "CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		v = strings.TrimSpace(v)
		if w, ok := want[k]; ok {
			if v != w {
				return nil, fmt.Errorf("read back: %s is %s, not %s", k, v, w)
			}
			found = append(found, k+"="+v)
			delete(want, k)
		}
	}
	if len(want) > 0 {
		return nil, fmt.Errorf("read back: /proc/thread-self/status lacks %d lines", len(want))
	}
	slices.Sort(found)
	return found, nil
}

const scriptPath = "/.sandboxd/script"

// assembleRoot makes the root that the order tells of, and moves into it. The
// root that libcontainer gave is the host's base, which then is gone.
func assembleRoot(o *Order, files []*os.File) error {
	unix.Umask(0)
	defer unix.Umask(0o022)
	if err := unix.Mount("sandboxd", "/root", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=64m,nr_inodes=16k"); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	root, err := os.OpenRoot("/root")
	if err != nil {
		return fmt.Errorf("the root: %w", err)
	}
	defer root.Close()
	for _, n := range o.Tree {
		if err := n.make(root); err != nil {
			return err
		}
	}
	if o.Script != "" {
		if err := (Node{Path: scriptPath[1:], Mode: 0o555, Data: []byte(o.Script)}).make(root); err != nil {
			return err
		}
	}
	for _, m := range o.Mounts {
		if err := attach(files[m.FD], m.Target); err != nil {
			return err
		}
	}
	if err := attach(files[o.Dev], "/dev"); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return mountOwn(o.TmpBytes) },
		func() error { return mountWork(o.Work, files) },
		func() error { return hide(o.Remove) },
		func() error { return mountInputs(root, o.Inputs, files) },
		mountProc,
		enterRoot,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// make makes one node beneath root.
func (n Node) make(root *os.Root) error {
	var err error
	switch {
	case n.Mode.IsDir():
		if err = root.Mkdir(n.Path, n.Mode.Perm()); errors.Is(err, os.ErrExist) {
			err = nil
		}
	case n.Link != "":
		err = root.Symlink(n.Link, n.Path)
	default:
		var f *os.File
		if f, err = root.OpenFile(n.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, n.Mode.Perm()); err == nil {
			_, err = f.Write(n.Data)
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("make /%s: %w", n.Path, err)
	}
	return nil
}

// attach puts a detached mount at target in the new root. No link is followed on
// the way: the root's own are not to be mounted at.
func attach(tree *os.File, target string) error {
	at, err := openInRoot(target)
	if err != nil {
		return fmt.Errorf("mount point %s: %w", target, err)
	}
	defer unix.Close(at)
	if err := unix.MoveMount(int(tree.Fd()), "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach %s: %w", target, err)
	}
	return nil
}

func openInRoot(target string) (int, error) {
	root, err := unix.Open("/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	return unix.Openat2(root, strings.TrimPrefix(target, "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// mountOwn mounts what is the sandbox's own and writable.
func mountOwn(tmpBytes int64) error {
	size := ""
	if tmpBytes > 0 {
		size = fmt.Sprintf(",size=%d", tmpBytes)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	for _, m := range []struct {
		target, kind, options string
		flags                 uintptr
	}{
		{"/scratch", "tmpfs", "mode=755,nr_inodes=1m" + size, flags},
		{"/root/dev/shm", "tmpfs", "mode=1777,nr_inodes=1m" + size, flags | unix.MS_NOEXEC},
		{"/root/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5", unix.MS_NOSUID | unix.MS_NOEXEC},
	} {
		if err := unix.Mount("sandboxd", m.target, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for _, d := range []struct {
		name, target string
		mode         uint32
		owner        int
	}{{"tmp", "/tmp", 0o1777, 0}, {"vartmp", "/var/tmp", 0o1777, 0}, {"home", HomeDir, 0o755, UID}} {
		from := "/scratch/" + d.name
		if err := unix.Mkdir(from, d.mode); err != nil {
			return fmt.Errorf("make %s: %w", d.target, err)
		}
		if err := unix.Chown(from, d.owner, d.owner); err != nil {
			return fmt.Errorf("make %s: %w", d.target, err)
		}
		if err := bind(from, d.target, 0); err != nil {
			return err
		}
	}
	return nil
}

// bind mounts what is at from at target in the new root, with further attributes.
func bind(from, target string, attrs uint64) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone the mount of %s: %w", from, err)
	}
	tree := os.NewFile(uintptr(fd), from)
	defer tree.Close()
	if attrs != 0 {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attrs}); err != nil {
			return fmt.Errorf("mount attributes of %s: %w", target, err)
		}
	}
	return attach(tree, target)
}

// mountWork mounts /build.
func mountWork(w WorkOrder, files []*os.File) error {
	if w.Direct >= 0 {
		return attach(files[w.Direct], WorkDir)
	}
	if w.Layer < 0 {
		v, err := view(files[w.Lower])
		if err != nil {
			return fmt.Errorf("the work directory: %w", err)
		}
		defer v.Close()
		return attach(v, WorkDir)
	}
	layer, err := openDir("/layer")
	if err != nil {
		return err
	}
	if err := moveTo(files[w.Layer], layer); err != nil {
		return fmt.Errorf("attach the work layer: %w", err)
	}
	if w.Lower < 0 {
		return bind("/layer/upper", WorkDir, 0)
	}
	lower, err := openDir("/lower")
	if err != nil {
		return err
	}
	if err := moveTo(files[w.Lower], lower); err != nil {
		return fmt.Errorf("attach the work directory: %w", err)
	}
	// volatile: the layer does not outlive the sandbox, so syncing it is waste.
	const options = "lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work,userxattr,volatile"
	target := "/root" + WorkDir
	if err := unix.Mount("sandboxd", target, "overlay", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount the overlay of the work directory: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return fmt.Errorf("overlay of the work directory: %w", err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return errors.New("overlay of the work directory: the kernel made it read-only; its file system cannot hold an overlay's upper layer")
	}
	return nil
}

// view is a detached, read-only overlay of a tree with an empty one, through which its files
// are seen and its sockets and FIFOs are none of the host's: the kernel knows them by
// an inode that is the overlay's, and nobody listens there. A read-only mount alone does
// not keep from connecting.
func view(tree *os.File) (_ *os.File, err error) {
	lower, err := openDir("/lower")
	if err != nil {
		return nil, err
	}
	if err := moveTo(tree, lower); err != nil {
		return nil, fmt.Errorf("attach a tree: %w", err)
	}
	defer func() {
		if e := unix.Unmount("/lower", unix.MNT_DETACH); e != nil { // the overlay has a mount of its own
			err = errors.Join(err, fmt.Errorf("detach a tree: %w", e))
		}
	}()
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("read-only overlay: %w", err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.FsconfigSetString(fd, "source", "sandboxd"), unix.FsconfigSetString(fd, "lowerdir", "/lower:/empty/dir"),
		unix.FsconfigSetFlag(fd, "userxattr"), unix.FsconfigCreate(fd)); err != nil {
		return nil, fmt.Errorf("read-only overlay: %w", err)
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, fmt.Errorf("read-only overlay: %w", err)
	}
	return os.NewFile(uintptr(m), "view"), nil
}

// hide removes paths from the work directory: from the overlay, not from what is
// below it.
func hide(paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	work, err := os.OpenRoot("/root" + WorkDir)
	if err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	defer work.Close()
	for _, p := range paths {
		if err := work.RemoveAll(p); err != nil {
			return &blame{output: p, reason: err.Error()}
		}
	}
	return nil
}

func openDir(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	return fd, nil
}

func moveTo(tree *os.File, at int) error {
	defer unix.Close(at)
	return unix.MoveMount(int(tree.Fd()), "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// mountInputs makes mount points in the root's own tree where there are none.
func mountInputs(root *os.Root, inputs []MountOrder, files []*os.File) error {
	for _, in := range inputs {
		target := strings.TrimPrefix(in.Target, "/")
		if fd, err := openInRoot(target); err == nil {
			unix.Close(fd)
		} else if err := mountPoint(root, target, in.Dir); err != nil {
			return &blame{target: in.Target, reason: err.Error()}
		}
		if err := attachInput(in, files[in.FD]); err != nil {
			return &blame{target: in.Target, reason: err.Error()}
		}
	}
	return nil
}

func attachInput(in MountOrder, tree *os.File) error {
	if !in.Dir {
		return attach(tree, in.Target) // a regular file: the host saw to it
	}
	v, err := view(tree)
	if err != nil {
		return err
	}
	defer v.Close()
	return attach(v, in.Target)
}

func mountPoint(root *os.Root, target string, dir bool) error {
	if dir {
		return root.MkdirAll(target, 0o755)
	}
	if err := root.MkdirAll(path.Dir(target), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	return f.Close()
}

// masked are parts of /proc that tell of the machine, or reach it; read-only are
// those through which a user namespace's root could do something (the lists of
// the OCI runtimes, and what newer kernels brought).
var (
	masked = []string{"acpi", "asound", "interrupts", "kcore", "keys", "kallsyms", "kmsg", "latency_stats", "pressure", "sched_debug",
		"scsi", "timer_list", "timer_stats", "sysrq-trigger", "config.gz", "kpagecgroup", "kpagecount", "kpageflags", "slabinfo", "vmallocinfo"}
	readOnly = []string{"bus", "fs", "irq", "sys"}
)

// mountProc mounts /proc. It must come after all that checks paths, and before
// base's own /proc is gone, without which the kernel refuses another.
func mountProc() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/root/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := readOnlyEmpty(); err != nil {
		return err
	}
	for _, p := range masked {
		st, err := os.Lstat("/root/proc/" + p)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("mask /proc/%s: %w", p, err)
		}
		mask := "/empty/file"
		if st.IsDir() {
			mask = "/empty/dir"
		}
		// Nobody but us is here yet, and /proc is the kernel's: no path leads astray.
		if err := unix.Mount(mask, "/root/proc/"+p, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mask /proc/%s: %w", p, err)
		}
	}
	for _, p := range readOnly {
		if err := bind("/root/proc/"+p, "/proc/"+p, unix.MOUNT_ATTR_RDONLY); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// readOnlyEmpty mounts /empty upon itself, read-only, as what is bound from there will be.
func readOnlyEmpty() error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/empty", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone the mount of /empty: %w", err)
	}
	defer unix.Close(fd)
	const attrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attrs}); err != nil {
		return fmt.Errorf("mount attributes of /empty: %w", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, "/empty", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach /empty: %w", err)
	}
	return nil
}

// enterRoot makes the new root the root, and drops the old one with all below it.
func enterRoot() error {
	if err := unix.Chdir("/root"); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	// Of the two at one place the old root lies on top (pivot_root(2)).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	return nil
}

// blame is an error that lies in an input or output.
type blame struct{ target, output, reason string }

func (b *blame) Error() string { return b.target + b.output + ": " + b.reason }

// init takes over in a sandbox's first process.
func init() {
	if len(os.Args) == 2 && os.Args[1] == Name && os.Getpid() == 1 {
		os.Exit(run())
	}
}
