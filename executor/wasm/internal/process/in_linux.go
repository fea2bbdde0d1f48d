package process

import (
	"bufio"
	"errors"
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
	if err := onHangup(f, end); err != nil {
		_ = unix.Close(poll)
		return nil
	}
	return &direct{r: r, poll: poll}
}

// onHangup calls end once nobody writes to the pipe any more. A goroutine waits for that which is in no system call: one that enters a call just as the
// runtime stops all goroutines is overlooked by that of Go 1.26, and it waits for a minute. The walls are raised by three such stops, whose signals have
// each call entered anew.
func onHangup(pipe *os.File, end func()) error {
	fd, err := pollFor(pipe, 0) // a hangup need not be asked for
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // which has the runtime poll it
		return errors.Join(err, unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "hangup")
	// What cannot be polled is found here, and not by the goroutine.
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return errors.Join(err, f.Close())
	}
	c, err := f.SyscallConn()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	go func() {
		defer f.Close()
		if c.Read(func(fd uintptr) bool { return wait(int(fd), 0) }) == nil {
			end()
		}
	}()
	return nil
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
