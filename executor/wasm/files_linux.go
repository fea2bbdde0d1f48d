package wasm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// machineAt is what f is, for c, and the root to be closed after it: the one that was opened, whatever its name leads to by now.
func machineAt(f *os.File, c executor.Caller) (tree.Machine, *os.Root, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !fi.IsDir() {
		return single{f, fi}, nil, nil
	}
	r, err := os.OpenRoot(again(f))
	d := tree.Dir{Root: r}
	if c.UID != caller.Self().UID {
		d.Refuse = refuseProc(fi)
	}
	return d, r, err
}

// refuseProc refuses, beneath a directory that is none of that, what is in a file system of the kind proc: see caller.ErrProc.
func refuseProc(dir fs.FileInfo) func(fs.FileInfo) error {
	device := func(fi fs.FileInfo) uint64 { return uint64(fi.Sys().(*syscall.Stat_t).Dev) }
	proc := map[uint64]bool{device(dir): false}
	return func(fi fs.FileInfo) (err error) {
		at := device(fi)
		is, known := proc[at]
		if !known {
			if is, err = isProc(at); err != nil {
				return err
			}
			proc[at] = is
		}
		if is {
			return &fs.PathError{Op: "look at", Path: fi.Name(), Err: unix.EACCES}
		}
		return nil
	}
}

// isProc tells whether a device is that of a file system of the kind proc.
func isProc(device uint64) (bool, error) {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	number := fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
	for l := range strings.Lines(string(b)) {
		at, what, _ := strings.Cut(l, " - ")
		if f := strings.Fields(at); len(f) > 2 && f[2] == number {
			kind, _, _ := strings.Cut(what, " ")
			return kind == "proc", nil
		}
	}
	return false, err
}

// again is a path to open f once more by.
func again(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// single is the Machine of one file.
type single struct {
	f  *os.File
	fi fs.FileInfo
}

// Lstat implements tree.Machine.
func (s single) Lstat(name string) (tree.Info, error) {
	if name != "." {
		return tree.Info{}, unix.ENOTDIR
	}
	return infoOf(s.fi), nil
}

// List implements tree.Machine.
func (s single) List(string) ([]tree.Info, error) { return nil, unix.ENOTDIR }

// Open implements tree.Machine.
func (s single) Open(name string) (*os.File, error) {
	if name != "." {
		return nil, unix.ENOTDIR
	}
	return tree.Regular(os.OpenFile(again(s.f), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0))
}

// file does what a worker asks for, who may be anybody by now: it gets the names and the content of what its task is
// given, and its own scratch files.
func (r *running) file(scratch string, body []byte) error {
	var ask wire.File
	if err := json.Unmarshal(body, &ask); err != nil {
		return err
	}
	if len(ask.Path) > executor.MaxPathBytes {
		return fmt.Errorf("a path of %d bytes", len(ask.Path))
	}
	if len(ask.Ahead) > wire.MaxAhead {
		return fmt.Errorf("%d files to be opened ahead", len(ask.Ahead))
	}
	var infos []tree.Info
	var files []*os.File
	var err error
	switch ask.Do {
	case wire.FileCreate, wire.FileScratch:
		var f *os.File
		if f, err = r.scratch(scratch, ask); err == nil {
			files = []*os.File{f}
		}
	case wire.FileRemove:
		_, err = r.scratch(scratch, ask)
	default:
		err = r.files.machine(r.ctx, ask.Place, func(m tree.Machine) (err error) {
			infos, files, err = read(m, ask)
			return err
		})
		if r.ctx.Err() != nil {
			return r.ctx.Err() // what was begun may be under way
		}
	}
	reply := wire.FileReply{Errno: uint16(tree.Errno(err))}
	if len(files) > 0 {
		if err := r.worker.send(files); err != nil {
			return fmt.Errorf("send a worker a file: %w", err)
		}
	}
	for _, i := range infos {
		reply.Infos = append(reply.Infos, infoFor(i))
	}
	b, err := json.Marshal(reply)
	if err == nil && len(b) > wire.MaxFrame {
		b, err = json.Marshal(wire.FileReply{Errno: uint16(tree.Errno(unix.EIO))})
	}
	return r.reply(b, err)
}

// read does what is asked of a machine.
func read(m tree.Machine, ask wire.File) (infos []tree.Info, files []*os.File, err error) {
	switch name := string(ask.Path); ask.Do {
	case wire.FileLstat:
		i, err := m.Lstat(name)
		return []tree.Info{i}, nil, err
	case wire.FileList:
		infos, err = m.List(name)
		return infos, nil, err
	case wire.FileOpen:
		f, err := m.Open(name)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, f)
		for _, name := range ask.Ahead {
			if len(name) > executor.MaxPathBytes {
				break
			}
			f, err := m.Open(string(name))
			if err != nil {
				break // its turn, and its error, may come
			}
			files = append(files, f)
		}
		return nil, files, nil
	}
	return nil, nil, fmt.Errorf("a worker asks to %.20q", ask.Do)
}

// scratch does what is asked of the scratch directory.
func (r *running) scratch(dir string, ask wire.File) (*os.File, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	s := tree.Numbered{Root: root}
	switch ask.Do {
	case wire.FileCreate:
		if r.scratches >= r.cfg.files {
			return nil, unix.EDQUOT
		}
		f, err := s.Create(ask.Number)
		if err == nil {
			r.scratches++
		}
		return f, err
	case wire.FileScratch:
		return s.Open(ask.Number)
	}
	if err = s.Remove(ask.Number); err == nil {
		r.scratches--
	}
	return nil, err
}

// send gives the worker open files, and closes them. It waits for nobody.
func (w *worker) send(files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	err := unix.Sendmsg(int(w.files.Fd()), []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}
