package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Adopt is PutFile of all of f, which is the file name beneath dir, open for reading alone. If it can it makes that
// very file the blob, and there is nothing under that name any more; else it copies. Either may change the file's owner,
// mode and times. A file that changes while it is read is ErrChanged.
//
// Nobody else may be able to change what dir holds, nor to open it. A file is copied that is open for writing, or
// mapped so, by whomever; that has another name, extended attributes or inode flags; that takes more of the
// disk than the copy would, which has holes for zeros; or that lies on another file system or mount than the cache.
func (c *Cache) Adopt(ctx context.Context, dir *os.File, name string, f *os.File) (Digest, error) {
	defer runtime.KeepAlive(f)
	fd := int(f.Fd())
	var was unix.Stat_t
	if err := unix.Fstat(fd, &was); err != nil {
		return Digest{}, fmt.Errorf("adopt a file: %w", err)
	}
	if c.apart.Load() || !plain(fd, &was) || !seal(fd) {
		return c.putUnchanged(ctx, f, &was)
	}
	d, data, err := c.hashFile(ctx, f, was.Size)
	if err != nil {
		return Digest{}, err
	}
	if err := unchanged(fd, &was); err != nil {
		return Digest{}, err
	}
	ok, err := c.keep(d)
	if ok && err == nil {
		return d, nil
	}
	if was.Blocks*512 > data+data/16+slack {
		return c.putUnchanged(ctx, f, &was)
	}
	if err == nil {
		err = c.takeOver(d, dir, name, f)
	}
	if errors.Is(err, unix.EXDEV) {
		c.apart.Store(true)
		return c.PutFile(ctx, f, was.Size) // its time is another by now, by us, and nobody else can write to it
	}
	if err != nil {
		return Digest{}, fmt.Errorf("store blob %v: %w", d, explain(c.root, err))
	}
	return d, nil
}

// slack is how much of a file's disk space beyond its content is the file system's own.
const slack = 8 << 10

// putUnchanged is PutFile of a file that was as was says.
func (c *Cache) putUnchanged(ctx context.Context, f *os.File, was *unix.Stat_t) (Digest, error) {
	d, err := c.PutFile(ctx, f, was.Size)
	if err == nil {
		err = unchanged(int(f.Fd()), was)
	}
	return d, err
}

func unchanged(fd int, was *unix.Stat_t) error {
	var is unix.Stat_t
	err := unix.Fstat(fd, &is)
	if err == nil && (is.Size != was.Size || is.Mtim != was.Mtim) {
		err = ErrChanged
	}
	if err != nil {
		return fmt.Errorf("adopt a file: %w", err)
	}
	return nil
}

// plain reports whether a file is no more than its content.
func plain(fd int, st *unix.Stat_t) bool {
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		return false
	}
	if n, err := unix.Flistxattr(fd, nil); n > 0 || err != nil && err != unix.EOPNOTSUPP {
		return false
	}
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil || flags&^flagsOfLayout != 0 {
		return err == unix.ENOTTY || err == unix.EOPNOTSUPP
	}
	return projectOf(fd) == 0
}

// flagsOfLayout say no more than where a file system keeps the content: FS_EXTENT_FL and FS_INLINE_DATA_FL.
const flagsOfLayout = 0x00080000 | 0x10000000

// projectOf is the project whose quota a file counts against, 0 for none.
func projectOf(fd int) uint32 {
	var attr [7]uint32                                                  // struct fsxattr
	const get = unix.FS_IOC_GETFLAGS&0xe0000000 | 7*4<<16 | 'X'<<8 | 31 // FS_IOC_FSGETXATTR
	if _, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), get, uintptr(unsafe.Pointer(&attr))); err != 0 {
		return 0
	}
	return attr[3]
}

// seal makes a file ours, so that nobody else can open it for writing, and then reports whether nobody has.
func seal(fd int) bool {
	if unix.Fchown(fd, os.Geteuid(), os.Getegid()) != nil || unix.Fchmod(fd, 0o400) != nil {
		return false
	}
	// A lease for reading is refused while there is a writer, or a mapping of one. It ends when fd is closed.
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	return err == nil
}

// hashFile is PutFile that puts nothing. data is how many bytes it would write, without holes.
func (c *Cache) hashFile(ctx context.Context, f io.ReaderAt, size int64) (d Digest, data int64, err error) {
	if size > c.MaxBytes() {
		return Digest{}, 0, fmt.Errorf("%w (%d bytes)", ErrTooLarge, c.MaxBytes())
	}
	buffer, done := bufferFor(size)
	defer done()
	h := sha256.New()
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return Digest{}, 0, fmt.Errorf("adopt a file: %w", err)
		}
		p := buffer[:min(size-at, int64(len(buffer)))]
		if n, err := f.ReadAt(p, at); n < len(p) {
			return Digest{}, 0, fmt.Errorf("adopt a file: %w", shorter(err))
		}
		h.Write(p)
		at += int64(len(p))
		for len(p) > 0 {
			block := p[:min(holeBytes, len(p))]
			if !isHole(block) {
				data += int64(len(block))
			}
			p = p[len(block):]
		}
	}
	return digest([sha256.Size]byte(h.Sum(nil)), size), data, nil
}

// takeOver makes a sealed file the blob d.
func (c *Cache) takeOver(d Digest, dir *os.File, name string, f *os.File) error {
	defer runtime.KeepAlive(dir)
	from, to := int(dir.Fd()), int(c.dir.Fd())
	var st, is unix.Stat_t
	if err := errors.Join(unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW), unix.Fstat(int(f.Fd()), &is)); err != nil {
		return err
	}
	if st.Dev != is.Dev || st.Ino != is.Ino {
		return ErrChanged
	}
	// A time of our own choosing, as of what is written here.
	at := unix.NsecToTimespec(now().UnixNano())
	if err := unix.UtimesNanoAt(int(f.Fd()), "", []unix.Timespec{{Nsec: unix.UTIME_OMIT}, at}, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	err := c.locked(false, func() error { return unix.Renameat(from, name, to, blobPath(d)) })
	if err != nil {
		return err
	}
	c.distrust(d)
	if fi, err := f.Stat(); err == nil {
		c.trust(d, fi)
	}
	return nil
}
