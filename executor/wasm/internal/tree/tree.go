// Package tree is the file system that a WebAssembly task sees.
//
// Its names, links, modes and times are in memory. What is not the task's own is read from
// directories of the machine, and never written; what the task writes is kept in
// numbered files, or in memory while it is little. So nothing
// that a task does to names reaches the machine: symbolic links are text that is resolved
// here, in the task's own tree, and there is neither a FIFO nor a device nor a name
// that the machine's file system could take for something else.
//
//	/build       the work directory below, the task's writes above; or the latter alone
//	/tmp         the task's own, as is /home/build
//	/dev/null    takes all and holds nothing
//	the inputs   where the task wants them, read-only
//
// Listings are sorted, inode numbers count up from one, and modes are those that a signature
// knows, executable or not, so that a task sees the same wherever it runs. Times of files
// are those of FS.Now, unless Config.RealTimes.
//
// An FS is for one goroutine at a time, as its task is.
package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero/experimental/sys"
	wasys "github.com/tetratelabs/wazero/sys"
)

// Where the parts of the tree are.
const (
	WorkDir = "/build"
	HomeDir = "/home/build"
	TmpDir  = "/tmp"
)

// Bounds that are not the task's to choose.
const (
	maxName  = 255
	maxPath  = 4096
	maxLinks = 40
	// maxMemory is how much content is kept in memory, maxSmall of one file.
	maxMemory = 32 << 20
	maxSmall  = 64 << 10
	// maxTargets bounds what the task's links lead to, together, which is in memory.
	maxTargets = 64 << 20
	// maxKnown bounds how many entries of the machine's directories are known at a time.
	maxKnown = 1_000_000
)

// Config is what an FS is made of.
type Config struct {
	// Scratch is empty, and for what the task writes.
	Scratch Scratch
	// Work is the work directory; nil is an empty one.
	Work Machine
	// WorkReadonly refuses writes below /build.
	WorkReadonly bool
	// Hide are paths in the work directory that are not seen: the outputs of the last run.
	Hide []string
	// Inputs are seen read-only.
	Inputs []Input
	// WorkBytes and TmpBytes bound the sizes of what the task writes below /build, and elsewhere.
	WorkBytes, TmpBytes int64
	// MaxFiles bounds how many files, directories and links it makes, and MaxOpen how many
	// are open at a time.
	MaxFiles, MaxOpen int
	// Now is the time that what is written gets, in nanoseconds since 1970.
	Now func() int64
	// RealTimes shows the machine's times of its files, and not Epoch.
	RealTimes bool
	// Epoch is the time of what the task has not written, in nanoseconds since 1970.
	Epoch int64
}

// Input is a file or directory of the machine, seen at Target.
type Input struct {
	// Target is an absolute path, clean.
	Target string
	Machine
}

// FS implements the file system for wazero.
type FS struct {
	sys.UnimplementedFS
	cfg      Config
	root     *inode
	build    *inode
	ino      uint64
	work     area
	scratch  area // /tmp and /home/build
	readonly area
	made     int // entries that the task made
	known    int // entries of the machine's directories
	open     int
	memory   int64
	targets  int
	files    int   // numbered files so far
	broken   error // the first that a file's content could not be read or written by
}

// area is a part of the tree with a quota.
type area struct {
	name       string
	readonly   bool
	used, most int64
	// refused says that a write was.
	refused bool
}

func (a *area) charge(n int64) sys.Errno {
	if n > 0 && n > a.most-a.used {
		a.refused = true
		return sys.EIO // there is neither ENOSPC nor EDQUOT
	}
	a.used += n
	return 0
}

// inode is a file, a directory, a link, or something of the machine's that is none of these.
type inode struct {
	ino   uint64
	mode  fs.FileMode
	area  *area
	mtime int64
	// links is how many names it has, opens how many handles.
	links, opens int
	// own says that the task made or changed it, or moved it here; counted that it made it.
	own, counted bool

	// from is where the machine has it, at the path at; nil if it is the task's alone.
	from Machine
	at   string
	// listed is what a List told of entries that are not among the children.
	listed map[string]Info

	// children of a directory are what is known; nil is what is no longer there.
	children map[string]*inode
	target   string // of a link
	content  content
	size     int64
}

