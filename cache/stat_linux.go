package cache

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

func stampOf(fi fs.FileInfo) (stamp, bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}, false
	}
	return stamp{dev: uint64(st.Dev), ino: st.Ino, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano()}, true
}

// checkPrivate refuses a directory in which others could forge results.
func checkPrivate(fi fs.FileInfo) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return fmt.Errorf("owner unknown: %w", fs.ErrInvalid)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("belongs to uid %d, not to us (%d), so its owner could forge results: chown it or use another", st.Uid, os.Geteuid())
	case fi.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("mode %#o lets others write, and so forge results: chmod 700 it", fi.Mode().Perm())
	}
	return nil
}
