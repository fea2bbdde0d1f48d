package process

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// image is what memory held, as a file that is mapped in its place: what is written then is a copy of a page,
// and dropped to get the page back.
type image struct{}

// imageFile makes the file that a worker's images are in, one at a time. It holds as much as
// memory can be before a task, and is never longer, since what is in it is nobody's memory to the kernel.
func imageFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("wasm", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "wasm")
	err = f.Truncate(beforeTask)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("memory for images: %w", err), f.Close())
	}
	return f, nil
}

// take makes an image of b, which is mapped memory, in f. There is no other image in there by now.
func (i *image) take(b []byte, f *os.File) error {
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	at := unsafe.Pointer(unsafe.SliceData(b))
	if _, err := unix.MmapPtr(int(f.Fd()), 0, at, uintptr(len(b)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED); err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	return nil
}

// restore makes the memory what it was, and zero beyond.
func (i *image) restore(b []byte) {
	if err := unix.Madvise(b, unix.MADV_DONTNEED); err != nil {
		panic(err) // there is such memory
	}
}
