package tree

import (
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero/experimental/sys"
	"golang.org/x/sys/unix"
)

// fullDisk is a Scratch in which a file has room for no byte.
type fullDisk struct{}

// Create implements Scratch.
func (fullDisk) Create(int) (*os.File, error) {
	fd, err := unix.MemfdCreate("full", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "full")
	_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW)
	return f, err
}

// Open implements Scratch.
func (fullDisk) Open(int) (*os.File, error) { return nil, fs.ErrNotExist }

// Remove implements Scratch.
func (fullDisk) Remove(int) error { return nil }

// TestFullDisk: what could not be written is not there, does not count, and is told.
func TestFullDisk(t *testing.T) {
	f := newTree(t, "", func(c *Config) { c.Scratch = fullDisk{} })
	h, e := f.OpenFile("build/f", sys.O_RDWR|sys.O_CREAT, 0o644)
	if e != 0 {
		t.Fatal(e)
	}
	defer h.Close()
	if f.Refused() != "" {
		t.Errorf("refused before: %q", f.Refused())
	}
	for _, off := range []int64{0, 1 << 19} {
		if n, e := h.Pwrite(make([]byte, 2*maxSmall), off); n != 0 || e == 0 {
			t.Errorf("%d bytes written at %d, %v", n, off, e)
		}
	}
	if e := h.Truncate(1); e == 0 {
		t.Error("it grew")
	}
	if st, e := h.Stat(); e != 0 || st.Size != 0 || f.work.used != 0 {
		t.Errorf("the file has %d bytes, %v; %d bytes are used", st.Size, e, f.work.used)
	}
	if got := f.Refused(); !strings.Contains(got, "operation not permitted") || !strings.Contains(got, "disk") {
		t.Errorf("refused: %q", got)
	}
}
