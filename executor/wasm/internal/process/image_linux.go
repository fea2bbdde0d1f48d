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
type image struct {
	f    *os.File
	size int
}

// take makes an image of b, which is mapped memory.
func (i *image) take(b []byte) error {
	fd, err := unix.MemfdCreate("wasm", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "wasm")
	if _, err := f.Write(b); err != nil {
		return errors.Join(err, f.Close())
	}
	at := unsafe.Pointer(unsafe.SliceData(b))
	if _, err := unix.MmapPtr(fd, 0, at, uintptr(len(b)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_FIXED); err != nil {
		return errors.Join(fmt.Errorf("mmap: %w", err), f.Close())
	}
	i.f, i.size = f, len(b)
	return nil
}

// restore makes the memory what it was.
func (i *image) restore(b []byte) {
	if err := unix.Madvise(b[:i.size], unix.MADV_DONTNEED); err != nil {
		panic(err) // there is such memory
	}
}

// drop closes the file.
func (i *image) drop() {
	if i.f != nil {
		_ = i.f.Close()
	}
}
