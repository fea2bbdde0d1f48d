package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs"
)

// templates are roots, put together and read-only, of which each sandbox gets a copy of the mounts.
// They are attached in mount namespaces that nobody else sees, since before Linux 6.15 only
// what is attached can be cloned, and one thread alone is in them.
//
// They are put together in one, and reach the other by propagation. That is owned by a user namespace of its own, and so the
// kernel locks their flags there (mount_namespaces(7)), as in all copies: no process of a sandbox's, whatever
// it has in its own user namespace, can make one writable.
type templates struct {
	thread *thread
	dir    string // where they are mounted, in those namespaces
	last   int
	// making and locked are the namespaces, and at the one that the thread is in.
	making, locked, at *os.File
}

// template is one of them. Its owners are the machine's: mapped gives each sandbox's copy others.
type template struct {
	of   *templates
	at   string
	root *rootfs.Rootfs
}

// openTemplates starts the thread. Of the mounts it knows only those that hold dir and what it takes to execute this program.
func openTemplates(dir string, libs []string) (*templates, error) {
	t := &templates{thread: newThread(), dir: dir}
	if err := t.thread.do(func() error { return t.enter(libs) }); err != nil {
		t.close()
		return nil, fmt.Errorf("templates: %w", err)
	}
	return t, nil
}

func (t *templates) enter(libs []string) (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := detachOthers(append([]string{t.dir, "/proc", os.DevNull}, libs...)); err != nil {
		return err
	}
	if err := unix.Mount("sandboxd", t.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700,size=1m"); err != nil {
		return err
	}
	if err := unix.Mount("", t.dir, "", unix.MS_SHARED, ""); err != nil {
		return err
	}
	if t.making, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
		return err
	}
	t.at = t.making
	t.locked, err = newNamespace("mnt", unix.CLONE_NEWUSER|unix.CLONE_NEWNS)
	return err
}

// do runs f in one of the namespaces.
func (t *templates) do(ns *os.File, f func() error) error {
	return t.thread.do(func() error { return t.in(ns, f) })
}

func (t *templates) in(ns *os.File, f func() error) error {
	if t.at != ns {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("mount namespace of templates: %w", err)
		}
		t.at = ns
	}
	return f()
}

// close unmakes the namespaces. There must be no other call at the time, nor later.
func (t *templates) close() {
	for _, f := range []*os.File{t.making, t.locked} {
		if f != nil {
			f.Close()
		}
	}
	t.thread.close()
}