func (n *inode) isDir() bool { return n.mode.IsDir() }

// New makes the tree.
func New(cfg Config) (*FS, error) {
	unlimited := func(n int64) int64 {
		if n <= 0 {
			return math.MaxInt64
		}
		return n
	}
	f := &FS{cfg: cfg}
	f.work = area{name: "the work directory", most: unlimited(cfg.WorkBytes), readonly: cfg.WorkReadonly}
	f.scratch = area{name: "/tmp and the home directory", most: unlimited(cfg.TmpBytes)}
	f.readonly = area{readonly: true}
	f.root = f.directory(&f.readonly)
	type mount struct {
		Input
		area *area
	}
	all := []mount{
		{Input{WorkDir, cfg.Work}, &f.work}, {Input{TmpDir, nil}, &f.scratch},
		{Input{HomeDir, nil}, &f.scratch}, {Input{"/dev", nil}, &f.readonly},
	}
	for _, in := range cfg.Inputs {
		all = append(all, mount{in, &f.readonly})
	}
	// Those above before those below.
	slices.SortFunc(all, func(a, b mount) int { return strings.Compare(a.Target, b.Target) })
	for _, m := range all {
		n, err := f.mount(m.Input, m.area)
		if err != nil {
			return nil, err
		}
		switch m.Target {
		case WorkDir:
			f.build = n
		case "/dev":
			n.children["null"] = f.inode(fs.ModeDevice|fs.ModeCharDevice|0o666, &f.readonly)
		}
	}
	f.hide(cfg.Hide)
	return f, nil
}

func (f *FS) inode(mode fs.FileMode, a *area) *inode {
	f.ino++
	return &inode{ino: f.ino, mode: mode, area: a, mtime: f.cfg.Epoch, links: 1}
}

func (f *FS) directory(a *area) *inode {
	n := f.inode(fs.ModeDir|0o755, a)
	n.children = map[string]*inode{}
	return n
}

// mount puts an input, or where that is nil an empty directory, to its place.
func (f *FS) mount(in Input, a *area) (*inode, error) {
	d := f.root
	parts := strings.Split(strings.Trim(in.Target, "/"), "/")
	for _, p := range parts[:len(parts)-1] {
		c, e := f.child(d, p)
		if e == sys.ENOENT {
			c, e = f.directory(&f.readonly), 0
			d.children[p] = c
		}
		if e != 0 || !c.isDir() {
			return nil, &TargetError{Target: in.Target}
		}
		d = c
	}
	n := f.directory(a)
	if in.Machine != nil {
		i, err := in.Lstat(".")
		if err != nil {
			return nil, err
		}
		n = f.found(in.Machine, ".", i, a)
	}
	d.children[parts[len(parts)-1]] = n
	return n, nil
}

// TargetError says that an input's place is below a file.
type TargetError struct{ Target string }

// Error implements error.
func (e *TargetError) Error() string {
	return fmt.Sprintf("the input at %q would lie below something that is no directory; put it elsewhere", e.Target)
}

// found makes an inode of what the machine has.
func (f *FS) found(from Machine, at string, i Info, a *area) *inode {
	perm := fs.FileMode(0o644)
	if i.Mode.IsDir() || i.Mode&0o100 != 0 {
		perm = 0o755
	}
	n := f.inode(i.Mode.Type()|perm, a)
	n.from, n.at = from, at
	if f.cfg.RealTimes {
		n.mtime = i.Time
	}
	switch i.Mode.Type() {
	case fs.ModeDir:
		n.children = map[string]*inode{}
	case fs.ModeSymlink:
		n.target, n.size = i.Target, i.Size
	case 0:
		n.size = i.Size
	}
	return n
}

