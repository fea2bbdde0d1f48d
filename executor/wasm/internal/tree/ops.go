package tree

import (
	"io/fs"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero/experimental/sys"
	wasys "github.com/tetratelabs/wazero/sys"
)

const writes = sys.O_RDWR | sys.O_WRONLY | sys.O_TRUNC | sys.O_APPEND

// OpenFile implements sys.FS.
func (f *FS) OpenFile(p string, flag sys.Oflag, _ fs.FileMode) (sys.File, sys.Errno) {
	at, e := f.find(p, flag&sys.O_NOFOLLOW == 0)
	if e != 0 {
		return nil, e
	}
	if f.open >= f.cfg.MaxOpen {
		return nil, sys.EBADF // there is no EMFILE
	}
	n := at.node
	switch {
	case n == nil && flag&sys.O_CREAT == 0:
		return nil, sys.ENOENT
	case n == nil:
		if e := f.changeable(at.dir()); e != 0 {
			return nil, e
		}
		if strings.HasSuffix(p, "/") {
			return nil, sys.EISDIR
		}
		n = f.inode(0o644, at.dir().area) // wasip1 has no modes
		if e := f.create(at, n); e != 0 {
			return nil, e
		}
	case flag&sys.O_CREAT != 0 && flag&sys.O_EXCL != 0:
		return nil, sys.EEXIST
	case flag&sys.O_DIRECTORY != 0 && !n.isDir():
		return nil, sys.ENOTDIR
	case n.isDir():
		if flag&(writes|sys.O_CREAT) != 0 {
			return nil, sys.EISDIR
		}
		if n.mode&0o400 == 0 {
			return nil, sys.EACCES
		}
		return &directory{handle: f.handle(n, flag)}, 0
	case n.mode.Type() == fs.ModeSymlink:
		return nil, sys.ELOOP
	case n.mode&fs.ModeCharDevice != 0 && n.from == nil:
		return &null{handle: f.handle(n, flag)}, 0
	case !n.mode.IsRegular():
		return nil, sys.EPERM // a FIFO, a socket or a device of the machine's
	default:
		if e := permitted(n, flag); e != 0 {
			return nil, e
		}
	}
	if flag&writes != 0 {
		if e := f.copyUp(n, flag&sys.O_TRUNC != 0); e != 0 {
			return nil, e
		}
	}
	h := &file{handle: f.handle(n, flag)}
	if flag&sys.O_TRUNC != 0 {
		if e := h.Truncate(0); e != 0 {
			return nil, e
		}
	}
	return h, 0
}

// permitted says whether a file's mode lets the task open it.
func permitted(n *inode, flag sys.Oflag) sys.Errno {
	switch {
	case flag&writes != 0 && n.area.readonly:
		return sys.EROFS
	case flag&writes != 0 && n.mode&0o200 == 0:
		return sys.EACCES
	case flag&sys.O_WRONLY == 0 && n.mode&0o400 == 0:
		return sys.EACCES
	}
	return 0
}

// Lstat implements sys.FS.
func (f *FS) Lstat(p string) (wasys.Stat_t, sys.Errno) { return f.statPath(p, false) }

// Stat implements sys.FS.
func (f *FS) Stat(p string) (wasys.Stat_t, sys.Errno) { return f.statPath(p, true) }

func (f *FS) statPath(p string, follow bool) (wasys.Stat_t, sys.Errno) {
	at, e := f.existing(p, follow)
	if e != 0 {
		return wasys.Stat_t{}, e
	}
	return f.stat(at.node), 0
}

// Mkdir implements sys.FS.
func (f *FS) Mkdir(p string, _ fs.FileMode) sys.Errno {
	at, e := f.vacant(strings.TrimRight(p, "/"))
	if e != 0 {
		return e
	}
	return f.create(at, f.directory(at.dir().area))
}

// Symlink implements sys.FS. The target is text, which leads to somewhere in this tree or nowhere.
func (f *FS) Symlink(target, p string) sys.Errno {
	switch {
	case target == "" || strings.ContainsRune(target, 0):
		return sys.EINVAL
	case len(target) >= maxPath:
		return sys.ENAMETOOLONG
	}
	at, e := f.vacant(p)
	if e != 0 {
		return e
	}
	if f.targets+len(target) > maxTargets {
		at.dir().area.refused = true
		return sys.EIO
	}
	n := f.inode(fs.ModeSymlink|0o777, at.dir().area)
	n.target, n.size = strings.Clone(target), int64(len(target)) // it lies in the guest's memory
	if e := f.create(at, n); e != 0 {
		return e
	}
	f.targets += len(target)
	return 0
}

// Readlink implements sys.FS.
func (f *FS) Readlink(p string) (string, sys.Errno) {
	at, e := f.existing(p, false)
	switch {
	case e != 0:
		return "", e
	case at.node.mode.Type() != fs.ModeSymlink:
		return "", sys.EINVAL
	}
	return at.node.target, 0
}

