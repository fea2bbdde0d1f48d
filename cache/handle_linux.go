package cache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// dirHandle is an open directory. Names given to it are single ones, as it lists
// them, so nothing leads out of it.
type dirHandle struct {
	fd    int
	owned bool // close closes fd
}

// handleOf does not keep f open.
func handleOf(f *os.File) dirHandle { return dirHandle{fd: int(f.Fd())} }

// close is for owned handles, once; for others it does nothing.
func (h dirHandle) close() {
	if h.owned {
		_ = unix.Close(h.fd)
	}
}

// openBeneath opens a name; O_NONBLOCK lest a FIFO put in its place hold us up.
func (h dirHandle) openBeneath(name string, flags uint64) (int, info, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := again(func() (int, error) { return unix.Openat2(h.fd, name, &how) })
	switch {
	case errors.Is(err, unix.EXDEV):
		return -1, info{}, errMount
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENXIO):
		return -1, info{}, fmt.Errorf("%w (%w)", ErrChanged, err) // its type was right
	case err != nil:
		return -1, info{}, err
	}
	in, err := statx(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, info{}, errors.Join(err, unix.Close(fd))
	}
	return fd, in, nil
}

func (h dirHandle) openDir(name string) (dirHandle, info, error) {
	fd, in, err := h.openBeneath(name, unix.O_DIRECTORY)
	return dirHandle{fd, err == nil}, in, err
}

// names lists the directory, but not much more than most names.
func (h dirHandle) names(most int) ([]string, error) {
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := again(func() (int, error) { return unix.ReadDirent(h.fd, buf) })
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
		if len(names) > most+1<<16 {
			return nil, errEntries
		}
	}
}

func (h dirHandle) stat(name string) (info, error) {
	return statx(h.fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
}

func (h dirHandle) readlink(name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := again(func() (int, error) { return unix.Readlinkat(h.fd, name, buf) })
	switch {
	case errors.Is(err, unix.EINVAL):
		return "", ErrChanged // it was a link
	case err != nil:
		return "", err
	case n == len(buf):
		return "", errors.New("is a link to a path that is too long")
	}
	return string(buf[:n]), nil
}

// file is an open file.
type file struct{ fd int }

func (h dirHandle) openFile(name string) (file, info, error) {
	fd, in, err := h.openBeneath(name, 0)
	return file{fd}, in, err
}

// Read is that of io.Reader.
func (f file) Read(p []byte) (int, error) {
	n, err := again(func() (int, error) { return unix.Read(f.fd, p) })
	if err != nil {
		return 0, err
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (f file) info() (info, error) { return statx(f.fd, "", unix.AT_EMPTY_PATH) }

func (f file) close() error { return unix.Close(f.fd) }

func infoOf(f *os.File) (info, error) { return file{int(f.Fd())}.info() }

func statx(fd int, name string, flags int) (info, error) {
	var st unix.Statx_t
	_, err := again(func() (int, error) {
		return 0, unix.Statx(fd, name, flags, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st)
	})
	if err != nil {
		return info{}, err
	}
	return info{
		inode: inode{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino},
		mount: st.Mnt_id,
		size:  int64(st.Size),
		mtime: st.Mtime.Sec*1e9 + int64(st.Mtime.Nsec),
		ctime: st.Ctime.Sec*1e9 + int64(st.Ctime.Nsec),
		mode:  fileMode(uint32(st.Mode)),
	}, nil
}

// fileMode is a mode as the kernel has it in Go's terms, without the bits that
// have no meaning here.
func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & unix.S_IFMT {
	case unix.S_IFREG:
		return mode
	case unix.S_IFDIR:
		return mode | fs.ModeDir
	case unix.S_IFLNK:
		return mode | fs.ModeSymlink
	case unix.S_IFIFO:
		return mode | fs.ModeNamedPipe
	case unix.S_IFSOCK:
		return mode | fs.ModeSocket
	case unix.S_IFBLK, unix.S_IFCHR:
		return mode | fs.ModeDevice
	}
	return mode | fs.ModeIrregular
}

// again repeats a system call that a signal interrupted.
func again(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
