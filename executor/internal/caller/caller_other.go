//go:build !linux

package caller

import (
	"io/fs"
	"os"

	"github.com/sandboxd/sandboxd/executor"
)

// Self is this process as a caller. Where users have no numbers it is user 0.
func Self() executor.Caller {
	return executor.Caller{UID: uint32(max(os.Geteuid(), 0)), GID: uint32(max(os.Getegid(), 0)), PID: int32(os.Getpid())}
}

// own says whether c is this process's own user.
func own(c executor.Caller) bool { return c.UID == Self().UID }

// As runs f for c, who must be this process's own user: there is no way here to take on another's rights.
func As(c executor.Caller, f func() error) error {
	if !own(c) {
		return executor.Errorf(executor.Unsupported, "tasks of user %d need its rights, which an executor of user %d cannot take on here; run it as user %d", c.UID, Self().UID, c.UID)
	}
	return f()
}

func openDir(c executor.Caller, path string) (f *os.File, err error) {
	err = As(c, func() (err error) {
		f, err = os.Open(path)
		return err
	})
	return f, err
}

// openInput looks before it opens: that of a FIFO may never end.
func openInput(c executor.Caller, path string) (*os.File, error) {
	if fi, err := os.Stat(path); err == nil && !fi.IsDir() && !fi.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrInvalid}
	}
	return openDir(c, path)
}
