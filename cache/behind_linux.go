package cache

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// writeBehind has the system begin to write [from, to) of f to the disk, and forget what comes before
// and is there already. It is a hint: what fails in it shows when f is synced.
func writeBehind(f *os.File, from, to int64) {
	defer runtime.KeepAlive(f)
	_ = unix.SyncFileRange(int(f.Fd()), from, to-from, unix.SYNC_FILE_RANGE_WRITE)
	if from > 0 { // 0 would be the whole file
		_ = unix.Fadvise(int(f.Fd()), 0, from, unix.FADV_DONTNEED)
	}
}
