//go:build !linux

package cache

import (
	"errors"
	"io"
	"io/fs"
	"os"
)

// dirHandle is an open directory. Names given to it are single ones, as it lists
// them.
type dirHandle struct {
	root *os.Root
	base *os.File // of the tree, until it is opened by its name
}

func handleOf(f *os.File) dirHandle { return dirHandle{base: f} }

func (h dirHandle) close() {
	if h.root != nil {
		_ = h.root.Close()
	}
}

// openDir opens the base by its name, there being no other way to a Root, and
// makes sure that it is still the same directory.
func (h dirHandle) openDir(name string) (dirHandle, info, error) {
	var root *os.Root
	var err error
	if h.base != nil {
		root, err = os.OpenRoot(h.base.Name())
	} else {
		root, err = h.root.OpenRoot(name)
	}
	if err != nil {
		return dirHandle{}, info{}, err
	}
	if err := h.same(root, name); err != nil {
		return dirHandle{}, info{}, errors.Join(err, root.Close())
	}
	return dirHandle{root: root}, info{}, nil
}

// same makes sure that a Root is what stands at the name, and not what a link there
// leads to.
func (h dirHandle) same(root *os.Root, name string) error {
	is, err := root.Stat(".")
	if err != nil {
		return err
	}
	var want fs.FileInfo
	if h.base != nil {
		want, err = h.base.Stat()
	} else {
		want, err = h.root.Lstat(name)
	}
	if err != nil {
		return err
	}
	if !os.SameFile(is, want) {
		return ErrChanged
	}
	return nil
}

func (h dirHandle) names(most int) ([]string, error) {
	d, err := h.root.Open(".")
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(max(most, 0) + 1<<16)
	if errors.Is(err, io.EOF) {
		err = nil // it is empty
	}
	return names, errors.Join(err, d.Close())
}

func (h dirHandle) stat(name string) (info, error) {
	fi, err := h.root.Lstat(name)
	if err != nil {
		return info{}, err
	}
	return infoFrom(fi), nil
}

func (h dirHandle) readlink(name string) (string, error) { return h.root.Readlink(name) }

// file is an open file.
type file struct{ *os.File }

// openFile fails where a link took the file's place. A FIFO that did may hold it up.
func (h dirHandle) openFile(name string) (file, info, error) {
	f, err := h.root.Open(name)
	if err != nil {
		return file{}, info{}, err
	}
	is, err := f.Stat()
	if err == nil {
		var want fs.FileInfo
		if want, err = h.root.Lstat(name); err == nil && !os.SameFile(is, want) {
			err = ErrChanged
		}
	}
	if err != nil {
		return file{}, info{}, errors.Join(err, f.Close())
	}
	return file{f}, infoFrom(is), nil
}

func (f file) info() (info, error) { return infoOf(f.File) }

func (f file) close() error { return f.Close() }

func infoOf(f *os.File) (info, error) {
	fi, err := f.Stat()
	if err != nil {
		return info{}, err
	}
	return infoFrom(fi), nil
}

// infoFrom knows no inode here, so the index will not know the file.
func infoFrom(fi fs.FileInfo) info {
	t := fi.ModTime().UnixNano()
	return info{size: fi.Size(), mtime: t, ctime: t, mode: fi.Mode()}
}
