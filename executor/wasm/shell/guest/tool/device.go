package tool

import (
	"crypto/rand"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"
)

// device is one of /dev that the guest makes up.
type device struct {
	io.Reader
	io.Writer
	stream any // what /dev/stdin and its like stand for, else nil
}

func (device) Close() error { return nil }

// openDevice opens what is in /dev, if it is one that needs no kernel.
func openDevice(name string, in io.Reader, out, errw io.Writer) (device, bool) {
	nothing := strings.NewReader("")
	if in == nil {
		in = nothing
	}
	switch path.Clean(name) {
	case "/dev/null":
		return device{nothing, io.Discard, nil}, true
	case "/dev/zero":
		return device{zeros{}, io.Discard, nil}, true
	case "/dev/full":
		return device{zeros{}, full{}, nil}, true
	case "/dev/random", "/dev/urandom":
		return device{rand.Reader, io.Discard, nil}, true
	case "/dev/stdin", "/dev/fd/0":
		return device{in, full{}, in}, true
	case "/dev/stdout", "/dev/fd/1":
		return device{nothing, out, out}, true
	case "/dev/stderr", "/dev/fd/2":
		return device{nothing, errw, errw}, true
	}
	return device{}, false
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// StatStream tells what the stream is that name stands for, as /dev/stdin does. It is nil if
// name is no such name. That these are links elsewhere is not told.
func StatStream(name string, in io.Reader, out, errw io.Writer) fs.FileInfo {
	var stream any
	clean := path.Clean(name)
	switch clean {
	case "/dev/stdin", "/dev/fd/0":
		stream = in
	case "/dev/stdout", "/dev/fd/1":
		stream = out
	case "/dev/stderr", "/dev/fd/2":
		stream = errw
	default:
		return nil
	}
	character := deviceInfo{path.Base(clean), fs.ModeDevice | fs.ModeCharDevice | 0o666}
	switch s := below(stream).(type) {
	case nil, device:
		return character
	case *os.File:
		fi, err := s.Stat()
		switch {
		case err == nil && fi.Mode().IsRegular():
			// The host knows its mode by its name, while it has one.
			if named, err := Stat(s.Name()); err == nil && SameFile(named, fi) {
				return named
			}
			return fi
		case s == os.Stdin, err == nil && fi.Mode()&fs.ModeCharDevice != 0 && s != os.Stdout && s != os.Stderr:
			return character
		}
	}
	return deviceInfo{path.Base(clean), fs.ModeNamedPipe | 0o600}
}

// deviceInfo is what is told of a file that has neither a size nor a time.
type deviceInfo struct {
	name string
	mode fs.FileMode
}

func statDevice(name string) fs.FileInfo {
	switch n := path.Clean(name); n {
	case "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom":
		return deviceInfo{path.Base(n), fs.ModeDevice | fs.ModeCharDevice | 0o666}
	}
	return nil
}

func (d deviceInfo) Name() string      { return d.name }
func (deviceInfo) Size() int64         { return 0 }
func (d deviceInfo) Mode() fs.FileMode { return d.mode }
func (deviceInfo) ModTime() time.Time  { return time.Unix(0, 0) }
func (deviceInfo) IsDir() bool         { return false }
func (deviceInfo) Sys() any            { return nil }