// make puts a root together, with places for inputs as far as the root's own tree holds them.
func (t *templates) make(root *rootfs.Rootfs, inputs []Bind) (_ *template, err error) {
	nodes, err := tree(root.Dir())
	if err != nil {
		return nil, err
	}
	base, err := newTmpfs("root", "0755", "64m", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	if err := fill(base, nodes, inputs); err != nil {
		return nil, err
	}
	// Before it is attached, so that it is locked, too.
	ro := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unlessBusy(func() error { return unix.MountSetattr(int(base.Fd()), "", unix.AT_EMPTY_PATH, &ro) }); err != nil {
		return nil, fmt.Errorf("make the root's mount read-only: %w", err)
	}
	var trees []*os.File
	defer func() {
		for _, f := range trees {
			f.Close()
		}
	}()
	for _, m := range root.Mounts() {
		f, err := cloneTree(m.FD, nil, cloneOptions{recursive: true})
		if err != nil {
			return nil, err
		}
		trees = append(trees, f)
	}
	x := &template{of: t, root: root}
	err = t.do(t.making, func() error {
		t.last++
		x.at = filepath.Join(t.dir, fmt.Sprint(t.last))
		if err := os.Mkdir(x.at, 0o700); err != nil {
			return err
		}
		if err := unix.MoveMount(int(base.Fd()), "", unix.AT_FDCWD, x.at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return errors.Join(fmt.Errorf("attach the root: %w", err), os.Remove(x.at))
		}
		for i, m := range root.Mounts() {
			if err := attachBeneath(trees[i], int(base.Fd()), m.Target); err != nil {
				return errors.Join(err, x.remove())
			}
		}
		// The file system itself, which only the machine's root can undo. A sandbox's could make a mount writable, if
		// anything ever was that, and all others have this one.
		err := unlessBusy(func() error {
			return unix.Mount("", x.at, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
		})
		if err != nil {
			return errors.Join(fmt.Errorf("make the root read-only: %w", err), x.remove())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = t.do(t.locked, func() error {
		// Copies of it are to be nobody's slaves.
		return unix.MountSetattr(unix.AT_FDCWD, x.at, unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the root: %w", err), x.close())
	}
	return x, nil
}

// lock is a copy of a detached mount, without others below it, with locked flags. The caller closes both.
func (t *templates) lock(tree *os.File) (_ *os.File, err error) {
	fd, at := -1, filepath.Join(t.dir, "file")
	err = t.do(t.making, func() error {
		f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE, 0o400)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		err = t.in(t.locked, func() (err error) {
			fd, err = unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
			return err
		})
		return errors.Join(err, t.in(t.making, func() error { return unix.Unmount(at, unix.MNT_DETACH) }))
	})
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("lock the mount of %s: %w", tree.Name(), err)
	}
	return os.NewFile(uintptr(fd), tree.Name()), nil
}

// unlessBusy tries what fails while a file is open for writing. We have closed all of ours, but a process that this one is
// about to make somewhere else has them until it executes its program.
func unlessBusy(f func() error) (err error) {
	for range 1000 {
		if err = f(); err != unix.EBUSY {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return err
}

// fill makes a root's own tree, and in it the places of inputs that are not there. What
// cannot be made there may have its place in a mount: the sandbox will see.
func fill(base *os.File, nodes []node, inputs []Bind) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", base.Fd()))
	if err != nil {
		return fmt.Errorf("the root: %w", err)
	}
	defer root.Close()
	for _, n := range nodes {
		if err := n.make(root); err != nil {
			return err
		}
	}
	for _, in := range inputs {
		at := strings.Trim(in.Target, "/")
		st, err := in.File.Stat()
		if err != nil {
			return fmt.Errorf("input %s: %w", in.Target, err)
		}
		if st.IsDir() {
			_ = mkdirs(root, at)
			continue
		}
		if mkdirs(root, path.Dir(at)) == nil {
			if f, err := root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444); err == nil {
				f.Close()
			}
		}
	}
	return nil
}

// mkdirs makes a directory and those above it, whatever the umask.
func mkdirs(root *os.Root, dir string) error {
	if dir == "." {
		return nil
	}
	if err := mkdirs(root, path.Dir(dir)); err != nil {
		return err
	}
	err := root.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return root.Chmod(dir, 0o755)
}

// make makes one node beneath root.
func (n node) make(root *os.Root) error {
	var err error
	switch {
	case n.Mode.IsDir():
		if err = root.Mkdir(n.Path, n.Mode.Perm()); errors.Is(err, os.ErrExist) {
			err = nil
		}
		err = errors.Join(err, root.Chmod(n.Path, n.Mode.Perm())) // past our umask
	case n.Link != "":
		err = root.Symlink(n.Link, n.Path)
	default:
		var f *os.File
		if f, err = root.OpenFile(n.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, n.Mode.Perm()); err == nil {
			_, err = f.Write(n.Data)
			err = errors.Join(err, f.Chmod(n.Mode.Perm()), f.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("make /%s: %w", n.Path, err)
	}
	return nil
}

// attachBeneath puts a detached mount at target beneath a directory. No link is followed on
// the way: the root's own are not to be mounted at.
func attachBeneath(tree *os.File, root int, target string) error {
	at, err := unix.Openat2(root, strings.TrimPrefix(target, "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return fmt.Errorf("mount point %s: %w", target, err)
	}
	defer unix.Close(at)
	if err := unix.MoveMount(int(tree.Fd()), "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach %s: %w", target, err)
	}
	return nil
}

// remove detaches it where it was made, and is called there.
func (x *template) remove() error {
	return errors.Join(unix.Unmount(x.at, unix.MNT_DETACH), os.Remove(x.at))
}

// close detaches it. Sandboxes keep their copies.
func (x *template) close() error {
	err := x.of.do(x.of.locked, func() error { return unix.Unmount(x.at, unix.MNT_DETACH) })
	if err = errors.Join(err, x.of.do(x.of.making, x.remove)); err != nil {
		return fmt.Errorf("template of a root: %w", err)
	}
	return nil
}

// clone is a copy of the mounts, detached, whose owners ids says.
func (x *template) clone(ids *os.File) (*os.File, error) {
	fd := -1
	err := x.of.do(x.of.locked, func() (err error) {
		fd, err = unix.OpenTree(unix.AT_FDCWD, x.at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("clone the mounts of a root: %w", err)
	}
	f := os.NewFile(uintptr(fd), "root")
	if err := x.mapOwners(f, ids); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// mapOwners is for all mounts at once, or where some cannot be mapped for each: the files of
// such a one are then no one's, which takes permissions away and gives none.
func (x *template) mapOwners(f, ids *os.File) error {
	defer runtime.KeepAlive(ids)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ids.Fd())}
	err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr)
	if err != unix.EINVAL && err != unix.EPERM {
		return err
	}
	paths := []string{""}
	for _, m := range x.root.Mounts() {
		paths = append(paths, strings.TrimPrefix(m.Target, "/"))
	}
	for _, p := range paths {
		how := uint(unix.AT_RECURSIVE)
		if p == "" {
			how = unix.AT_EMPTY_PATH
		}
		if err := unix.MountSetattr(int(f.Fd()), p, how, &attr); err != nil && err != unix.EINVAL && err != unix.EPERM {
			return fmt.Errorf("owners of /%s: %w", p, err)
		}
	}
	return nil
}
