//go:build unix

package wasm

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// private refuses a directory in which others could put code for us to run, or could have put it, and such code.
func private(dir string, fi fs.FileInfo) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return fmt.Errorf("the owner of %s is unknown", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d and not to us (%d), who could have us run anything; remove it, or choose another directory", dir, st.Uid, os.Geteuid())
	case fi.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s has mode %#o, by which others could have us run anything; remove it, with all that they may have put there", dir, fi.Mode().Perm())
	}
	return nil
}

// unmovable refuses a directory above that, which must be a real one, if others could put another in the place of what is in it.
func unmovable(dir string, fi fs.FileInfo) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	const advice = "who could put other code in the place of ours; choose another directory"
	switch mode := fi.Mode(); {
	case !ok:
		return fmt.Errorf("the owner of %s is unknown", dir)
	case !fi.IsDir():
		return fmt.Errorf("%s is no directory; choose another", dir)
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, "+advice, dir, st.Uid)
	case mode&fs.ModeSticky != 0: // there, who owns something moves it
	case mode.Perm()&0o002 != 0:
		return fmt.Errorf("%s has mode %#o, and is for all users, "+advice, dir, mode.Perm())
	// A user's own group is often that user's alone, and then what is made has the mode 0775.
	case mode.Perm()&0o020 != 0 && st.Gid != 0 && int(st.Gid) != os.Getegid():
		return fmt.Errorf("%s has mode %#o, and is for group %d, "+advice, dir, mode.Perm(), st.Gid)
	}
	return nil
}
