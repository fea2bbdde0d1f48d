package sandbox

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer"

	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/rootfs"
)

// Config is what a Host is made with.
type Config struct {
	// Dir is a directory of the host's own, for layers and state, on a file system
	// that can be id-mapped and hold an overlay's upper layer. What a dead host left
	// there is removed; of its processes none may be left, see limits.Config.Owner.
	Dir string
	// RangesDir is where hosts of one machine agree on ids. Empty is /run/sandboxd-ids.
	RangesDir string
	// Limits makes the control groups.
	Limits *limits.Manager
	// Warm is how many sandboxes are kept prepared for each kind of task that was asked for in the last minutes: for each
	// root that is Shared and each network policy. They are made while fewer commands run than there are processors, and
	// dropped where memory is short. 0 is none.
	Warm int
	// Network makes the routers of controlled networks.
	Network *netpolicy.Manager
}

// Host makes sandboxes. It may be used by any number of goroutines.
type Host struct {
	cfg     Config
	ranges  *idRanges
	exe     *os.File // this program, sealed
	libs    []string // directories of the host's that the base has too
	space   *os.File // see newSpace
	state   *os.File // see stateDir
	network *os.File // the daemon\'s own namespace
	visitor *thread  // which looks at those of sandboxes
	// preparations are what makes a box, by the filter of its command.
	preparations map[FilterOptions]*written
	zygote       zygote
	// templates are nil until prepare has made them.
	templates         *templates
	mu                sync.Mutex
	closed            bool
	sandboxes         int              // that are open, or about to be
	starting, running int              // tasks
	kinds             map[kindOf]*kind // of what is kept ready
	short             bool             // of memory
	aside             error            // see note
	keeper            keeper
	orphans           int
	left              int
}

// baseDirs are the mount points of the root that libcontainer is given (see
// assembleRoot).
var baseDirs = []string{"proc", "dev", "root", "lower", "layer", "scratch", "empty", "empty/dir"}

// Open readies cfg.Dir. The caller closes the Host once its sandboxes are.
func Open(cfg Config) (*Host, error) {
	if err := Possible(); err != nil {
		return nil, err
	}
	if cfg.RangesDir == "" {
		cfg.RangesDir = "/run/sandboxd-ids"
	}
	// libcontainer hands this on to its own init, which does little; no process reads its own again.
	if err := os.Setenv("GOMAXPROCS", "1"); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	h := &Host{cfg: cfg, zygote: zygote{timeout: zygoteTime}, kinds: map[kindOf]*kind{}, preparations: map[FilterOptions]*written{}}
	if err := h.begin(); err != nil {
		return nil, errors.Join(fmt.Errorf("sandbox: %w", err), h.Close())
	}
	return h, nil
}