// child is an entry of a directory.
func (f *FS) child(d *inode, name string) (*inode, sys.Errno) {
	if c, known := d.children[name]; known {
		if c == nil {
			return nil, sys.ENOENT
		}
		return c, 0
	}
	if d.from == nil {
		return nil, sys.ENOENT
	}
	at := path.Join(d.at, name)
	i, listed := d.listed[name]
	if !listed {
		var err error
		if i, err = d.from.Lstat(at); err != nil {
			return nil, Errno(err)
		}
	}
	if f.known++; f.known > maxKnown {
		return nil, sys.EIO
	}
	c := f.found(d.from, at, i, d.area)
	delete(d.listed, name)
	d.children[name] = c
	return c, 0
}

// names of a directory's entries, sorted.
func (f *FS) names(d *inode) ([]string, sys.Errno) {
	var all []string
	for name, c := range d.children {
		if c != nil {
			all = append(all, name)
		}
	}
	if d.from != nil {
		entries, err := d.from.List(d.at)
		if err != nil {
			return nil, Errno(err)
		}
		d.listed = map[string]Info{}
		for _, i := range entries {
			if _, known := d.children[i.Name]; known {
				continue
			}
			all = append(all, i.Name)
			if !i.Bare {
				d.listed[i.Name] = i
			}
		}
	}
	slices.Sort(all)
	return all, 0
}

// hide removes what the last run left, and the directories that held nothing else: they
// take no part in a signature.
func (f *FS) hide(outputs []string) {
	for _, o := range outputs {
		dirs := []*inode{f.build}
		parts := strings.Split(o, "/")
		for _, p := range parts[:len(parts)-1] {
			c, e := f.child(dirs[len(dirs)-1], p)
			if e != 0 || !c.isDir() {
				break
			}
			dirs = append(dirs, c)
		}
		if len(dirs) < len(parts) {
			continue
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			if i < len(dirs)-1 {
				if left, e := f.names(dirs[i+1]); e != 0 || len(left) > 0 {
					break
				}
			}
			if dirs[i].from != nil {
				dirs[i].children[parts[i]] = nil
			}
		}
	}
}

// place is where a path leads.
type place struct {
	dirs []*inode // from the root to the directory that has, or would have it
	name string   // in the last of these; empty for the root itself
	node *inode   // nil if it is not there
}

func (p place) dir() *inode { return p.dirs[len(p.dirs)-1] }

// find follows a path; follow says whether also a link at its end.
func (f *FS) find(p string, follow bool) (place, sys.Errno) {
	var at place
	if len(p) > maxPath {
		return at, sys.ENAMETOOLONG
	}
	at.dirs, at.node = []*inode{f.root}, f.root
	rest := strings.Split(strings.Trim(p, "/"), "/")
	directory := strings.HasSuffix(p, "/") // also of what is no directory
	links := 0
	for i := 0; i < len(rest); i++ {
		name := rest[i]
		last := i == len(rest)-1
		switch {
		case name == "" || name == ".":
			continue
		case len(name) > maxName:
			return at, sys.ENAMETOOLONG
		case strings.ContainsRune(name, 0):
			return at, sys.EINVAL
		}
		if at.node == nil {
			return at, sys.ENOENT
		}
		if !at.node.isDir() {
			return at, sys.ENOTDIR
		}
		if at.name != "" {
			at.dirs = append(at.dirs, at.node)
		}
		if name == ".." {
			// Back to the directory above, as if it had been come to from there.
			if len(at.dirs) > 1 {
				at.dirs = at.dirs[:len(at.dirs)-1]
			}
			at.node, at.name = at.dir(), ""
			continue
		}
		if at.dir().mode&0o100 == 0 {
			return at, sys.EACCES
		}
		c, e := f.child(at.dir(), name)
		if e != 0 && e != sys.ENOENT {
			return at, e
		}
		at.name, at.node = name, c
		if c == nil || c.mode.Type() != fs.ModeSymlink || last && !follow && !directory {
			continue
		}
		if links++; links > maxLinks {
			return at, sys.ELOOP
		}
		rest = append(strings.Split(c.target, "/"), rest[i+1:]...)
		i = -1
		if strings.HasPrefix(c.target, "/") {
			at.dirs = at.dirs[:1]
		}
		at.node, at.name = at.dir(), ""
	}
	if directory && at.node != nil && !at.node.isDir() {
		return at, sys.ENOTDIR
	}
	return at, 0
}

