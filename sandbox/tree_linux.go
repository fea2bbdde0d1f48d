package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// maxTree bounds the entries of a root's skeleton, maxTreeFile a file in it.
const (
	maxTree     = 8192
	maxTreeFile = 1 << 20
)

// node is a directory, symbolic link or file of a root.
type node struct {
	Path string // relative to the root
	Mode os.FileMode
	Link string
	Data []byte
}

// tree reads a skeleton, which is ours and small.
func tree(dir string) (nodes []node, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		if len(nodes) >= maxTree {
			return fmt.Errorf("more than %d entries", maxTree)
		}
		n, err := readNode(root, p)
		nodes = append(nodes, n)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", dir, err)
	}
	return nodes, nil
}

func readNode(root *os.Root, p string) (n node, err error) {
	st, err := root.Lstat(p)
	if err != nil {
		return n, err
	}
	n = node{Path: p, Mode: st.Mode()}
	switch {
	case st.IsDir():
	case st.Mode()&fs.ModeSymlink != 0:
		n.Link, err = root.Readlink(p)
	case st.Mode().IsRegular() && st.Size() <= maxTreeFile:
		n.Data, err = root.ReadFile(p)
	default:
		err = fmt.Errorf("%s is not a directory, link or small file", p)
	}
	return n, err
}

// noMountsBelow refuses a directory with mounts in it: an overlay would show what they
// cover.
func noMountsBelow(dir *os.File) error {
	path, err := os.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", dir.Fd()))
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	if st.Nlink == 0 {
		return errors.New("was removed")
	}
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	for _, at := range mounts {
		if at != path && beneath(at, path) {
			return &MountBelowError{Path: path, Mount: at}
		}
	}
	return nil
}
