package tool

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
)

// File is an open file or one of the devices that the guest makes up.
type File interface {
	io.ReadWriteCloser
}

// Path makes name absolute by the call's directory. An empty name stays empty,
// since it names nothing.
func (c *Call) Path(name string) string { return Abs(c.Dir, name) }

// Abs makes name absolute by dir. A slash at the end is kept.
func Abs(dir, name string) string {
	if name == "" {
		return ""
	}
	if !path.IsAbs(name) {
		name = dir + "/" + name
	}
	if strings.Contains(name, "/../") || strings.HasSuffix(name, "/..") {
		return upward(name)
	}
	return name
}

// upward is name without the parts .. of it. Of a directory that a link leads to, that is the one above, and not the one that has the
// link: the guest's package os would take that.
func upward(name string) string {
	todo := strings.Split(name, "/")
	slash := ""
	if todo[len(todo)-1] == "" {
		slash = "/"
	}
	at := "/"
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		if part != ".." {
			at = path.Join(at, part)
			continue
		}
		to, err := os.Readlink(at)
		if err != nil { // it is no link
			at = path.Dir(at)
			continue
		}
		if links++; links > 40 {
			return name
		}
		if at = path.Dir(at); path.IsAbs(to) {
			at = "/"
		}
		todo = append(append(strings.Split(to, "/"), ".."), todo...)
	}
	if at == "/" {
		return at
	}
	return at + slash
}

// Open opens for reading. "-" is not special: see [Call.Input].
func (c *Call) Open(name string) (File, error) {
	return OpenFile(c.Dir, name, os.O_RDONLY, 0, c.Proc, c.Stdin, c.Stdout, c.Stderr)
}

// Create opens for writing, truncated, with the mode 0666 less the umask. With
// add it appends instead.
func (c *Call) Create(name string, add bool) (File, error) {
	flag := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if add {
		flag = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	return OpenFile(c.Dir, name, flag, 0o666, c.Proc, c.Stdin, c.Stdout, c.Stderr)
}

// Input opens a file, or is standard input for "-".
func (c *Call) Input(name string) (io.ReadCloser, error) {
	if name == "-" {
		return standardInput{c.Stdin}, nil
	}
	f, err := c.Open(name)
	if err != nil {
		return nil, err
	}
	return f, nil
}

type standardInput struct{ io.Reader }

func (standardInput) Close() error { return nil }

// IsOutput tells whether standard output is the file that in reads, which then has no end.
func (c *Call) IsOutput(in io.Reader) bool {
	from, to := below(in), below(c.Stdout)
	a, b := regular(from), regular(to)
	if a == nil || b == nil || !os.SameFile(a, b) {
		return false
	}
	at := int64(0)
	if s, ok := from.(io.Seeker); ok {
		at, _ = s.Seek(0, io.SeekCurrent)
	}
	return at < a.Size()
}

// below is what a stream was made of.
func below(stream any) any {
	for {
		switch s := stream.(type) {
		case standardInput:
			stream = s.Reader
		case *guardedReader:
			stream = s.r
		case *guardedWriter:
			stream = s.w
		case interface{ Unwrap() io.Reader }: // the interpreter's
			stream = s.Unwrap()
		case device:
			if s.stream == nil {
				return stream
			}
			stream = s.stream
		default:
			return stream
		}
	}
}

func regular(stream any) fs.FileInfo {
	s, ok := stream.(interface{ Stat() (fs.FileInfo, error) })
	if !ok {
		return nil
	}
	fi, err := s.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return nil
	}
	return fi
}

// Each calls fn for each of the named files, or for standard input as "-" if
// there is none, and returns the status: bad if one could not be read, about
// which it has written.
func (c *Call) Each(names []string, bad int, fn func(name string, r io.Reader) error) int {
	if len(names) == 0 {
		names = []string{"-"}
	}
	status := 0
	for _, n := range names {
		r, err := c.Input(n)
		if err == nil {
			err = fn(n, r)
			r.Close()
		}
		if err != nil {
			c.Out.Flush()
			c.Errorf("%s: %s", n, Text(err))
			status = bad
		}
	}
	return status
}