// Link implements sys.FS.
func (f *FS) Link(from, to string) sys.Errno {
	old, e := f.existing(from, false)
	if e != 0 {
		return e
	}
	at, e := f.vacant(to)
	switch {
	case e != 0:
		return e
	case old.node.isDir(), old.node.area.readonly, !old.node.mode.IsRegular() && old.node.mode.Type() != fs.ModeSymlink:
		return sys.EPERM
	case old.node.area != at.dir().area:
		return sys.ENOSYS // there is no EXDEV
	}
	if e := f.count(at.dir().area); e != 0 {
		return e
	}
	f.put(at, old.node)
	old.node.links++
	return 0
}

// Unlink implements sys.FS.
func (f *FS) Unlink(p string) sys.Errno {
	at, e := f.existing(p, false)
	switch {
	case e != 0:
		return e
	case at.node.isDir():
		return sys.EISDIR
	}
	if e := f.changeable(at.dir()); e != 0 {
		return e
	}
	f.unlink(at)
	return 0
}

// Rmdir implements sys.FS.
func (f *FS) Rmdir(p string) sys.Errno {
	at, e := f.existing(strings.TrimRight(p, "/"), false)
	switch {
	case e != 0:
		return e
	case !at.node.isDir():
		return sys.ENOTDIR
	case at.name == "":
		return sys.EPERM
	}
	if e := f.removable(at); e != 0 {
		return e
	}
	f.unlink(at)
	return 0
}

// removable says whether a directory may be taken away: it is empty, and no other part of the
// tree begins there.
func (f *FS) removable(at place) sys.Errno {
	if e := f.changeable(at.dir()); e != 0 {
		return e
	}
	left, e := f.names(at.node)
	switch {
	case e != 0:
		return e
	case len(left) > 0:
		return sys.ENOTEMPTY
	}
	return 0
}

// Rename implements sys.FS.
func (f *FS) Rename(from, to string) sys.Errno {
	a, e := f.existing(strings.TrimRight(from, "/"), false)
	if e != 0 {
		return e
	}
	b, e := f.find(strings.TrimRight(to, "/"), false)
	switch {
	case e != 0:
		return e
	case a.name == "" || b.name == "":
		return sys.EPERM
	case a.node == b.node:
		return 0
	case a.node.isDir() && slices.Contains(b.dirs, a.node):
		return sys.EINVAL
	}
	for _, p := range []place{a, b} {
		if e := f.changeable(p.dir()); e != 0 {
			return e
		}
	}
	if b.node != nil {
		switch {
		case b.node.isDir() && !a.node.isDir():
			return sys.EISDIR
		case !b.node.isDir() && a.node.isDir():
			return sys.ENOTDIR
		case b.node.isDir():
			if e := f.removable(b); e != 0 {
				return e
			}
		}
	}
	if e := f.move(a.node, b.dir().area); e != 0 {
		return e
	}
	if b.node != nil {
		f.unlink(b)
	}
	f.take(a)
	f.put(b, a.node)
	return 0
}

// move has a node count to another area, and all that is known to lie below it; what is not
// known takes after its directory.
func (f *FS) move(n *inode, to *area) sys.Errno {
	if n.area == to {
		return 0
	}
	var all []*inode
	var sum int64
	var walk func(*inode)
	walk = func(n *inode) {
		all = append(all, n)
		if n.mode.IsRegular() && n.from == nil {
			sum += n.size
		}
		for _, c := range n.children {
			if c != nil {
				walk(c)
			}
		}
	}
	walk(n)
	for _, n := range all {
		if n.links > 1 {
			return sys.ENOSYS // its other names stay
		}
	}
	if e := to.charge(sum); e != 0 {
		return e
	}
	n.area.used -= sum
	for _, n := range all {
		n.area = to
	}
	return 0
}

// Chmod implements sys.FS. wasip1 has no call for it: see package process.
func (f *FS) Chmod(p string, mode fs.FileMode) sys.Errno {
	at, e := f.existing(p, true)
	switch {
	case e != 0:
		return e
	case at.node.area.readonly:
		return sys.EROFS
	}
	at.node.mode = at.node.mode.Type() | mode.Perm()
	at.node.own = true
	return 0
}

// Utimens implements sys.FS.
func (f *FS) Utimens(p string, _, mtime int64) sys.Errno {
	at, e := f.existing(p, true)
	if e != 0 {
		return e
	}
	return f.touch(at.node, mtime)
}

// TouchLink is Utimens of a link itself, where p is one. wasip1 has it for what can be opened alone: see package process.
func (f *FS) TouchLink(p string, mtime int64) sys.Errno {
	at, e := f.existing(p, false)
	if e != 0 {
		return e
	}
	return f.touch(at.node, mtime)
}

func (f *FS) touch(n *inode, mtime int64) sys.Errno {
	if n.area.readonly {
		return sys.EROFS
	}
	if mtime != sys.UTIME_OMIT {
		n.mtime, n.own = mtime, true
	}
	return 0
}
