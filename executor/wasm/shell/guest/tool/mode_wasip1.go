package tool

import (
	"io/fs"
	"syscall"
	"unsafe"
)

// WASI's preview 1 has no permission bits: neither can a guest set them, nor does
// it see them. So the host that runs this guest provides both, by absolute path.
// What they take and return is in the documentation of package shell.

//go:wasmimport sandboxd chmod
func hostChmod(p unsafe.Pointer, n, mode uint32) int32

//go:wasmimport sandboxd mode
func hostMode(p unsafe.Pointer, n, follow uint32) int32

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
