package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// beneath is how every path is resolved: below its directory, through no link.
	beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	// inMount is beneath and across no mount.
	inMount = beneath | unix.RESOLVE_NO_XDEV
	// maxTries bounds retries of calls that lost a race against a rename.
	maxTries = 128
	// dirBatch is how many names are read from a directory at once.
	dirBatch = 1024
)

// again repeats call while it is interrupted, or lost a race, in bounds.
func again(call func() error) error {
	var err error
	for range maxTries {
		if err = call(); err != unix.EINTR && err != unix.EAGAIN {
			return err
		}
	}
	return err
}

// openBeneath opens p below dir.
func openBeneath(dir *os.File, p string, flags int, resolve uint64) (*os.File, error) {
	return createBeneath(dir, p, flags, 0, resolve)
}

// createBeneath is openBeneath with O_CREAT among the flags.
func createBeneath(dir *os.File, p string, flags int, mode uint32, resolve uint64) (*os.File, error) {
	defer runtime.KeepAlive(dir)
	how := &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW), Mode: uint64(mode), Resolve: resolve}
	fd := -1
	err := again(func() (err error) {
		fd, err = unix.Openat2(int(dir.Fd()), p, how)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path.Join(dir.Name(), p)), nil
}

// openParent opens the directory that holds p, for use as a starting point only.
func openParent(dir *os.File, p string, resolve uint64) (*os.File, error) {
	return openDir(dir, path.Dir(p), resolve)
}

// openDir opens the directory p below dir, for use as a starting point only. A link
// is ELOOP: by the name alone it would be ENOTDIR, as a file is.
func openDir(dir *os.File, p string, resolve uint64) (*os.File, error) {
	return openBeneath(dir, p+"/.", unix.O_PATH|unix.O_DIRECTORY, resolve)
}

// lstat is the status of dir's entry name, which is not followed.
func lstat(dir *os.File, name string) (unix.Stat_t, error) {
	defer runtime.KeepAlive(dir)
	var st unix.Stat_t
	err := again(func() error {
		return unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	})
	return st, err
}

func fstat(f *os.File) (unix.Stat_t, error) {
	defer runtime.KeepAlive(f)
	var st unix.Stat_t
	err := again(func() error { return unix.Fstat(int(f.Fd()), &st) })
	return st, err
}

// readlink is the target of dir's entry name; "" for dir itself, opened with O_PATH.
func readlink(dir *os.File, name string) (string, error) {
	defer runtime.KeepAlive(dir)
	b := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(int(dir.Fd()), name, b)
	if err != nil {
		return "", err
	}
	if n > maxPath {
		return "", unix.ENAMETOOLONG
	}
	return string(b[:n]), nil
}

func unlink(dir *os.File, name string, flags int) error {
	defer runtime.KeepAlive(dir)
	return again(func() error { return unix.Unlinkat(int(dir.Fd()), name, flags) })
}

// rename moves a's entry from to b's entry to.
func rename(a *os.File, from string, b *os.File, to string, flags uint) error {
	defer runtime.KeepAlive(a)
	defer runtime.KeepAlive(b)
	return again(func() error { return unix.Renameat2(int(a.Fd()), from, int(b.Fd()), to, flags) })
}

// reopen opens a file or directory that was opened with O_PATH: that one, whatever its path
// leads to by now.
func reopen(f *os.File, flags int) (*os.File, error) {
	defer runtime.KeepAlive(f)
	fd := -1
	err := again(func() (err error) {
		fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// isDir reports whether f is a directory.
func isDir(f *os.File) error {
	st, err := fstat(f)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	return err
}

// kindOf names a file type in an error.
func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "a device"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFREG:
		return "a regular file"
	case unix.S_IFDIR:
		return "a directory"
	}
	return "of an unknown type"
}

// explain gives an error of a path the reason that a person can act on.
func explain(p string, err error) error {
	reason := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ELOOP):
		reason = "is, or lies beyond, a symbolic link, which is not followed; use the path that it stands for"
	case errors.Is(err, unix.EXDEV):
		reason = "is, or lies on, another mount, which is not entered; unmount it"
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		reason = "vanished meanwhile; let nothing else change the tree"
	case errors.Is(err, unix.EAGAIN):
		reason = "changes all the time; let nothing else change the tree"
	case errors.Is(err, unix.ENOTDIR):
		reason = "is, or lies beyond, what is no directory"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		reason = "may not be used"
	case errors.Is(err, unix.EBUSY):
		reason = "is a mount point; unmount it"
	case errors.Is(err, unix.ENXIO):
		reason = "is a socket or a device without a driver"
	case errors.Is(err, unix.ENAMETOOLONG):
		reason = "has a name too long for the file system; shorten it"
	default:
		return fmt.Errorf("%s: %w", display(p), err)
	}
	return &EntryError{Path: p, Reason: reason, Err: err}
}
