package tool

import (
	"io/fs"
	"syscall"
	"time"
	"unsafe"
)

// WASI's preview 1 has no permission bits: neither can a guest set them, nor does
// it see them; and it has no time of a link. So the host that runs this guest provides these, by absolute path.
// What they take and return is in the documentation of package shell.

//go:wasmimport sandboxd chmod
func hostChmod(p unsafe.Pointer, n, mode uint32) int32

//go:wasmimport sandboxd mode
func hostMode(p unsafe.Pointer, n, follow uint32) int32

//go:wasmimport sandboxd touch
func hostTouch(p unsafe.Pointer, n uint32, t unsafe.Pointer) int32

// TouchLink sets the time of modification of a symbolic link itself, or of another file.
func TouchLink(name string, t time.Time) error {
	ns := t.UnixNano()
	if e := hostTouch(unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)), unsafe.Pointer(&ns)); e != 0 {
		return &fs.PathError{Op: "touch", Path: name, Err: syscall.Errno(e)}
	}
	return nil
}

func chmod(name string, mode fs.FileMode) error {
	if e := hostChmod(unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)), Bits(mode)); e != 0 {
		return &fs.PathError{Op: "chmod", Path: name, Err: syscall.Errno(e)}
	}
	return nil
}

type moded struct {
	fs.FileInfo
	mode fs.FileMode
}

func (m moded) Mode() fs.FileMode { return m.mode }

func withMode(name string, follow bool, fi fs.FileInfo) (fs.FileInfo, error) {
	var f uint32
	if follow {
		f = 1
	}
	b := hostMode(unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)), f)
	if b < 0 {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: syscall.Errno(-b)}
	}
	m := fi.Mode().Type()
	switch b & 0o170000 {
	case 0o010000:
		m = fs.ModeNamedPipe
	case 0o140000:
		m = fs.ModeSocket
	}
	return moded{fi, m | FromBits(uint32(b))}, nil
}

func bare(fi fs.FileInfo) fs.FileInfo {
	if m, ok := fi.(moded); ok {
		return m.FileInfo
	}
	return fi
}
