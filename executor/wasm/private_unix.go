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