func (h *Host) begin() (err error) {
	if err := h.sweep(); err != nil {
		return err
	}
	// A sandbox's root, who is nobody here, passes through to the base.
	for _, d := range []string{"", "base"} {
		if err := openUp(filepath.Join(h.cfg.Dir, d), 0o711); err != nil {
			return err
		}
	}
	for _, d := range baseDirs {
		if err := openUp(filepath.Join(h.cfg.Dir, "base", d), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(h.cfg.Dir, "base", "empty", "file"), nil, 0o444); err != nil {
		return err
	}
	if err := openUp(filepath.Join(h.cfg.Dir, "layers"), 0o700); err != nil {
		return err
	}
	spread(filepath.Join(h.cfg.Dir, "layers"))
	if h.state, err = newTmpfs("libcontainer's state", "0700", "16m", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC); err != nil {
		return err
	}
	masks, err := masks()
	if err != nil {
		return err
	}
	for _, o := range []FilterOptions{{}, {Debug: true}, {Direct: true}, {Debug: true, Direct: true}} {
		filter, err := Filter(o)
		if err != nil {
			return err
		}
		if h.preparations[o], err = preparation(h.cfg.Limits.Hierarchies(), masks, filter).write(); err != nil {
			return err
		}
	}
	if h.ranges, err = openRanges(h.cfg.RangesDir); err != nil {
		return err
	}
	if h.exe, err = sealedProgram(); err != nil {
		return err
	}
	dynamic, err := needsLibraries(h.exe)
	if err == nil && dynamic {
		h.libs, err = linkLibraries(filepath.Join(h.cfg.Dir, "base"))
	}
	if err != nil {
		return err
	}
	if h.space, err = newSpace(h.cfg.Limits.Mounts(), append([]string{h.cfg.Dir, "/proc", os.DevNull}, h.libs...)); err != nil {
		return err
	}
	if h.templates, err = openTemplates(filepath.Join(h.cfg.Dir, "base", "scratch"), h.libs); err != nil {
		return err
	}
	if h.network, err = os.Open("/proc/self/ns/net"); err != nil {
		return err
	}
	h.visitor = newThread()
	h.startKeeper()
	return nil
}

// stateDir is where libcontainer keeps what nobody reads but itself: in memory, mounted
// nowhere, and gone with us.
func (h *Host) stateDir() string { return fmt.Sprintf("/proc/self/fd/%d", h.state.Fd()) }

// openUp makes a directory of exactly mode.
func openUp(dir string, mode fs.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, mode)
}

// spread tells ext4 that what is in a directory has nothing to do with each other: else it looks for the inode of each new
// directory near those of the ones just deleted, which without a journal it must not use for some seconds, and looks at
// them one by one. It is a hint, of no use elsewhere (ioctl_iflags(2)).
func spread(dir string) {
	const topDir = 0x00020000 // FS_TOPDIR_FL
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	if flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}

// sweep removes what is left of a host that was killed.
func (h *Host) sweep() (err error) {
	if h.orphans, err = killOrphans(filepath.Join(h.cfg.Dir, "base")); err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	layers := filepath.Join(h.cfg.Dir, "layers")
	left, err := names(layers)
	if err != nil {
		return err
	}
	for _, n := range left {
		if err := removeBelow(layers, n); err != nil {
			return fmt.Errorf("sweep layers/%s: %w", n, err)
		}
	}
	h.left = len(left)
	return nil
}

// Left is how many processes a killed host had left, and of how many sandboxes the layers, which
// Open removed.
func (h *Host) Left() (processes, layers int) { return h.orphans, h.left }

// names lists a directory; one that is not there has none.
func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all, nil
}

// needsLibraries reports whether a program is not linked statically: such a one has an
// interpreter (elf(5)).
func needsLibraries(program *os.File) (bool, error) {
	f, err := elf.NewFile(program)
	if err != nil {
		return false, fmt.Errorf("this program: %w", err)
	}
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }), nil
}

// linkLibraries makes a place in base for what this program is linked with. It returns the directories to mount.
func linkLibraries(base string) (dirs []string, err error) {
	for _, d := range []string{"usr", "lib", "lib64"} {
		st, err := os.Lstat("/" + d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		at := filepath.Join(base, d)
		if st.IsDir() {
			if err := openUp(at, 0o755); err != nil {
				return nil, err
			}
			dirs = append(dirs, "/"+d)
			continue
		}
		to, err := os.Readlink("/" + d)
		if err != nil {
			return nil, err
		}
		if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err := os.Symlink(to, at); err != nil {
			return nil, err
		}
	}
	return dirs, nil
}

func removeBelow(dir, name string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return rootfs.RemoveTree(d, name)
}

// Close ends the Host. It fails while sandboxes are open.
func (h *Host) Close() error {
	h.mu.Lock()
	if n := h.sandboxes; n > 0 {
		h.mu.Unlock()
		return fmt.Errorf("sandbox: %d sandboxes are open; close them first", n)
	}
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	kinds := h.kinds
	h.kinds = nil
	h.mu.Unlock()
	if h.keeper.stop != nil {
		close(h.keeper.stop)
	}
	var errs []error
	for _, k := range kinds {
		errs = append(errs, h.drop(k))
	}
	h.keeper.stopped.Wait()
	errs = append(errs, h.aside, h.zygote.close())
	if h.templates != nil {
		h.templates.close()
	}
	for _, w := range h.preparations {
		if w != nil {
			errs = append(errs, w.file.Close())
		}
	}
	if h.exe != nil {
		errs = append(errs, h.exe.Close())
	}
	if h.visitor != nil {
		h.visitor.close()
	}
	for _, f := range []*os.File{h.space, h.state, h.network} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if h.ranges != nil {
		errs = append(errs, h.ranges.close())
	}
	return errors.Join(errs...)
}

// Healthy returns an error if no sandbox can be made. It hangs where Start would.
func (h *Host) Healthy() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errors.New("sandbox: the host is closed")
	}
	return nil
}

