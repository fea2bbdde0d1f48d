package integration_test

import (
	"os"
	"runtime/debug"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
)

// noEntry is what a call ends with where there is no 32-bit entry at all, as in some virtual machines: by a signal.
const noEntry = "no 32-bit entry"

// foreignCalls makes 32-bit system calls: nr, ebx and ecx are where Go's own
// convention has the first three arguments, and the result is too.
func foreignCalls() (o outcomes) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil {
			o = outcomes{"getpid": noEntry}
		}
	}()
	code, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return outcomes{"mmap": err.Error()}
	}
	copy(code, []byte{0xcd, 0x80, 0xc3}) // int 0x80; ret
	if err := unix.Mprotect(code, unix.PROT_READ|unix.PROT_EXEC); err != nil {
		return outcomes{"mprotect": err.Error()}
	}
	entry := &struct{ at unsafe.Pointer }{unsafe.Pointer(&code[0])}
	int80 := *(*func(nr, ebx, ecx uintptr) int32)(unsafe.Pointer(&entry))
	o = outcomes{}
	for name, nr := range map[string]uintptr{"getpid": 20, "socketcall": 102, "mount": 21, "keyctl": 288, "io_uring_setup": 425} {
		o[name] = "allowed"
		if r := int80(nr, 0, 0); r < 0 {
			o[name] = unix.ErrnoName(unix.Errno(-r))
		}
	}
	return o
}

// TestEscapeForeignArchitecture: the 32-bit entry is closed, where the kernel has it.
func TestEscapeForeignArchitecture(t *testing.T) {
	f := newFixture(t)
	want := "EPERM"
	if foreignCalls()["getpid"] == noEntry {
		want = noEntry
	}
	for name, got := range f.probe("foreign", executor.TaskSpec{}) {
		if got != want {
			t.Errorf("32-bit %s: %s", name, got)
		}
	}
}
