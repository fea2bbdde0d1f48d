package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// maxMounts bounds the mounts of a root.
	maxMounts = 512
	// maxCopy is up to which size a file is copied into the skeleton, in bytes: a
	// mount costs each sandbox more than a read.
	maxCopy = 16 << 10
	// maxCopied bounds the bytes of all copies, and of links: a sandbox may hold
	// the skeleton in memory. Files beyond it are mounted.
	maxCopied = 2 << 20
	// othersRead and othersEnter are what the mode of a file and of a directory must hold; without
	// othersSearch nobody else comes to what is in a directory.
	othersRead, othersEnter, othersSearch = 0o004, 0o005, 0o001
)

// Rootfs is an open root. All methods but Close may be called concurrently.
type Rootfs struct {
	dir      string
	spec     Spec
	src      *os.File // what Spec.Root names, O_PATH
	mounts   []Mount
	resolve  uint64             // how paths in src are resolved
	seen     map[string]fileKey // what was found in src
	listed   []byte             // digest of what the handMade directories list
	watch    *watcher           // of the host's root
	resolv   []byte             // content of the host's resolv.conf
	copied   int64              // bytes, see maxCopied
	identity string
	closing  sync.Once
	closed   error
}

// Open makes the skeleton of a root in dir, which it makes and which must not be
// there, and opens what is to be mounted over it. dir's parent must be no one's
// but the caller's. The Rootfs must be closed.
//
// The host's root shows what is in usr, bin, sbin and lib*, and the harmless part
// of etc. A directory as Spec.Root shows all that it holds, except
//   - proc, dev, sys, tmp, build, run, home, var/tmp and .sandboxd, which are the
//     sandbox's own: any of them that is no directory is refused, above all a
//     symbolic link, which would lead a mount elsewhere;
//   - the files of etc that are made here, such as passwd and resolv.conf;
//   - what others may not read, and FIFOs, sockets and devices.
//
// It must hold no mounts except in the directories named, and be on a real file
// system: not FUSE, whose server could hold up the daemon, nor /proc and its like.
// Open then looks at each file of it, for Identity.
//
// Links are shown as they are: they lead to what the sandbox has at their target.
func Open(dir string, spec Spec) (*Rootfs, error) {
	spec, err := spec.orDefault()
	if err != nil {
		return nil, err
	}
	r := &Rootfs{dir: dir, spec: spec, resolve: beneath, seen: map[string]fileKey{}}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("skeleton: %w", err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), r.make()); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Rootfs) make() (err error) {
	root := "/"
	if r.spec.Root != "" {
		root = r.spec.Root
	}
	// What Root names may be a link; below it, none is followed.
	if r.src, err = os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if r.spec.Root != "" {
		r.resolve = inMount
		if err := r.checkRoot(); err != nil {
			return err
		}
	}
	for _, d := range ownDirs {
		if err := r.mkdir(d); err != nil {
			return err
		}
	}
	switch r.spec.Network {
	case NetworkFull:
		if r.resolv, err = hostResolv(); err != nil {
			return err
		}
	case NetworkControlled:
		r.resolv = fmt.Appendf(nil, "nameserver %s\n", r.spec.Nameserver)
	}
	for name, content := range r.spec.synthesised(r.resolv) {
		if err := r.writeFile("etc/"+name, []byte(content)); err != nil {
			return err
		}
	}
	if r.spec.Root == "" {
		err = r.takeHost()
	} else {
		err = r.takeDirectory()
	}
	if err != nil {
		return err
	}
	if r.spec.Root == "" {
		if r.watch, err = newWatcher(); err != nil {
			return err
		}
	}
	r.identity, err = r.identify()
	return err
}

// hostResolv reads the host's resolv.conf, wherever a link puts it; there may be none.
func hostResolv() ([]byte, error) {
	f, err := os.OpenFile("/etc/resolv.conf", os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxResolvConf+1))
	if err == nil && len(b) > maxResolvConf {
		err = fmt.Errorf("/etc/resolv.conf is longer than %d bytes; shorten it", maxResolvConf)
	}
	return b, err
}

// unreal are file systems that are no root: made up by the kernel, and telling of
// the machine, or served by someone who may not answer.
var unreal = []string{"proc", "sysfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "debugfs", "tracefs", "securityfs",
	"configfs", "bpf", "pstore", "efivarfs", "mqueue", "nsfs", "binfmt_misc", "autofs", "fuse", "fuseblk"}

