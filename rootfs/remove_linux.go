package rootfs

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// RemoveTree removes dir's entry name and all below it; that there is none is no
// error. It follows no link, leaves what is mounted alone (and then fails),
// holds three descriptors however deep the tree is, and clears permissions and
// flags that are in the way where it may. On an error it has removed what it
// could reach.
func RemoveTree(dir *os.File, name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("remove %q: is not the name of one entry", name)
	}
	err := removeEntry(dir, name)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if !isNotEmpty(err) {
		return fmt.Errorf("remove %s: %w", display(name), err)
	}
	top, err := openForRemoval(dir, name)
	if err != nil {
		return fmt.Errorf("remove %s: %w", display(name), err)
	}
	defer top.Close()
	r := &remover{top: top, prefix: tokenPrefix + rand.Text() + "-", looks: maxLooks}
	if err := r.all(); err != nil {
		return fmt.Errorf("remove %s: %w", display(name), err)
	}
	if err := removeEntry(dir, name); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove %s: %w", display(name), err)
	}
	return nil
}

// remover empties top. Depth costs it nothing: a directory that is not empty is
// moved up into top, under a name of prefix and a number, before it is emptied
// itself. So nothing is ever open but top and one directory in it.
type remover struct {
	top        *os.File
	prefix     string
	next, done int64 // numbers given out; those dealt with
	progress   bool
	looks      int // at entries, that are left to it
}

// maxLooks bounds the looks at entries of one RemoveTree, since somebody may add
// some as fast as they are removed. Each level of a tree takes a look or two.
const maxLooks = 1 << 26

// all makes passes over top for as long as they get somewhere: a move can fail
// on a full disk until something else was removed.
func (r *remover) all() error {
	for {
		r.progress = false
		n, err := r.each(r.top, func(name string) error { return r.clear(name) })
		for ; r.done < r.next; r.done++ {
			if e := r.clear(r.prefix + strconv.FormatInt(r.done, 10)); err == nil {
				err = e
			}
		}
		if n == 0 || !r.progress || r.looks < 0 {
			return err
		}
	}
}

// each calls f for the names in d, and returns how many there were and the first error.
func (r *remover) each(d *os.File, f func(string) error) (n int, first error) {
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	for {
		names, err := d.Readdirnames(dirBatch)
		for _, name := range names {
			n++
			if r.looks--; r.looks < 0 {
				return n, errors.New("does not become empty; let nothing else write to it")
			}
			if err := f(name); err != nil && first == nil {
				first = err
			}
		}
		if err == io.EOF {
			return n, first
		}
		if err != nil {
			return n, err
		}
	}
}

// clear removes top's entry name with all below it, or moves that into top.
func (r *remover) clear(name string) error {
	err := removeEntry(r.top, name)
	switch {
	case err == unix.ENOENT:
		return nil
	case err == nil:
		r.progress = true
		return nil
	case !isNotEmpty(err):
		return fmt.Errorf("%s: %w", display(name), err)
	}
	d, err := openForRemoval(r.top, name)
	if err != nil {
		return fmt.Errorf("%s: %w", display(name), err)
	}
	defer d.Close()
	if _, err := r.each(d, func(sub string) error { return r.lift(d, sub) }); err != nil {
		return err
	}
	if err := removeEntry(r.top, name); err != nil {
		return fmt.Errorf("%s: %w", display(name), err)
	}
	r.progress = true
	return nil
}

// lift removes d's entry name, or moves it up into top.
func (r *remover) lift(d *os.File, name string) error {
	err := removeEntry(d, name)
	if isNotEmpty(err) {
		to := r.prefix + strconv.FormatInt(r.next, 10)
		err = rename(d, name, r.top, to, unix.RENAME_NOREPLACE)
		if err == unix.EACCES || err == unix.EPERM {
			// A directory that moves is written to: its "..".
			if sub, e := openForRemoval(d, name); e == nil {
				sub.Close()
				err = rename(d, name, r.top, to, unix.RENAME_NOREPLACE)
			}
		}
		if err == nil {
			r.next++
		}
	}
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("%s: %w", display(name), err)
	}
	r.progress = true
	return nil
}

func isNotEmpty(err error) bool { return err == unix.ENOTEMPTY || err == unix.EEXIST }

// removeEntry removes a file or an empty directory.
func removeEntry(d *os.File, name string) error {
	err := unlink(d, name, 0)
	if err == unix.EPERM && clearFlags(d, name) {
		err = unlink(d, name, 0)
	}
	if err == unix.EISDIR || err == unix.EPERM {
		if e := unlink(d, name, unix.AT_REMOVEDIR); e != unix.ENOTDIR {
			err = e
		}
	}
	return err
}

// openForRemoval opens d's directory name so that its entries can be listed and
// removed, whatever its mode and flags said.
func openForRemoval(d *os.File, name string) (*os.File, error) {
	p, err := openBeneath(d, name, unix.O_PATH|unix.O_DIRECTORY, inMount)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	defer runtime.KeepAlive(p)
	st, err := fstat(p)
	if err != nil {
		return nil, err
	}
	if st.Mode&0o700 != 0o700 {
		// By its descriptor, since chmod by name would follow a link put there
		// meanwhile. If it fails, so will the open or the unlink, with a reason.
		chmod := func() error { return unix.Fchmodat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", p.Fd()), 0o700, 0) }
		if chmod() != nil && clearFlags(d, name) {
			_ = chmod()
		}
	}
	clearFlags(d, name)
	return openBeneath(d, name, unix.O_RDONLY|unix.O_DIRECTORY, inMount)
}

// clearFlags takes the flags immutable and append-only off d's file or directory
// name, and reports whether it had one.
func clearFlags(d *os.File, name string) bool {
	st, err := lstat(d, name)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return false
	}
	f, err := openBeneath(d, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, inMount)
	if err != nil {
		return false
	}
	defer f.Close()
	defer runtime.KeepAlive(f)
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	const held = unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND // the values of FS_IMMUTABLE_FL and FS_APPEND_FL
	if err != nil || flags&held == 0 {
		return false
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags&^held)) == nil
}
