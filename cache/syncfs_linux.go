package cache

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// syncFileSystem syncs all of the file system that f is on.
func syncFileSystem(f *os.File) error {
	defer runtime.KeepAlive(f)
	_, err := again(func() (int, error) { return 0, unix.Syncfs(int(f.Fd())) })
	return err
}
