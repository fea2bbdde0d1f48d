package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tokenPrefix begins the names of all that is made in a caller's tree and does not stay.
const tokenPrefix = ".sandboxd-"

// tempName is the name of output number n while it is staged, or of its old version once
// the two were swapped; oldName is that of the old version where they cannot be.
func tempName(token string, n int) string { return token + strconv.Itoa(n) }

func oldName(temp string) string { return temp + "-old" }

// placing is p's plan for Recover.
func (p *placer) placing(groups [][]Entry) Placing {
	pl := Placing{Token: p.token}
	for i, g := range groups {
		n, dir := 0, path.Dir(g[0].Path)
		if i > 0 && dir == path.Dir(groups[i-1][0].Path) {
			n = pl.Missing[i-1]
		} else {
			for d := dir; d != "." && p.absent(d); d = path.Dir(d) {
				n++
			}
		}
		pl.Outputs, pl.Missing = append(pl.Outputs, g[0].Path), append(pl.Missing, n)
	}
	return pl
}

// absent tells whether a directory is not there. What else is wrong with it, staging will say.
func (p *placer) absent(dir string) bool {
	d, err := openDir(p.work, dir, beneath)
	if err == nil {
		d.Close()
	}
	return err == unix.ENOENT
}

// Recover cleans up after a Place that was cut short at any moment, below the open root
// of the tree: each output is then whole, the old version or the new one, and nothing else
// is left; but for what Place itself excepts. Which of several outputs are new depends on
// that moment. Recover may be called again.
//
// Since then the tree may have become anything. Only names that begin with the token are
// removed, through no link, and one that was moved away comes back only if nothing took its
// place. owners, unless nil, are whose entries may be removed; it is for a caller that the
// kernel lets remove everyone's. Recover returns how many entries it dealt with. Like Place
// it stays on the calling goroutine.
func Recover(work *os.File, pl Placing, owners []uint32) (n int, err error) {
	if err := pl.check(); err != nil {
		return 0, err
	}
	for i, o := range pl.Outputs {
		m, e := recoverOutput(work, o, tempName(pl.Token, i), owners)
		n += m
		err = errors.Join(err, e)
	}
	for i, o := range slices.Backward(pl.Outputs) {
		d := o
		for range pl.Missing[i] {
			d = path.Dir(d)
			m, e := removeIfEmpty(work, d, owners)
			n += m
			err = errors.Join(err, e)
		}
	}
	return n, err
}

// check refuses names that no Place gives.
func (pl Placing) check() error {
	if len(pl.Token) < len(tokenPrefix)+26 || !strings.HasPrefix(pl.Token, tokenPrefix) || strings.Contains(pl.Token, "/") {
		return fmt.Errorf("placing: token %q is not one of ours", pl.Token)
	}
	if len(pl.Missing) != len(pl.Outputs) {
		return fmt.Errorf("placing: %d outputs and %d counts", len(pl.Outputs), len(pl.Missing))
	}
	for i, o := range pl.Outputs {
		if reason := badPath(o); reason != "" {
			return &EntryError{Path: o, Reason: reason}
		}
		if n := pl.Missing[i]; n < 0 || n > strings.Count(o, "/") {
			return fmt.Errorf("placing: %s has no %d directories above it", display(o), n)
		}
	}
	return nil
}

func recoverOutput(work *os.File, o, temp string, owners []uint32) (n int, err error) {
	d, err := openParent(work, o, beneath)
	if err == unix.ENOENT {
		return 0, nil
	}
	if err != nil {
		return 0, explain(o, err)
	}
	defer d.Close()
	restored, err := restore(d, oldName(temp), path.Base(o), owners)
	if err != nil {
		return 0, explain(path.Join(path.Dir(o), oldName(temp)), err)
	}
	if restored {
		n++
	}
	for _, name := range []string{oldName(temp), temp} {
		found, err := removable(d, name, owners)
		if err == nil && found {
			n++
			err = RemoveTree(d, name)
		}
		if err != nil {
			return n, explain(path.Join(path.Dir(o), name), err)
		}
	}
	return n, nil
}

// restore moves an old version back to its name, if nothing is there.
func restore(d *os.File, old, name string, owners []uint32) (bool, error) {
	if found, err := removable(d, old, owners); err != nil || !found {
		return false, err
	}
	if _, err := lstat(d, name); err != unix.ENOENT {
		return false, err
	}
	err := rename(d, old, d, name, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS {
		err = rename(d, old, d, name, 0)
	}
	if err == unix.EEXIST {
		return false, nil
	}
	return err == nil, err
}

// removable tells whether d has the entry, and fails if that is not one of the owners'.
func removable(d *os.File, name string, owners []uint32) (found bool, err error) {
	st, err := lstat(d, name)
	if err == unix.ENOENT {
		return false, nil
	}
	if err == nil && owners != nil && !slices.Contains(owners, st.Uid) {
		err = fmt.Errorf("belongs to user %d by now: remove it if it is of no use", st.Uid)
	}
	return err == nil, err
}

// removeIfEmpty removes a directory that holds nothing.
func removeIfEmpty(work *os.File, p string, owners []uint32) (n int, err error) {
	d, err := openParent(work, p, beneath)
	if err == unix.ENOENT {
		return 0, nil
	}
	if err != nil {
		return 0, explain(p, err)
	}
	defer d.Close()
	if found, err := removable(d, path.Base(p), owners); err != nil || !found {
		return 0, err
	}
	switch err := unlink(d, path.Base(p), unix.AT_REMOVEDIR); {
	case err == nil:
		return 1, nil
	case isNotEmpty(err), err == unix.ENOENT, err == unix.ENOTDIR:
		return 0, nil
	default:
		return 0, explain(p, err)
	}
}
