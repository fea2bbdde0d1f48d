package process

import (
	"encoding/json"
	"io/fs"
	"os"

	"github.com/tetratelabs/wazero/experimental/sys"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// asked is a tree.Machine that the executor reads: all that the worker gets of it is names, and open files. It is for
// one goroutine, as its tree is.
type asked struct {
	*instance
	place int
	// info is of the Machine itself.
	info tree.Info
}

// Lstat implements tree.Machine.
func (a *asked) Lstat(name string) (tree.Info, error) {
	if name == "." {
		return a.info, nil
	}
	r, err := a.file(wire.File{Do: wire.FileLstat, Place: a.place, Path: []byte(name)})
	if err != nil {
		return tree.Info{}, err
	}
	if len(r.Infos) != 1 {
		return tree.Info{}, errOrder
	}
	return infoOf(r.Infos[0]), nil
}

// List implements tree.Machine.
func (a *asked) List(name string) ([]tree.Info, error) {
	r, err := a.file(wire.File{Do: wire.FileList, Place: a.place, Path: []byte(name)})
	if err != nil {
		return nil, err
	}
	all := make([]tree.Info, len(r.Infos))
	for i, x := range r.Infos {
		all[i] = infoOf(x)
	}
	a.ahead.listed(directory{a.place, name}, all)
	return all, nil
}

// Open implements tree.Machine.
func (a *asked) Open(name string) (*os.File, error) {
	f, order, more := a.ahead.open(a.place, name)
	if f != nil {
		return f, nil
	}
	files, err := a.opened(wire.File{Do: wire.FileOpen, Place: a.place, Path: []byte(name), Ahead: wire.Bytes(more)})
	if err != nil {
		return nil, err
	}
	if order != nil {
		order.add(files[1:])
	}
	return files[0], nil
}

func infoOf(i wire.Info) tree.Info {
	return tree.Info{Name: string(i.Name), Bare: i.Bare, Mode: fs.FileMode(i.Mode), Size: i.Size, Time: i.Time, Target: string(i.Target)}
}

// askedScratch is a tree.Scratch that the executor keeps.
type askedScratch struct{ *instance }

// Create implements tree.Scratch.
func (a askedScratch) Create(number int) (*os.File, error) {
	return a.one(wire.File{Do: wire.FileCreate, Number: number})
}

// Open implements tree.Scratch.
func (a askedScratch) Open(number int) (*os.File, error) {
	return a.one(wire.File{Do: wire.FileScratch, Number: number})
}

func (a askedScratch) one(f wire.File) (*os.File, error) {
	files, err := a.opened(f)
	if err != nil {
		return nil, err
	}
	return files[0], nil
}

// Remove implements tree.Scratch.
func (a askedScratch) Remove(number int) error {
	_, err := a.file(wire.File{Do: wire.FileRemove, Number: number})
	return err
}

// file has the executor do something with files.
func (i *instance) file(f wire.File) (r wire.FileReply, err error) {
	b, err := json.Marshal(f)
	if err != nil {
		return r, err
	}
	if b, err = i.ask(wire.KindFile, b); err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, err
	}
	if r.Errno != 0 {
		return r, sys.Errno(r.Errno)
	}
	return r, nil
}

// opened has the executor open a file, and those Ahead of it that can be.
func (i *instance) opened(f wire.File) ([]*os.File, error) {
	if _, err := i.file(f); err != nil {
		return nil, err
	}
	return receive(1 + len(f.Ahead))
}
