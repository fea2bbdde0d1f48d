//go:build unix

package process

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// mapped is a region whose addresses are all reserved from the start, so that it grows where it is.
type mapped struct {
	all  []byte
	used uint64
	kept image
}

// reserve returns a region that grows to most bytes.
func reserve(most uint64) region {
	if strconv.IntSize < 64 {
		return &heap{}
	}
	all, err := unix.Mmap(-1, 0, int(most), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return &heap{} // where addresses are rationed: see RLIMIT_AS
	}
	return &mapped{all: all}
}

func (m *mapped) grow(size uint64) []byte {
	if size > uint64(len(m.all)) {
		return nil
	}
	if size > m.used {
		if err := unix.Mprotect(m.all[m.used:size], unix.PROT_READ|unix.PROT_WRITE); err != nil {
			return nil
		}
		m.used = size
	}
	return m.all[:size:size]
}

func (m *mapped) free() {
	_ = unix.Munmap(m.all) // it fails only for what is none
	m.all = nil
}

func (m *mapped) keep(in *os.File) error { return m.kept.take(m.all[:m.used], in) }

func (m *mapped) revert() { m.kept.restore(m.all[:m.used]) }