var errClosed = errors.New("the host is closed")

// makeDevices makes a read-only file system with the devices that every sandbox has,
// mounted nowhere. The nodes must be made by the machine's root, since in a user
// namespace there are none. Each sandbox has its own: before Linux 6.15 what is
// mounted nowhere cannot be cloned.
func makeDevices(ids *os.File) (_ *os.File, err error) {
	dev, err := newTmpfs("devices", "0755", "64k", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	fd := int(dev.Fd())
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make devices: %w", err), dev.Close())
		}
	}()
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err = makeDevice(fd, name, unix.Mkdev(1, minor)); err != nil {
			return nil, err
		}
	}
	if err = makeDevice(fd, "tty", unix.Mkdev(5, 0)); err != nil {
		return nil, err
	}
	for name, to := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err = unix.Symlinkat(to, fd, name); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"pts", "shm"} {
		if err = unix.Mkdirat(fd, name, 0o755); err != nil {
			return nil, err
		}
	}
	return dev, cloneOptions{devices: true}.apply(dev, ids, unix.AT_EMPTY_PATH)
}

// newTmpfs makes a file system in memory, mounted nowhere.
func newTmpfs(what, mode, size string, attrs int) (*os.File, error) {
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen tmpfs: %w", err)
	}
	defer unix.Close(fsfd)
	if err := errors.Join(unix.FsconfigSetString(fsfd, "mode", mode), unix.FsconfigSetString(fsfd, "size", size), unix.FsconfigCreate(fsfd)); err != nil {
		return nil, fmt.Errorf("make the tmpfs of %s: %w", what, err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("fsmount the tmpfs of %s: %w", what, err)
	}
	return os.NewFile(uintptr(fd), what), nil
}

func makeDevice(dir int, name string, dev uint64) error {
	if err := unix.Mknodat(dir, name, unix.S_IFCHR|0o666, int(dev)); err != nil {
		return err
	}
	return unix.Fchmodat(dir, name, 0o666, 0) // past our umask
}

// init takes over in the processes by which libcontainer makes sandboxes.
func init() {
	if len(os.Args) == 2 && os.Args[1] == "init" && os.Getenv("_LIBCONTAINER_INITPIPE") != "" {
		libcontainer.Init()
	}
	// libcontainer takes a thread into each sandbox's mount namespace and lets it end
	// there. The first thread of a process cannot end; were it taken, the process
	// would seem to be in the sandbox for ever (/proc/self is the first thread's). This
	// keeps it to the main goroutine.
	runtime.LockOSThread()
}

// limitedBuffer keeps the first bytes of what a sandbox's first process says.
type limitedBuffer struct {
	mu sync.Mutex
	b  []byte
}

var _ io.Writer = (*limitedBuffer)(nil)

// Write takes all of p.
func (l *limitedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b = append(l.b, p[:min(len(p), 4096-len(l.b))]...)
	return len(p), nil
}

func (l *limitedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}
