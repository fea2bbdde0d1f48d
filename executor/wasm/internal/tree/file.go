package tree

import (
	"errors"
	"io"
	"os"

	"github.com/tetratelabs/wazero/experimental/sys"
	wasys "github.com/tetratelabs/wazero/sys"
)

// content is what the task wrote to a file: in memory while it is little, and else in a
// numbered file of Scratch, or where the machine has it, open for reading.
type content struct {
	small  []byte
	number int      // of the scratch file; 0 if there is none
	file   *os.File // while it is open
}

// rest closes what no handle needs.
func (c *content) rest() {
	if c.file != nil {
		_ = c.file.Close()
		c.file = nil
	}
}

// drop forgets the content.
func (c *content) drop(f *FS) {
	f.memory -= int64(len(c.small))
	c.small = nil
	if c.number != 0 {
		_ = f.cfg.Scratch.Remove(c.number) // else it goes with the directory
		c.number = 0
	}
}

// spill moves the content to a scratch file.
func (c *content) spill(f *FS) error {
	if c.number != 0 {
		return nil
	}
	f.files++
	h, err := f.cfg.Scratch.Create(f.files)
	if err != nil {
		return err
	}
	if _, err := h.Write(c.small); err != nil {
		return errors.Join(err, h.Close())
	}
	f.memory -= int64(len(c.small))
	c.small, c.number, c.file = nil, f.files, h
	return nil
}

// reader opens what a file holds, if it is not in memory.
func (f *FS) reader(n *inode) (*os.File, error) {
	var err error
	switch {
	case n.content.file != nil:
	case n.from != nil:
		n.content.file, err = f.original(n)
	case n.content.number != 0:
		n.content.file, err = f.cfg.Scratch.Open(n.content.number)
	}
	return n.content.file, err
}

// original opens what the machine has, if that is still a file.
func (f *FS) original(n *inode) (*os.File, error) {
	h, err := n.from.Open(n.at)
	if err != nil {
		return nil, err
	}
	fi, err := h.Stat()
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	n.size = fi.Size()
	return h, nil
}

// copyUp makes a file the task's own.
func (f *FS) copyUp(n *inode, truncate bool) sys.Errno {
	if n.from == nil {
		return 0
	}
	if truncate {
		n.content.rest()
		n.from, n.at, n.size, n.own = nil, "", 0, true
		return 0
	}
	from, err := f.original(n)
	if err != nil {
		return Errno(err)
	}
	defer from.Close()
	size := n.size
	if e := n.area.charge(size); e != 0 {
		return e
	}
	c := content{}
	err = c.spill(f)
	if err == nil {
		var done int64
		if done, err = io.Copy(c.file, io.LimitReader(from, size)); err == nil && done < size {
			err = io.ErrUnexpectedEOF // it was changed meanwhile
		}
	}
	if err != nil {
		n.area.used -= size
		c.rest()
		c.drop(f)
		return f.broke(err)
	}
	n.content.rest()
	n.content, n.from, n.at, n.own = c, nil, "", true
	if n.opens == 0 {
		n.content.rest()
	}
	return 0
}

// handle is what all open files have.
type handle struct {
	sys.UnimplementedFile
	fs     *FS
	node   *inode
	flag   sys.Oflag
	offset int64
	closed bool
}

func (f *FS) handle(n *inode, flag sys.Oflag) handle {
	f.open++
	n.opens++
	return handle{fs: f, node: n, flag: flag}
}

// Dev implements sys.File.
func (h *handle) Dev() (uint64, sys.Errno) { return 1, 0 }

// Ino implements sys.File.
func (h *handle) Ino() (wasys.Inode, sys.Errno) { return h.node.ino, 0 }

// IsDir implements sys.File.
func (h *handle) IsDir() (bool, sys.Errno) { return h.node.isDir(), 0 }

// IsAppend implements sys.File.
func (h *handle) IsAppend() bool { return h.flag&sys.O_APPEND != 0 }

// SetAppend implements sys.File.
func (h *handle) SetAppend(on bool) sys.Errno {
	h.flag &^= sys.O_APPEND
	if on {
		h.flag |= sys.O_APPEND
	}
	return 0
}

// Stat implements sys.File.
func (h *handle) Stat() (wasys.Stat_t, sys.Errno) { return h.fs.stat(h.node), 0 }

// Utimens implements sys.File.
func (h *handle) Utimens(_, mtime int64) sys.Errno { return h.fs.touch(h.node, mtime) }

// Sync implements sys.File: what a task writes is gone with it, or put in place by its host.
func (h *handle) Sync() sys.Errno { return 0 }

// Datasync implements sys.File.
func (h *handle) Datasync() sys.Errno { return 0 }

// Close implements sys.File.
func (h *handle) Close() sys.Errno {
	if h.closed {
		return 0
	}
	h.closed = true
	h.fs.open--
	h.node.opens--
	h.fs.release(h.node)
	return 0
}

// file is an open file.
type file struct{ handle }

func (h *file) writable() bool { return h.flag&(sys.O_RDWR|sys.O_WRONLY) != 0 }

// Read implements sys.File.
func (h *file) Read(b []byte) (int, sys.Errno) {
	n, e := h.Pread(b, h.offset)
	h.offset += int64(n)
	return n, e
}

// Pread implements sys.File.
func (h *file) Pread(b []byte, off int64) (int, sys.Errno) {
	switch {
	case h.closed || h.flag&sys.O_WRONLY != 0:
		return 0, sys.EBADF
	case off < 0:
		return 0, sys.EINVAL
	case len(b) == 0:
		return 0, 0
	}
	from, err := h.fs.reader(h.node)
	if err != nil {
		return 0, Errno(err)
	}
	if from == nil {
		if off >= int64(len(h.node.content.small)) {
			return 0, 0
		}
		return copy(b, h.node.content.small[off:]), 0
	}
	n, err := from.ReadAt(b, off)
	if isEOF(err) {
		err = nil
	}
	return n, h.fs.broke(err)
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) }

