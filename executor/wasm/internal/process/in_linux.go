package process

import (
	"bufio"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// direct reads by itself, which saves a thread's waking up for each frame. That there can be no more is the
// kernel's to tell, by a hangup.
type direct struct {
	r *bufio.Reader
	// poll has what is read, for its having something to read.
	poll int
}

// newDirect returns an input that reads a pipe by r, or nil.
func newDirect(f *os.File, r *bufio.Reader, end func()) input {
	poll, err := pollFor(f, unix.EPOLLIN)
	if err != nil {
		return nil
	}
	hangup, err := pollFor(f, 0) // a hangup need not be asked for
	if err != nil {
		_ = unix.Close(poll)
		return nil
	}
	go func() {
		if wait(hangup, -1) {
			end()
		}
	}()
	return &direct{r: r, poll: poll}
}

// pollFor makes an epoll of one file.
func pollFor(f *os.File, events uint32) (int, error) {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return 0, err
	}
	fd := int(f.Fd())
	if err := unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		_ = unix.Close(poll)
		return 0, err
	}
	return poll, nil
}

// wait waits for events, and says whether there were some before so many milliseconds. It makes the one call that a worker's filter permits.
func wait(poll int, ms int) bool {
	for {
		var e unix.EpollEvent
		n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(poll), uintptr(unsafe.Pointer(&e)), 1, uintptr(ms), 0, 0)
		if errno != unix.EINTR {
			return errno == 0 && n > 0
		}
	}
}

func (d *direct) next() (frame, error) {
	k, body, err := wire.Read(d.r, wire.MaxModule, nil)
	return frame{k, body}, err
}

func (d *direct) comes(within time.Duration) bool {
	return d.r.Buffered() > 0 || wait(d.poll, int(within.Milliseconds()))
}
