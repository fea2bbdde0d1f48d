package rootfs

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxWatches bounds the directories that a root watches: the kernel keeps 1 KiB for each.
const maxWatches = 1 << 15

// watcher notices changes in directories, by inotify(7): of their entries and of the files
// in them. A nil one notices nothing.
type watcher struct {
	mu      sync.Mutex
	f       *os.File // nonblocking
	n       int
	partial bool // not all could be watched
	stale   bool // something changed, or may have
}

func newWatcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err == unix.EMFILE { // there is a bound on them for each user
		return &watcher{partial: true}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("watch the root: %w", err)
	}
	return &watcher{f: os.NewFile(uintptr(fd), "inotify")}, nil
}

// add watches an open directory. What is read of it afterwards is what changes are from.
func (w *watcher) add(dir *os.File) error {
	if w == nil || w.partial {
		return nil
	}
	const mask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	if w.n++; w.n > maxWatches {
		w.partial = true
		return nil
	}
	_, err := unix.InotifyAddWatch(int(w.f.Fd()), fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), mask)
	if err == unix.ENOSPC {
		w.partial = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir.Name(), err)
	}
	return nil
}

// changed reports whether anything did since it was added. It does not wait: an
// event is there before the call that caused it returns.
func (w *watcher) changed() bool {
	if w == nil || w.f == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stale {
		b := make([]byte, 4096)
		n, err := unix.Read(int(w.f.Fd()), b)
		w.stale = n > 0 || err != unix.EAGAIN && err != unix.EINTR
	}
	return w.stale
}

func (w *watcher) close() error {
	if w == nil || w.f == nil {
		return nil
	}
	if err := w.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("watch the root: %w", err)
	}
	return nil
}