// checkRoot refuses directories that cannot be a root.
func (r *Rootfs) checkRoot() error {
	// First, and from what the kernel knows by itself: any look into it may hang.
	kind, err := mountKind(r.src)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if slices.Contains(unreal, kind) || strings.HasPrefix(kind, "fuse.") {
		return fmt.Errorf("root: is a file system of type %s; use a directory on a disk", kind)
	}
	own, err := fstat(r.src)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	var host unix.Stat_t
	if err := unix.Stat("/", &host); err != nil {
		return fmt.Errorf("/: %w", err)
	}
	if own.Dev == host.Dev && own.Ino == host.Ino {
		return errors.New("root: is the machine's own; leave it empty for the machine's programs")
	}
	// dev's are not used either, but a root that has links there means harm.
	for _, d := range append(slices.Clone(ownDirs), "dev/console", "dev/pts", "dev/shm") {
		f, err := openBeneath(r.src, d, unix.O_PATH, r.resolve)
		if err == unix.ENOENT || err == unix.EXDEV {
			continue // what is a mount is no link
		}
		if err != nil {
			return fmt.Errorf("root: %w", explain(d, err))
		}
		st, err := fstat(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("root: %w", explain(d, err))
		}
		if k := st.Mode & unix.S_IFMT; k != unix.S_IFDIR && (d != "dev/console" || k == unix.S_IFLNK) {
			return &EntryError{Path: d, Reason: "is " + kindOf(st.Mode) + " in the root, where the sandbox has a directory of its own; remove it from there"}
		}
	}
	return nil
}

// mountKind is the type of the file system that f is on. It asks the kernel's
// mount table, never the file system.
func mountKind(f *os.File) (string, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(info), "mnt_id:")
	id, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	// Not self: the first thread may have another mount namespace.
	table, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(table)) {
		if !strings.HasPrefix(line, id+" ") {
			continue
		}
		if _, rest, ok := strings.Cut(line, " - "); ok {
			kind, _, _ := strings.Cut(rest, " ")
			return kind, nil
		}
	}
	return "", errors.New("is on no mount that is seen here; use a directory of the machine's own tree")
}

// takeHost takes the host's programs, and its etc in part.
func (r *Rootfs) takeHost() error {
	for _, name := range hostTop {
		if err := r.takeTop(name); err != nil {
			return err
		}
	}
	for _, pattern := range hostEtc {
		if err := r.match("etc", strings.Split(pattern, "/")); err != nil {
			return err
		}
	}
	return nil
}

// takeTop takes a directory of the host's, also if it lies elsewhere and is a link here.
func (r *Rootfs) takeTop(name string) error {
	to, err := readlink(r.src, name)
	if err != nil || slices.Contains(hostTop, first(path.Join("/", to))) {
		return r.take(name)
	}
	f, err := openBeneath(r.src, name+"/.", unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return fmt.Errorf("root: %w", explain(name, err))
	}
	return r.mount(name, f, true)
}

// first is the first component of an absolute path.
func first(p string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
	return name
}