// existing is find of what must be there.
func (f *FS) existing(p string, follow bool) (place, sys.Errno) {
	at, e := f.find(p, follow)
	if e == 0 && at.node == nil {
		e = sys.ENOENT
	}
	return at, e
}

// vacant is find of what must not be there, where something can be made.
func (f *FS) vacant(p string) (place, sys.Errno) {
	at, e := f.find(p, false)
	switch {
	case e != 0:
		return at, e
	case at.node != nil:
		return at, sys.EEXIST
	}
	return at, f.changeable(at.dir())
}

// changeable says whether entries of a directory may be made and removed.
func (f *FS) changeable(d *inode) sys.Errno {
	switch {
	case d.area.readonly:
		return sys.EROFS
	case d.mode&0o200 == 0:
		return sys.EACCES
	}
	return 0
}

// put gives n a name.
func (f *FS) put(at place, n *inode) {
	n.own = true
	at.dir().children[at.name] = n
	at.dir().mtime = f.cfg.Now()
}

// create is put of what is new.
func (f *FS) create(at place, n *inode) sys.Errno {
	if e := f.count(at.dir().area); e != 0 {
		return e
	}
	n.mtime, n.counted = f.cfg.Now(), true
	f.put(at, n)
	return 0
}

// count notes one file more, or a name of one.
func (f *FS) count(a *area) sys.Errno {
	if f.made >= f.cfg.MaxFiles {
		a.refused = true
		return sys.EIO
	}
	f.made++
	return 0
}

// take removes a name.
func (f *FS) take(at place) {
	d := at.dir()
	if d.from != nil {
		d.children[at.name] = nil
	} else {
		delete(d.children, at.name)
	}
	d.mtime = f.cfg.Now()
}

// unlink is take of a name that was not put elsewhere.
func (f *FS) unlink(at place) {
	f.take(at)
	if at.node.links--; at.node.links > 0 {
		f.made--
	}
	f.release(at.node)
}

// release gives back what has neither a name nor a handle.
func (f *FS) release(n *inode) {
	if n.opens > 0 {
		return
	}
	n.content.rest()
	if n.links > 0 {
		return
	}
	if n.counted {
		n.counted = false
		f.made--
	}
	if n.from == nil {
		f.targets -= len(n.target)
	}
	if n.mode.IsRegular() && n.from == nil {
		n.area.used -= n.size
		n.size = 0
		n.content.drop(f)
	}
}

func (f *FS) stat(n *inode) wasys.Stat_t {
	return wasys.Stat_t{
		Dev: 1, Ino: n.ino, Mode: n.mode, Nlink: uint64(max(n.links, 0)), Size: n.size,
		Atim: n.mtime, Mtim: n.mtime, Ctim: n.mtime,
	}
}

// Open is how many handles are open.
func (f *FS) Open() int { return f.open }

// broke notes an error of the machine's, by which the task may come to something else than it would have, and returns what the guest is told.
func (f *FS) broke(err error) sys.Errno {
	if err != nil && f.broken == nil {
		f.broken = err
	}
	return Errno(err)
}

// Refused says which quota a write met, or which fault of the machine's the task did; empty if none.
func (f *FS) Refused() string {
	if f.broken != nil {
		err := f.broken
		if p := (*fs.PathError)(nil); errors.As(err, &p) {
			err = p.Err // the name is ours
		}
		return fmt.Sprintf("a file could not be read or written: %v; see that the cache's disk has room", err)
	}
	for _, a := range []*area{&f.work, &f.scratch} {
		if a.refused {
			return fmt.Sprintf("writes to %s were refused beyond %d bytes or %d files", a.name, a.most, f.cfg.MaxFiles)
		}
	}
	return ""
}
