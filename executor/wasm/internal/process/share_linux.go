package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// worthSharing is the size from which on code is shared.
const worthSharing = 1 << 20

// shareCode maps, in place of a module's compiled code, which wazero has for this process alone, a file in dir that has the same bytes, made
// if there is none, by the code's mark: so all workers of a module have its pages in common, and those that no task needed are not in memory at all. It is for the
// time before any of it runs. The file is as trusted as the compilation cache, in the same directory; it is compared, since its name only finds it.
// Code that cannot be shared, such as where dir is mounted noexec, stays as it is.
func shareCode(dir, mark string, code []byte) error {
	if len(code) < worthSharing {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := share(root, mark+".code", code); err != nil {
		return fmt.Errorf("share compiled code: %w", err)
	}
	return nil
}

// share maps a file with what is in code in its place.
func share(dir *os.Root, name string, code []byte) error {
	f, err := openCode(dir, name, code)
	if errors.Is(err, fs.ErrNotExist) {
		if f, err = writeCode(dir, name, code); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	defer f.Close()
	// In two steps, so that there is code at all times, and in case of an error.
	n := uintptr(len(code))
	p, err := unix.MmapPtr(int(f.Fd()), 0, nil, n, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	if _, err := unix.MremapPtr(p, n, unsafe.Pointer(unsafe.SliceData(code)), n, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED); err != nil {
		return errors.Join(fmt.Errorf("mremap: %w", err), unix.MunmapPtr(p, n))
	}
	return nil
}

// openCode opens the file, and removes one that is not what it should be.
func openCode(dir *os.Root, name string, code []byte) (*os.File, error) {
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := same(f, code); err != nil {
		return nil, errors.Join(err, f.Close(), dir.Remove(name))
	}
	return f, nil
}

var errOther = fmt.Errorf("it has something else in it: %w", fs.ErrNotExist)

// same fails if the file has other bytes. It is read, and not mapped: what was touched of a mapping is resident.
func same(f *os.File, code []byte) error {
	if fi, err := f.Stat(); err != nil {
		return err
	} else if !fi.Mode().IsRegular() || fi.Size() != int64(len(code)) {
		return errOther
	}
	b := make([]byte, 1<<20)
	for at := 0; at < len(code); {
		n, err := f.ReadAt(b[:min(len(b), len(code)-at)], int64(at))
		if err != nil {
			return err
		}
		if !bytes.Equal(b[:n], code[at:at+n]) {
			return errOther
		}
		at += n
	}
	return nil
}

// writeCode makes the file. It has no name before it is whole.
func writeCode(dir *os.Root, name string, code []byte) (*os.File, error) {
	d, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Openat(int(d.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open a file without a name", Path: d.Name(), Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(code)
	if err == nil {
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), int(d.Fd()), name, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
