//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package cache

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// lockTime is how long a lock is waited for. They are held for as long as it takes to look at some
// files and to write one, but a process may have been stopped meanwhile.
var lockTime = 30 * time.Second

// flock waits for the lock of an open file; closing the file lets go of it.
func flock(f *os.File, exclusive bool) error {
	how := syscall.LOCK_SH
	if exclusive {
		how = syscall.LOCK_EX
	}
	end := time.Now().Add(lockTime)
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) && !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s has been held by another process for %v: if that is stopped, have it go on or kill it (fuser -v %[1]s)", f.Name(), lockTime)
		}
		time.Sleep(pause)
	}
}

// funlock lets go of the lock of an open file.
func funlock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }

// tryFlock takes the exclusive lock of an open file if it is free.
func tryFlock(f *os.File) bool {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

func syncFile(f *os.File) error { return f.Sync() }