// OpenFile opens as the shell and the tools do: relative to dir, with the umask,
// and with the devices of /dev that need no kernel.
func OpenFile(dir, name string, flag int, perm fs.FileMode, p *Process, in io.Reader, out, errw io.Writer) (File, error) {
	if d, ok := openDevice(name, in, out, errw); ok {
		return d, nil
	}
	if name == "" {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
	}
	full := Abs(dir, name)
	create := false
	if flag&os.O_CREATE != 0 {
		_, err := os.Stat(full)
		create = errors.Is(err, fs.ErrNotExist)
	}
	f, err := os.OpenFile(full, flag, perm&^p.Umask(-1))
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			pe.Path = name
		}
		return nil, err
	}
	if flag&(os.O_WRONLY|os.O_RDWR) == 0 {
		if fi, err := f.Stat(); err == nil && fi.IsDir() {
			f.Close()
			return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
		}
	}
	if create {
		if err := Chmod(full, perm&^p.Umask(-1)); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// Mkdir makes a directory with perm less the umask.
func (c *Call) Mkdir(name string, perm fs.FileMode) error {
	full := strings.TrimRight(c.Path(name), "/")
	perm &^= c.Proc.Umask(-1)
	if err := os.Mkdir(full, perm); err != nil {
		return err
	}
	return Chmod(full, perm)
}

// Stat follows symbolic links. See [Lstat].
func (c *Call) Stat(name string) (fs.FileInfo, error) {
	if fi := StatStream(name, c.Stdin, c.Stdout, c.Stderr); fi != nil {
		return fi, nil
	}
	return Stat(c.Path(name))
}

// Lstat does not follow the last symbolic link.
func (c *Call) Lstat(name string) (fs.FileInfo, error) {
	if fi := StatStream(name, c.Stdin, c.Stdout, c.Stderr); fi != nil {
		return fi, nil
	}
	return Lstat(c.Path(name))
}

// Stat is os.Stat with the modes that [Chmod] set and the devices of [OpenFile].
func Stat(name string) (fs.FileInfo, error) {
	if d := statDevice(name); d != nil {
		return d, nil
	}
	fi, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	return withMode(name, true, fi)
}

// Lstat is os.Lstat, as [Stat] is os.Stat.
func Lstat(name string) (fs.FileInfo, error) {
	if d := statDevice(name); d != nil {
		return d, nil
	}
	fi, err := os.Lstat(name)
	if err != nil {
		return nil, err
	}
	return withMode(name, false, fi)
}

// SameFile is os.SameFile for what [Stat] and [Lstat] return.
func SameFile(a, b fs.FileInfo) bool { return os.SameFile(bare(a), bare(b)) }

// ErrSpecial is why a mode cannot be set.
var ErrSpecial = errors.New("set-user-ID, set-group-ID and sticky bits are not available in the wasm shell")

// Special tells whether a mode has bits that [Chmod] refuses.
func Special(m fs.FileMode) bool { return Bits(m)&^0o777 != 0 }

// Chmod sets the permission bits of a file, by its absolute path, through symbolic links. A
// host keeps no others, so it is an error to ask for them.
func Chmod(name string, mode fs.FileMode) error {
	if Special(mode) {
		return &fs.PathError{Op: "chmod", Path: name, Err: ErrSpecial}
	}
	return chmod(name, mode)
}

// Bits are the permission bits and set-user-id, set-group-id and sticky in the
// numbers of chmod(2).
func Bits(m fs.FileMode) uint32 {
	b := uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		b |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		b |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		b |= 0o1000
	}
	return b
}

// FromBits is the inverse of [Bits].
func FromBits(b uint32) fs.FileMode {
	m := fs.FileMode(b & 0o777)
	if b&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if b&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if b&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// Sys is fi.Sys of what [Stat] and [Lstat] return.
func Sys(fi fs.FileInfo) any { return bare(fi).Sys() }

// Bare is what the system said of a file, in which os.SameFile knows its own, but with
// the wrong mode in the guest.
func Bare(fi fs.FileInfo) fs.FileInfo { return bare(fi) }
