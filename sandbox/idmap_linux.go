package sandbox

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// Host ids that sandboxes use: rangeCount ranges of rangeSize ids from rangeBase
// up. systemd leaves them free (uids.systemd.io: containers end at 0x6FFFFFFF,
// foreign ids begin at 0x7FFE0000), and so do the defaults of useradd.
const (
	rangeBase  = 0x70000000
	rangeSize  = 65536
	rangeCount = 4080
	overflow   = 65534
)

// idRange is a lease of host ids base … base+rangeSize-1, of one sandbox at a time.
type idRange struct {
	base uint32
	lock *os.File
	// maps are user namespaces that hold nothing but a map, by the owner on disk.
	maps map[string]*os.File
}

// owner is whose files on disk are the command's.
type owner struct {
	uid, gid uint32
	// groups are further ones whose files may be written to, by their owner.
	groups []uint32
}

const (
	// maxMaps is how many maps a range keeps while nobody uses it.
	maxMaps = 32
	// maxGroups is how many groups are mapped beside an owner's own, to ids from groupBase on. A map is one page of
	// text to the kernel, and of 340 lines.
	maxGroups = 64
	groupBase = 60000
)

// idRanges leases ranges. Locked files in a directory that all daemons of a
// machine share keep two from using one. Ranges stay leased until close, since
// their maps are worth keeping.
type idRanges struct {
	dir  string
	mu   sync.Mutex
	free []*idRange
	all  int
}

func openRanges(dir string) (*idRanges, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("id ranges: %w", err)
	}
	st, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("id ranges: %w", err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || !st.IsDir() || sys.Uid != 0 || st.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("id ranges: %s must be a directory of root's that no one else can write to; remove it", dir)
	}
	return &idRanges{dir: dir}, nil
}

// take leases a range.
func (r *idRanges) take() (*idRange, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.free); n > 0 {
		x := r.free[n-1]
		r.free = r.free[:n-1]
		return x, nil
	}
	// From a random place on, so that two daemons seldom try the same ones.
	for i, n := 0, rand.IntN(rangeCount); i < rangeCount; i, n = i+1, (n+1)%rangeCount {
		f, err := os.OpenFile(filepath.Join(r.dir, strconv.Itoa(n)), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("id ranges: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			r.all++
			return &idRange{base: rangeBase + uint32(n)*rangeSize, lock: f, maps: map[string]*os.File{}}, nil
		}
		f.Close()
		if err != unix.EWOULDBLOCK {
			return nil, fmt.Errorf("id ranges: lock %s: %w", f.Name(), err)
		}
	}
	return nil, fmt.Errorf("id ranges: all %d are in use; run fewer tasks at once", rangeCount)
}

// give returns a range of which no process is left.
func (r *idRanges) give(x *idRange) error {
	var errs []error
	if len(x.maps) > maxMaps { // of many owners, who may be one user with many ids
		for _, f := range x.maps {
			errs = append(errs, f.Close())
		}
		clear(x.maps)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free = append(r.free, x)
	return errors.Join(errs...)
}

// close ends the leases of all ranges that were given back.
func (r *idRanges) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, x := range r.free {
		errs = append(errs, x.close())
	}
	r.free = nil
	return errors.Join(errs...)
}

func (x *idRange) close() error {
	var errs []error
	for _, f := range x.maps {
		errs = append(errs, f.Close())
	}
	return errors.Join(append(errs, x.lock.Close())...)
}

func (x *idRange) host(inside int) int { return int(x.base) + inside }

// files is the map by which o's files are the command's, and no one else's are
// anybody's. Nobody is in o's further groups inside, but what is theirs has an id there: the kernel refuses
// writes, also by the owner, to what has none. The sandbox's root has an id on disk as well: its own, since it makes
// the overlay's whiteouts.
func (b *box) files(o owner) (*os.File, error) {
	x, key := b.ids, fmt.Sprint(o)
	if f := x.maps[key]; f != nil {
		return f, nil
	}
	uids, err := x.fileMap(o.uid, UID)
	if err != nil {
		return nil, fmt.Errorf("uid: %w", err)
	}
	gids, err := x.fileMap(o.gid, GID)
	if err != nil {
		return nil, fmt.Errorf("gid: %w", err)
	}
	mapped := map[uint32]bool{o.gid: true}
	for _, g := range o.groups {
		if n := len(mapped); n <= maxGroups && !mapped[g] && Mappable(g) {
			mapped[g] = true
			gids = append(gids, syscall.SysProcIDMap{ContainerID: int(g), HostID: x.host(groupBase + n), Size: 1})
		}
	}
	f, err := b.host.newMap(uids, gids)
	if err != nil {
		return nil, err
	}
	x.maps[key] = f
	return f, nil
}

