package tree

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/tetratelabs/wazero/experimental/sys"
)

// Machine is a directory of the machine's, or a file, that is read. Names are relative to it, with slashes; "." is
// itself.
type Machine interface {
	// Lstat looks at what has the name.
	Lstat(name string) (Info, error)
	// List is what a directory holds, in any order.
	List(name string) ([]Info, error)
	// Open opens a regular file for reading, and nothing else.
	Open(name string) (*os.File, error)
}

// Info is what is known of an entry of a directory.
type Info struct {
	// Name is the entry's in its directory, of a List.
	Name string
	// Bare says that no more than the name is known.
	Bare bool
	Mode fs.FileMode
	Size int64
	// Time is its last change, in nanoseconds since 1970.
	Time int64
	// Target is where a link leads.
	Target string
}

// Scratch keeps files by numbers from one on.
type Scratch interface {
	// Create makes a file, and opens it for reading and writing.
	Create(number int) (*os.File, error)
	// Open opens one that was made.
	Open(number int) (*os.File, error)
	Remove(number int) error
}

// maxInfos bounds what is told of a directory's entries at once, in bytes of names and targets, and as many for each entry: of
// the others no more than the name is.
const maxInfos, eachInfo = 32 << 20, 128

// Dir is the Machine that is at Name beneath Root.
type Dir struct {
	Root *os.Root
	Name string
	// Refuse, if it is not nil, returns an error for what is beneath Root and not to be looked at.
	Refuse func(fs.FileInfo) error
}

// Lstat implements Machine.
func (d Dir) Lstat(name string) (Info, error) { return d.lstat(d.Root, path.Join(d.Name, name)) }

func (d Dir) lstat(r *os.Root, name string) (i Info, err error) {
	fi, err := r.Lstat(name)
	if err == nil {
		err = d.refused(fi)
	}
	if err != nil {
		return i, err
	}
	i = Info{Mode: fi.Mode(), Size: fi.Size(), Time: fi.ModTime().UnixNano()}
	if fi.Mode().Type() == fs.ModeSymlink {
		i.Target, err = r.Readlink(name)
		i.Size = int64(len(i.Target))
	}
	return i, err
}

func (d Dir) refused(fi fs.FileInfo) error {
	if d.Refuse == nil {
		return nil
	}
	return d.Refuse(fi)
}

// List implements Machine.
func (d Dir) List(name string) (all []Info, err error) {
	sub, err := d.Root.OpenRoot(path.Join(d.Name, name))
	if err != nil {
		return nil, err
	}
	defer sub.Close()
	h, err := sub.OpenFile(".", os.O_RDONLY|Nonblock, 0)
	if err != nil {
		return nil, err
	}
	var names []string
	if fi, statErr := h.Stat(); statErr != nil {
		err = statErr
	} else if err = d.refused(fi); err == nil {
		names, err = h.Readdirnames(maxKnown)
	}
	_ = h.Close()
	if err != nil && len(names) == 0 && !isEOF(err) {
		return nil, err
	}
	all = make([]Info, 0, len(names))
	told := 0
	for _, n := range names {
		i := Info{Bare: true}
		if told < maxInfos {
			if known, err := d.lstat(sub, n); err == nil {
				i = known
			}
		}
		i.Name = n
		told += eachInfo + len(n) + len(i.Target)
		all = append(all, i)
	}
	return all, nil
}

// Open implements Machine.
func (d Dir) Open(name string) (*os.File, error) {
	f, err := d.Root.OpenFile(path.Join(d.Name, name), os.O_RDONLY|Nonblock, 0)
	return regular(f, err, d.refused)
}

// Regular passes on a file that was opened, if it is a regular one.
func Regular(f *os.File, err error) (*os.File, error) { return regular(f, err, Dir{}.refused) }

func regular(f *os.File, err error, refused func(fs.FileInfo) error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: f.Name(), Err: fs.ErrInvalid}
	}
	if err == nil {
		err = refused(fi)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Numbered is a Scratch in a directory.
type Numbered struct{ Root *os.Root }

// Create implements Scratch.
func (n Numbered) Create(number int) (*os.File, error) {
	return n.Root.OpenFile(strconv.Itoa(number), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// Open implements Scratch.
func (n Numbered) Open(number int) (*os.File, error) {
	return Regular(n.Root.OpenFile(strconv.Itoa(number), os.O_RDWR|Nonblock, 0))
}

// Remove implements Scratch.
func (n Numbered) Remove(number int) error { return n.Root.Remove(strconv.Itoa(number)) }

// Errno is what a guest is told of an error of the machine's.
func Errno(err error) sys.Errno {
	if err == nil {
		return 0
	}
	if e := sys.Errno(0); errors.As(err, &e) {
		return e
	}
	var p *fs.PathError
	if errors.As(err, &p) && p.Err.Error() == "path escapes from parent" {
		return sys.EPERM
	}
	return sys.UnwrapOSError(err)
}

// OpenDir opens what is at a path: a directory, or one that holds the file.
func OpenDir(host string) (d Dir, err error) {
	fi, err := os.Stat(host)
	if err != nil {
		return d, err
	}
	if fi.IsDir() {
		d.Root, err = os.OpenRoot(host)
		return d, err
	}
	if !fi.Mode().IsRegular() {
		return d, &fs.PathError{Op: "open", Path: host, Err: errors.New("not a file or directory")}
	}
	if host, err = filepath.EvalSymlinks(host); err != nil {
		return d, err
	}
	d.Name = filepath.Base(host)
	d.Root, err = os.OpenRoot(filepath.Dir(host))
	return d, err
}
