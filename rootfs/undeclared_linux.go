package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// maxUndeclared bounds how many entries Undeclared looks at.
const maxUndeclared = 1_000_000

var errEnough = errors.New("enough")

// Undeclared lists what an overlay's upper directory holds beyond the declared
// outputs: what the task wrote and nobody asked for. A path that is not printable is
// quoted; a directory ends in "/", and is named if it is new or holds nothing; what
// the task removed is followed by " (deleted)"; a directory below which it did not
// look, since it lies too deep, by " (not searched)".
//
// At most limit paths are returned, sorted; which ones, if there are more, is not
// determined. total counts them all, but looks at no more than a million entries.
func Undeclared(ctx context.Context, upper *os.File, outputs []string, limit int) (paths []string, total int64, err error) {
	if err := checkOutputs(outputs); err != nil {
		return nil, 0, err
	}
	u := &undeclared{ctx: ctx, limit: limit, outputs: map[string]bool{}, above: map[string]bool{}}
	for _, o := range outputs {
		u.outputs[o] = true
		for d := path.Dir(o); d != "."; d = path.Dir(d) {
			u.above[d] = true
		}
	}
	d, err := openBeneath(upper, ".", unix.O_RDONLY|unix.O_DIRECTORY, inMount)
	if err != nil {
		return nil, 0, fmt.Errorf("upper directory: %w", err)
	}
	defer d.Close()
	if _, err := u.walk(d, "", 0); err != nil && err != errEnough {
		return nil, 0, err
	}
	slices.Sort(u.paths)
	return u.paths, u.total, nil
}

type undeclared struct {
	ctx     context.Context
	limit   int
	outputs map[string]bool
	above   map[string]bool // the parents of outputs
	paths   []string
	total   int64
	seen    int
}

func (u *undeclared) add(p, suffix string) {
	u.total++
	if len(u.paths) < u.limit {
		u.paths = append(u.paths, display(p)+suffix)
	}
}

// walk looks at all below d, which is at path at, and reports how many entries it has.
func (u *undeclared) walk(d *os.File, at string, depth int) (n int, err error) {
	for {
		names, err := d.Readdirnames(dirBatch)
		for _, name := range names {
			n++
			if err := u.entry(d, name, path.Join(at, name), depth); err != nil {
				return n, err
			}
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("%s: %w", display(at), err)
		}
	}
}

func (u *undeclared) entry(d *os.File, name, p string, depth int) error {
	if err := u.ctx.Err(); err != nil {
		return err
	}
	if u.outputs[p] {
		return nil
	}
	if u.seen++; u.seen > maxUndeclared {
		return errEnough
	}
	st, err := lstat(d, name)
	if err != nil {
		return fmt.Errorf("%s: %w", display(p), err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return u.dir(d, name, p, depth)
	case isWhiteout(d, name, st):
		u.add(p, " (deleted)")
	default:
		u.add(p, "")
	}
	return nil
}

func (u *undeclared) dir(parent *os.File, name, p string, depth int) error {
	if depth >= DefaultMaxDepth || len(p) > maxPath {
		u.add(p, "/ (not searched)")
		return nil
	}
	d, err := openBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, inMount)
	if err != nil {
		return fmt.Errorf("%s: %w", display(p), err)
	}
	defer d.Close()
	isNew := hasXattr(d, "opaque")
	n, err := u.walk(d, p, depth+1)
	if (isNew || n == 0) && !u.above[p] {
		u.add(p, "/")
	}
	return err
}

// isWhiteout reports whether overlayfs takes the entry for a deletion.
func isWhiteout(d *os.File, name string, st unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFREG:
		if st.Size != 0 {
			return false
		}
		f, err := openBeneath(d, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, inMount)
		if err != nil {
			return false
		}
		defer f.Close()
		return hasXattr(f, "whiteout")
	}
	return false
}

// hasXattr reports whether overlayfs marked f, in either of its name spaces.
func hasXattr(f *os.File, mark string) bool {
	defer runtime.KeepAlive(f)
	for _, space := range []string{"user.overlay.", "trusted.overlay."} {
		if _, err := unix.Fgetxattr(int(f.Fd()), space+mark, nil); err == nil {
			return true
		}
	}
	return false
}
