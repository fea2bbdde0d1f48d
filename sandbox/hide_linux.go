package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hide hides paths of the work directory from the command, with all below them: by whiteouts in the layer, as an overlay
// makes them when something is removed. The layer is in no overlay yet. What lies below is not looked at: a path costs
// the same whatever is there.
func (s *Sandbox) hide(ctx context.Context, w *Work) error {
	if w.Dir == nil || w.Mode != WorkOverlay || len(w.Hide) == 0 {
		return nil
	}
	upper, err := s.Upper()
	if err != nil {
		return err
	}
	defer upper.Close()
	for _, p := range slices.Sorted(slices.Values(w.Hide)) { // what holds others comes before them
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.hidePath(ctx, w, upper, p); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sandbox) hidePath(ctx context.Context, w *Work, upper *os.File, p string) error {
	fd, err := unix.Openat2(int(w.Dir.Fd()), p, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch err {
	case nil:
		unix.Close(fd)
	case unix.ENOENT, unix.ENOTDIR:
		return nil
	case unix.ELOOP:
		return &OutputError{Output: p, Reason: "a symbolic link leads to it"}
	default:
		return &OutputError{Output: p, Reason: err.Error()}
	}
	at := twin{lower: w.Dir, upper: upper, top: true}
	defer func() { at.close() }()
	if dir := path.Dir(p); dir != "." {
		for name := range strings.SplitSeq(dir, "/") {
			if err := ctx.Err(); err != nil {
				return err
			}
			next, err := at.descend(w, name)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
				return nil // it went meanwhile, or is hidden with what holds it
			}
			var other *OutputError
			if errors.As(err, &other) {
				other.Output = p
			}
			if err != nil {
				return err
			}
			at.close()
			at = next
		}
	}
	return at.whiteout(path.Base(p), s.ids.host(0))
}

// twin is a directory of the caller's, and the layer's that stands for it.
type twin struct {
	lower, upper *os.File
	is           unix.Stat_t // the lower one
	top          bool        // the work directory, which is somebody else's to close, and whose layer has its attributes
}

func (t *twin) close() {
	if !t.top {
		t.lower.Close()
		t.upper.Close()
	}
}

// openDir opens a directory's own directory.
func openDir(dir *os.File, name string) (*os.File, error) {
	defer runtime.KeepAlive(dir)
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// descend is a directory in t, which it makes in the layer as an overlay would: with the owner, mode, times and
// attributes that it has below. An OutputError, without the output, is what is wrong with the caller's.
func (t *twin) descend(w *Work, name string) (next twin, err error) {
	defer func() {
		if err != nil {
			next.lower.Close()
			next.upper.Close()
		}
	}()
	if next.lower, err = openDir(t.lower, name); err != nil {
		if err == unix.ENOENT || err == unix.ENOTDIR {
			return next, err
		}
		return next, &OutputError{Reason: err.Error()}
	}
	if err = unix.Fstat(int(next.lower.Fd()), &next.is); err != nil {
		return next, &OutputError{Reason: err.Error()}
	}
	if next.is.Uid != w.UID || next.is.Gid != w.GID && !slices.Contains(w.Groups, next.is.Gid) {
		// Nobody's inside, and so not to be changed there.
		return next, &OutputError{Reason: fmt.Sprintf("the directory %.200q is of another user or group", name)}
	}
	err = unix.Mkdirat(int(t.upper.Fd()), name, 0o700)
	made := err == nil
	if err != nil && err != unix.EEXIST {
		return next, fmt.Errorf("work layer: %w", err)
	}
	if next.upper, err = openDir(t.upper, name); err != nil {
		return next, fmt.Errorf("work layer: %w", err)
	}
	if made {
		if err = errors.Join(next.copyAttributes(), t.resetTimes(), next.resetTimes()); err != nil {
			return next, fmt.Errorf("work layer: %w", err)
		}
	}
	return next, nil
}

// copyAttributes gives the layer's directory those of the caller's, but for its times.
func (t *twin) copyAttributes() error {
	from, to := int(t.lower.Fd()), int(t.upper.Fd())
	if err := unix.Fchown(to, int(t.is.Uid), int(t.is.Gid)); err != nil {
		return err
	}
	list, err := readXattr(func(b []byte) (int, error) { return unix.Flistxattr(from, b) })
	if err != nil {
		return err
	}
	access := []string{"system.posix_acl_access", "system.posix_acl_default"}
	for _, name := range access { // which it may have from the layer's above
		if err := unix.Fremovexattr(to, name); err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP {
			return err
		}
	}
	for name := range strings.SplitSeq(string(list), "\x00") {
		if !slices.Contains(access, name) && (!strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.overlay.")) {
			continue
		}
		value, err := readXattr(func(b []byte) (int, error) { return unix.Fgetxattr(from, name, b) })
		if err == nil {
			err = unix.Fsetxattr(to, name, value, 0)
		}
		if err != nil && err != unix.ENODATA && err != unix.EOPNOTSUPP {
			return fmt.Errorf("attribute %.100q: %w", name, err)
		}
	}
	return unix.Fchmod(to, t.is.Mode&0o7777)
}

// readXattr reads what read does into a buffer that is large enough: 64 KiB is the kernel's own bound (xattr(7)). Where there are
// no attributes, it is nothing.
func readXattr(read func([]byte) (int, error)) ([]byte, error) {
	n, err := read(nil)
	if err == nil && n > 0 {
		b := make([]byte, 64<<10)
		if n, err = read(b); err == nil {
			return b[:n], nil
		}
	}
	if err == unix.EOPNOTSUPP {
		err = nil
	}
	return nil, err
}

// resetTimes undoes what the making of an entry did.
func (t *twin) resetTimes() error {
	if t.top {
		return nil
	}
	return unix.UtimesNanoAt(int(t.upper.Fd()), "", []unix.Timespec{t.is.Atim, t.is.Mtim}, unix.AT_EMPTY_PATH)
}

// whiteout hides a name. It is owned as the overlay's own are, lest the overlay cannot replace it.
func (t *twin) whiteout(name string, owner int) error {
	fd := int(t.upper.Fd())
	err := unix.Mknodat(fd, name, unix.S_IFCHR, 0)
	if err == nil {
		err = unix.Fchownat(fd, name, owner, owner, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err = errors.Join(err, t.resetTimes()); err != nil {
		return fmt.Errorf("work layer: hide %.200q: %w", name, err)
	}
	return nil
}