// Mappable reports whether files of this user or group may be a command's: not nobody's, and
// not those of another sandbox.
func Mappable(id uint32) bool {
	return id != overflow && (id < rangeBase || id >= rangeBase+rangeCount*rangeSize)
}

func (x *idRange) fileMap(id uint32, inside int) ([]syscall.SysProcIDMap, error) {
	if !Mappable(id) {
		return nil, fmt.Errorf("%d is nobody's, or a sandbox's own; give the work directory another owner", id)
	}
	return []syscall.SysProcIDMap{
		{ContainerID: int(id), HostID: x.host(inside), Size: 1},
		{ContainerID: x.host(0), HostID: x.host(0), Size: 1},
	}, nil
}

// newMap makes a user namespace of which only the maps matter. They last as long as the file. A zygote makes it in a
// tenth of the time that this program would take, of which all memory would be copied.
func (h *Host) newMap(uids, gids []syscall.SysProcIDMap) (ns *os.File, err error) {
	lines := func(maps []syscall.SysProcIDMap) string {
		var b strings.Builder
		for _, m := range maps {
			fmt.Fprintln(&b, m.ContainerID, m.HostID, m.Size)
		}
		return b.String()
	}
	n, err := h.zygote.clone(h, first.Request{Map: true, UIDs: lines(uids), GIDs: lines(gids)})
	if err != nil {
		return nil, fmt.Errorf("id map: %w", err)
	}
	b := &box{pidfd: n.pidfd}
	b.later(n.of.release)
	b.later(n.pidfd.Close)
	b.later(b.signalKill)
	b.later(n.sock.Close)
	if b.pid, err = pidOf(b.pidfd); err == nil {
		ns, err = b.namespace("user")
	}
	return ns, errors.Join(err, b.undoAll())
}

// newNamespace makes namespaces, and keeps the one of the name that it has in /proc. There is no process in it.
func newNamespace(name string, flags uintptr) (ns *os.File, err error) {
	// A tracer is a thread. The child stops before its first instruction.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"sandboxd-idmap"}
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Ptrace: true, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("make a %s namespace: %w", name, err)
	}
	defer func() {
		kill := cmd.Process.Kill()
		// Killed is what it should be; Wait reports it as an error.
		_, wait := cmd.Process.Wait()
		err = errors.Join(err, kill, wait)
	}()
	ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/%s", cmd.Process.Pid, name))
	if err != nil {
		return nil, fmt.Errorf("%s namespace: %w", name, err)
	}
	return ns, nil
}

// cloneOptions say how a tree is cloned.
type cloneOptions struct {
	// recursive takes the mounts below along.
	recursive bool
	// writable is for work directories only.
	writable bool
	// devices permits device nodes.
	devices bool
	// mustMap fails where the file system cannot be id-mapped. Otherwise its files
	// are then no one's inside, which takes permissions away and gives none.
	mustMap bool
}

// cloneTree makes a detached mount of an open directory or file.
func cloneTree(f, ids *os.File, o cloneOptions) (*os.File, error) {
	defer runtime.KeepAlive(f)
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	at := uint(unix.AT_EMPTY_PATH)
	if o.recursive {
		flags |= unix.AT_RECURSIVE
		at |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(int(f.Fd()), "", flags)
	if err != nil {
		return nil, fmt.Errorf("clone the mount of %s: %w", f.Name(), err)
	}
	tree := os.NewFile(uintptr(fd), f.Name())
	if err := o.apply(tree, ids, at); err != nil {
		return nil, errors.Join(err, tree.Close())
	}
	return tree, nil
}

// apply sets a detached mount's attributes, and its owners if ids are given.
func (o cloneOptions) apply(tree, ids *os.File, at uint) error {
	fd := int(tree.Fd())
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_PRIVATE}
	if !o.devices {
		attr.Attr_set |= unix.MOUNT_ATTR_NODEV
	}
	if !o.writable {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", at, &attr); err != nil {
		return fmt.Errorf("mount attributes of %s: %w", tree.Name(), err)
	}
	if ids == nil {
		return nil
	}
	idmap := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ids.Fd())}
	err := unix.MountSetattr(fd, "", at, &idmap)
	runtime.KeepAlive(ids)
	if err == nil || !o.mustMap && (err == unix.EINVAL || err == unix.EPERM) {
		return nil
	}
	if err == unix.EINVAL || err == unix.EPERM {
		return &UnmappableError{Path: tree.Name(), Err: err}
	}
	return err
}
