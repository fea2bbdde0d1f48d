package process

import (
	"os"
	"slices"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

const (
	// maxOrdered bounds how many names of files are kept in order, maxAhead how many files are open before they are asked for.
	maxOrdered = 100_000
	maxAhead   = 4 * wire.MaxAhead
)

// ahead has files opened before the task opens them, where it opens those of a directory in the order of their names: to
// ask the executor takes ten times as long as to open one.
type ahead struct {
	dirs map[directory]*order
	// names are in all of them, and files are open.
	names, files int
}

// directory is one of a Machine.
type directory struct {
	place int
	path  string
}

// order is the regular files of a directory by their names, and how far the task has come.
type order struct {
	*ahead
	names []string
	next  int
	most  int        // to be opened with the next one
	files []*os.File // from next on
}

// listed notes what a directory holds.
func (a *ahead) listed(d directory, all []tree.Info) {
	if o := a.dirs[d]; o != nil {
		o.drop(len(o.files))
		a.names -= len(o.names)
		delete(a.dirs, d)
	}
	o := &order{ahead: a}
	for _, i := range all {
		if !i.Bare && i.Mode.IsRegular() {
			o.names = append(o.names, i.Name)
		}
	}
	slices.Sort(o.names)
	if a.names+len(o.names) > maxOrdered {
		a.forget()
	}
	if len(o.names) > maxOrdered {
		return
	}
	if a.dirs == nil {
		a.dirs = map[directory]*order{}
	}
	a.dirs[d], a.names = o, a.names+len(o.names)
}

// open is a file that was opened already, or nil. Then those named by more are to be opened with it, and put into o by add.
func (a *ahead) open(place int, name string) (f *os.File, o *order, more []string) {
	dir, parent, base := "", ".", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dir, parent, base = name[:i+1], name[:i], name[i+1:]
	}
	if o = a.dirs[directory{place, parent}]; o == nil {
		return nil, nil, nil
	}
	i, found := slices.BinarySearch(o.names, base)
	if !found {
		return nil, nil, nil
	}
	skip := i - o.next
	o.next = i + 1
	if 0 <= skip && skip < len(o.files) {
		f = o.files[skip]
		o.files[skip] = nil
		o.drop(skip + 1)
		return f, o, nil
	}
	o.drop(len(o.files))
	if skip == 0 {
		o.most = min(2*o.most+1, wire.MaxAhead)
	} else {
		o.most = 0
	}
	n := min(o.most, len(o.names)-o.next, maxAhead-a.files)
	for _, name := range o.names[o.next : o.next+n] {
		more = append(more, dir+name)
	}
	return nil, o, more
}

// add takes files that were opened ahead.
func (o *order) add(files []*os.File) {
	o.files = files
	o.ahead.files += len(files)
}

// drop closes the first n files, those that were not taken.
func (o *order) drop(n int) {
	for _, f := range o.files[:n] {
		if f != nil {
			_ = f.Close()
		}
	}
	o.files = o.files[n:]
	o.ahead.files -= n
}

// forget closes all.
func (a *ahead) forget() {
	for _, o := range a.dirs {
		o.drop(len(o.files))
	}
	*a = ahead{}
}