// Write implements sys.File.
func (h *file) Write(b []byte) (int, sys.Errno) {
	if h.flag&sys.O_APPEND != 0 {
		h.offset = h.node.size
	}
	n, e := h.Pwrite(b, h.offset)
	h.offset += int64(n)
	return n, e
}

// Pwrite implements sys.File.
func (h *file) Pwrite(b []byte, off int64) (int, sys.Errno) {
	n := h.node
	switch {
	case h.closed || !h.writable():
		return 0, sys.EBADF
	case off < 0 || off+int64(len(b)) < 0:
		return 0, sys.EINVAL
	case len(b) == 0:
		return 0, 0
	}
	before, end := n.size, off+int64(len(b))
	if e := h.grow(end); e != 0 {
		return 0, e
	}
	n.own, n.mtime = true, h.fs.cfg.Now()
	to, err := h.fs.reader(n)
	if err != nil {
		h.shrink(before)
		return 0, h.fs.broke(err)
	}
	if to == nil {
		return copy(n.content.small[off:], b), 0
	}
	done, err := to.WriteAt(b, off)
	if err != nil && done > 0 {
		before = max(before, off+int64(done))
	}
	if err != nil {
		h.shrink(before)
	}
	return done, h.fs.broke(err)
}

// shrink takes back what grow gave, down to size, where it was not written.
func (h *file) shrink(size int64) {
	h.node.area.used -= h.node.size - size
	h.node.size = size
}

// grow makes room for size bytes.
func (h *file) grow(size int64) sys.Errno {
	n, f := h.node, h.fs
	if size <= n.size {
		return 0
	}
	if e := n.area.charge(size - n.size); e != 0 {
		return e
	}
	if n.content.number == 0 && (size > maxSmall || f.memory+size-n.size > maxMemory) {
		if err := n.content.spill(f); err != nil {
			n.area.used -= size - n.size
			return f.broke(err)
		}
	}
	if n.content.number == 0 {
		f.memory += size - n.size
		n.content.small = append(n.content.small, make([]byte, size-n.size)...)
	}
	n.size = size
	return 0
}

// Truncate implements sys.File.
func (h *file) Truncate(size int64) sys.Errno {
	n, f := h.node, h.fs
	switch {
	case h.closed || !h.writable():
		return sys.EBADF
	case size < 0:
		return sys.EINVAL
	}
	before := n.size
	if e := h.grow(size); e != 0 {
		return e
	}
	n.own, n.mtime = true, f.cfg.Now()
	to, err := f.reader(n)
	if err == nil && to != nil {
		err = to.Truncate(size)
	}
	if err != nil {
		h.shrink(min(before, n.size))
		return f.broke(err)
	}
	if to == nil {
		f.memory -= n.size - size
		n.content.small = n.content.small[:size:size]
	}
	h.shrink(size)
	return 0
}

// offset is an int64 by another name, by which go vet does not take Seek for that of io.Seeker.
type offset = int64

// Seek implements sys.File.
func (h *file) Seek(to offset, whence int) (int64, sys.Errno) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		to += h.offset
	case io.SeekEnd:
		to += h.node.size
	default:
		return 0, sys.EINVAL
	}
	if to < 0 {
		return 0, sys.EINVAL
	}
	h.offset = to
	return to, 0
}

// directory is an open directory: its entries are those of the first Readdir.
type directory struct {
	handle
	names  []string
	listed bool
}

// Seek implements sys.File.
func (d *directory) Seek(to offset, whence int) (int64, sys.Errno) {
	if to != 0 || whence != io.SeekStart {
		return 0, sys.EINVAL
	}
	d.listed = false
	return 0, 0
}

// Readdir implements sys.File.
func (d *directory) Readdir(n int) ([]sys.Dirent, sys.Errno) {
	if d.closed {
		return nil, sys.EBADF
	}
	if !d.listed {
		names, e := d.fs.names(d.node)
		if e != 0 {
			return nil, e
		}
		d.names, d.listed = names, true
	}
	if n <= 0 {
		n = len(d.names)
	}
	var all []sys.Dirent
	for len(all) < n && len(d.names) > 0 {
		name := d.names[0]
		d.names = d.names[1:]
		c, e := d.fs.child(d.node, name)
		if e == sys.ENOENT {
			continue // removed since
		}
		if e != 0 {
			return all, e
		}
		all = append(all, sys.Dirent{Ino: c.ino, Name: name, Type: c.mode.Type()})
	}
	return all, 0
}

// Read implements sys.File.
func (d *directory) Read([]byte) (int, sys.Errno) { return 0, sys.EISDIR }

// null is /dev/null.
type null struct{ handle }

// Read implements sys.File.
func (*null) Read([]byte) (int, sys.Errno) { return 0, 0 }

// Pread implements sys.File.
func (*null) Pread([]byte, int64) (int, sys.Errno) { return 0, 0 }

// Write implements sys.File.
func (*null) Write(b []byte) (int, sys.Errno) { return len(b), 0 }

// Pwrite implements sys.File.
func (*null) Pwrite(b []byte, _ int64) (int, sys.Errno) { return len(b), 0 }

// Seek implements sys.File.
func (*null) Seek(offset, int) (int64, sys.Errno) { return 0, 0 }

// Truncate implements sys.File.
func (*null) Truncate(int64) sys.Errno { return 0 }