// match takes what matches the rest of a pattern in the directory at.
func (r *Rootfs) match(at string, rest []string) error {
	names := []string{rest[0]}
	if strings.ContainsAny(rest[0], "*?[") {
		all, err := r.list(at)
		if err != nil {
			return err
		}
		names = slices.DeleteFunc(all, func(n string) bool {
			ok, err := path.Match(rest[0], n)
			return !ok || err != nil
		})
	}
	for _, n := range names {
		p := path.Join(at, n)
		if len(rest) == 1 {
			if err := r.take(p); err != nil {
				return err
			}
			continue
		}
		st, err := lstat(r.src, p)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&othersEnter == othersEnter {
			if err := r.match(p, rest[1:]); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeDirectory takes all of a directory root that is not a sandbox's own.
func (r *Rootfs) takeDirectory() error {
	made := r.spec.synthesised(nil)
	for _, at := range []string{".", "etc", "var"} {
		names, err := r.list(at)
		if err != nil {
			return err
		}
		for _, n := range names {
			p := path.Join(at, n)
			if _, ok := made[n]; ok && at == "etc" || slices.Contains(ownDirs, p) {
				continue
			}
			if err := r.take(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// list reads the names in src's directory p, sorted. There are none if others may
// not enter it: who opened src for us may be one of them.
func (r *Rootfs) list(p string) ([]string, error) {
	d, err := openBeneath(r.src, p, unix.O_RDONLY|unix.O_DIRECTORY, r.resolve)
	if err == unix.ENOENT && p != "." {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("root: %w", explain(p, err))
	}
	defer d.Close()
	st, err := fstat(d)
	if err != nil {
		return nil, fmt.Errorf("root: %w", explain(p, err))
	}
	if st.Mode&othersEnter != othersEnter {
		if p == "." {
			return nil, errors.New("root: others may not enter it, and a task is another; chmod o+rx it")
		}
		return nil, nil
	}
	names, err := d.Readdirnames(maxTopLevel + 1)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("root: %w", explain(p, err))
	}
	if len(names) > maxTopLevel {
		return nil, tooMany(p, maxTopLevel, "entries")
	}
	slices.Sort(names)
	return names, nil
}

// tooMany is a root beyond a bound.
func tooMany(p string, bound int64, of string) error {
	return fmt.Errorf("root: %w", &EntryError{Path: p, Reason: fmt.Sprintf("has more than %d %s; use a smaller root", bound, of)})
}

// take shows src's entry p, if there is one: a link and a small file as a copy, a
// directory and a large file by a mount. What others may not read is left out.
func (r *Rootfs) take(p string) error {
	f, err := openBeneath(r.src, p, unix.O_PATH, r.resolve)
	if err == unix.ENOENT {
		r.seen[p] = fileKey{}
		return nil
	}
	if err != nil {
		return fmt.Errorf("root: %w", explain(p, err))
	}
	// From here on, f and not p is looked at: p may have become something else.
	st, err := fstat(f)
	if err != nil {
		f.Close()
		return fmt.Errorf("root: %w", explain(p, err))
	}
	if !utf8.ValidString(p) {
		f.Close()
		return fmt.Errorf("root: %w", &EntryError{Path: p, Reason: "is not UTF-8; rename it"})
	}
	r.seen[p] = keyOf(st)
	switch k := st.Mode & unix.S_IFMT; {
	case k == unix.S_IFLNK:
		defer f.Close()
		return r.copyLink(f, p)
	case k == unix.S_IFDIR && st.Mode&othersEnter == othersEnter:
		return r.mount(p, f, true)
	case k == unix.S_IFREG && st.Mode&othersRead != 0 && st.Size <= min(maxCopy, maxCopied-r.copied):
		defer f.Close()
		return r.copyFile(f, p)
	case k == unix.S_IFREG && st.Mode&othersRead != 0:
		return r.mount(p, f, false)
	}
	return f.Close()
}

func (r *Rootfs) copyLink(f *os.File, p string) error {
	to, err := readlink(f, "")
	if err != nil {
		return fmt.Errorf("root: %w", explain(p, err))
	}
	if !utf8.ValidString(to) {
		return fmt.Errorf("root: %w", &EntryError{Path: p, Reason: "is a symbolic link to a name that is not UTF-8; rename it"})
	}
	if r.copied += int64(len(to)); r.copied > maxCopied {
		return tooMany(p, maxCopied, "bytes in the targets of its links")
	}
	if err := r.mkdir(path.Dir(p)); err != nil {
		return err
	}
	if err := os.Symlink(to, r.at(p)); err != nil {
		return fmt.Errorf("skeleton: %w", err)
	}
	return nil
}

// copyFile copies a regular file that was opened with O_PATH.
func (r *Rootfs) copyFile(f *os.File, p string) error {
	in, err := reopen(f, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("root: %w", explain(p, err))
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, maxCopy+1))
	if err != nil {
		return fmt.Errorf("root: %w", explain(p, err))
	}
	if len(b) > maxCopy {
		return fmt.Errorf("root: %w", &EntryError{Path: p, Reason: "grows; let nothing change the root while it is opened"})
	}
	r.copied += int64(len(b))
	if err := r.writeFile(p, b); err != nil {
		return err
	}
	if st, err := fstat(in); err == nil && st.Mode&0o111 != 0 {
		return os.Chmod(r.at(p), 0o755)
	}
	return nil
}

// mount shows f, which then is the Rootfs', at p.
func (r *Rootfs) mount(p string, f *os.File, dir bool) error {
	r.mounts = append(r.mounts, Mount{Source: r.name(p), Target: "/" + p, Dir: dir, FD: f})
	if len(r.mounts) > maxMounts {
		return tooMany(".", maxMounts, "directories and large files, those of etc and var counted in")
	}
	if dir {
		return r.mkdir(p)
	}
	return r.writeFile(p, nil)
}

// name is a path of the host for src's p, for messages.
func (r *Rootfs) name(p string) string {
	root, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.src.Fd()))
	if err != nil {
		root = r.spec.Root
	}
	return path.Join(root, p)
}

// at is where p is in the skeleton.
func (r *Rootfs) at(p string) string { return filepath.Join(r.dir, p) }

// mkdir makes the skeleton's directory p, and those above, whatever the umask.
func (r *Rootfs) mkdir(p string) error {
	if p == "." {
		return nil
	}
	if err := r.mkdir(path.Dir(p)); err != nil {
		return err
	}
	switch err := os.Mkdir(r.at(p), 0o755); {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return fmt.Errorf("skeleton: %w", err)
	}
	return os.Chmod(r.at(p), 0o755)
}

func (r *Rootfs) writeFile(p string, content []byte) error {
	if err := r.mkdir(path.Dir(p)); err != nil {
		return err
	}
	f, err := os.OpenFile(r.at(p), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("skeleton: %w", err)
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("skeleton: %w", err)
	}
	return nil
}

// Dir is the skeleton's path: directories, symbolic links and regular files, of
// which there are at most 8192, of 64 KiB each and some 2 MiB in all. Nothing but the
// Rootfs may change what is there. A sandbox that needs other mount points makes
// a tree like it.
func (r *Rootfs) Dir() string { return r.dir }

// OpenDir opens the skeleton with O_PATH; close it.
func (r *Rootfs) OpenDir() (*os.File, error) {
	return os.OpenFile(r.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// Mounts are what to mount over the skeleton, read-only, nosuid and nodev; none
// lies in another. Don't change them.
func (r *Rootfs) Mounts() []Mount { return r.mounts }

// Identity is a digest of what the root held when it was opened: two roots with
// the same show a task the same. It is for signatures; that it differs means nothing.
//
// Of the host's root it covers the package manager's records, os-release and the rest
// of etc that is shown, the alternatives, and bin, sbin, lib, include and share of /usr/local
// with all below them, unless there are more than 200,000 files. A file of a package
// that was changed by hand is not noticed, unless there is no package manager. Of a
// directory, and of a host without one, it covers the path, kind, mode, owner, size, inode
// and times of each file that others can come to: a copy of the directory has another identity.
// resolv.conf does not count.
func (r *Rootfs) Identity() string { return r.identity }

// Fresh reports whether the root is still what it was when opened: a package
// manager replaces files that are mounted, and the old ones would be seen. It looks
// at what is mounted and at package records, and the kernel tells it of changes in the host's
// directories that Identity covers, of 32,768 at most; where there are more, or
// no more can be watched, it looks at what the top of those in /usr/local lists.
// It costs a fraction of a millisecond.
func (r *Rootfs) Fresh() bool {
	if r.watch.changed() {
		return false
	}
	for p, was := range r.seen {
		st, err := lstat(r.src, p)
		if err != nil && err != unix.ENOENT || err == unix.ENOENT && was != (fileKey{}) || err == nil && keyOf(st) != was {
			return false
		}
	}
	if r.spec.Root != "" {
		return true
	}
	if r.spec.Network == NetworkFull {
		if b, err := hostResolv(); err != nil || !bytes.Equal(b, r.resolv) {
			return false
		}
	}
	if r.watch != nil && !r.watch.partial {
		return true
	}
	listed, err := r.listHandMade()
	return err == nil && bytes.Equal(listed, r.listed)
}

// Close closes the mounts' files and removes the skeleton. More calls return what
// the first did.
func (r *Rootfs) Close() error {
	r.closing.Do(func() {
		var errs []error
		for _, m := range r.mounts {
			errs = append(errs, m.FD.Close())
		}
		if r.src != nil {
			errs = append(errs, r.src.Close())
		}
		errs = append(errs, r.watch.close())
		errs = append(errs, removePath(r.dir))
		r.closed = errors.Join(errs...)
	})
	return r.closed
}

func removePath(p string) error {
	parent, err := os.Open(filepath.Dir(p))
	if err != nil {
		return fmt.Errorf("skeleton: %w", err)
	}
	defer parent.Close()
	return RemoveTree(parent, filepath.Base(p))
}
