//go:build unix

package tool

import (
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// TouchLink sets the time of modification of a symbolic link itself, or of another file.
func TouchLink(name string, t time.Time) error {
	both := []unix.Timespec{unix.NsecToTimespec(t.UnixNano()), unix.NsecToTimespec(t.UnixNano())}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, both, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "touch", Path: name, Err: err}
	}
	return nil
}
