package rootfs

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Collect takes the declared outputs out of work, the open work directory of a
// task of which no process is left. It returns the entries sorted so that a
// directory comes before what it holds, and the outputs that are not there.
//
// Links are taken as links, hard links as copies; set-id and sticky bits,
// owners, times and extended attributes are dropped. What cannot be taken (FIFO,
// socket, device, a name that is not UTF-8, an output beyond a link) is an
// [*EntryError], too much is a [*LimitError]; neither returns entries. Store has
// then been called for some files. Directories that no one may read need root.
//
// layer, unless nil, is where files lie that are its own, which the work directory shows alone; of these its Take is
// called in place of store.
func Collect(ctx context.Context, work *os.File, layer *Layer, outputs []string, lim Limits, store Store) (entries []Entry, missing []string, err error) {
	if err := checkOutputs(outputs); err != nil {
		return nil, nil, err
	}
	if err := isDir(work); err != nil {
		return nil, nil, fmt.Errorf("work directory: %w", err)
	}
	c := &collector{ctx: ctx, lim: lim.orDefault(), layer: layer, store: storing{ctx: ctx, store: store}}
	missing, err = c.outputs(work, slices.Sorted(slices.Values(outputs)))
	// An error of an earlier file goes first, as if there had been one after the other.
	if first := c.store.finish(c.entries); first != nil {
		err = first
	}
	if err != nil {
		return nil, nil, err
	}
	slices.SortFunc(c.entries, func(a, b Entry) int { return comparePaths(a.Path, b.Path) })
	return c.entries, missing, nil
}

type collector struct {
	ctx     context.Context
	lim     Limits
	layer   *Layer
	store   storing
	entries []Entry
	pending int64 // names read but not yet looked at
	bytes   int64
	names   int64
}

func (c *collector) outputs(work *os.File, outputs []string) (missing []string, err error) {
	for _, o := range outputs {
		found, err := c.output(work, o)
		if err != nil {
			return nil, err
		}
		if !found {
			missing = append(missing, o)
		}
	}
	return missing, nil
}

func (c *collector) output(work *os.File, o string) (found bool, err error) {
	parent, err := openParent(work, o, inMount)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return false, nil
	}
	if err != nil {
		return false, explain(o, err)
	}
	defer parent.Close()
	st, err := lstat(parent, path.Base(o))
	if err == unix.ENOENT {
		return false, nil
	}
	if err != nil {
		return false, explain(o, err)
	}
	c.pending++
	return true, c.entry(parent, o, st, 0)
}

// entry takes what parent holds under the last name of p.
func (c *collector) entry(parent *os.File, p string, st unix.Stat_t, depth int) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	c.pending--
	if err := c.count(p); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.file(parent, p, st)
	case unix.S_IFDIR:
		return c.dir(parent, p, depth)
	case unix.S_IFLNK:
		return c.link(parent, p)
	}
	return &EntryError{Path: p, Reason: "is " + kindOf(st.Mode) + ", which no output can hold; remove it at the end of the task"}
}

// count admits one more entry, named p.
func (c *collector) count(p string) error {
	if reason := badPath(p); reason != "" {
		return &EntryError{Path: p, Reason: reason}
	}
	if int64(len(c.entries))+c.pending+1 > c.lim.MaxEntries {
		return &LimitError{Path: p, Limit: "entries", Max: c.lim.MaxEntries}
	}
	return c.name(p, p)
}

func (c *collector) name(p, s string) error {
	if c.names += int64(len(s)); c.names > maxNames {
		return &LimitError{Path: p, Limit: "bytes of names", Max: maxNames}
	}
	return nil
}

func (c *collector) link(parent *os.File, p string) error {
	to, err := readlink(parent, path.Base(p))
	if err != nil {
		return explain(p, err)
	}
	if !utf8.ValidString(to) {
		return &EntryError{Path: p, Reason: "is a symbolic link to a name that is not UTF-8; rename it"}
	}
	if err := c.name(p, to); err != nil {
		return err
	}
	c.entries = append(c.entries, Entry{Path: p, Kind: 'l', Target: to})
	return nil
}

func (c *collector) file(parent *os.File, p string, st unix.Stat_t) error {
	if f := c.own(p, st); f != nil {
		return c.content(&content{f: f, path: p, st: st, take: c.layer.Take, taken: true})
	}
	// The status that led here may be old: without O_NONBLOCK a FIFO put there
	// since would block.
	f, err := openBeneath(parent, path.Base(p), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, inMount)
	if err != nil {
		return explain(p, err)
	}
	if st, err = fstat(f); err != nil {
		f.Close()
		return explain(p, err)
	}
	return c.content(&content{f: f, path: p, st: st, take: c.store.store})
}

// own opens the file that the work directory shows at p with the status st in the layer, if it is all there; else it is nil.
func (c *collector) own(p string, st unix.Stat_t) *os.File {
	if c.layer == nil || st.Nlink != 1 {
		return nil
	}
	f, err := openBeneath(c.layer.Dir, p, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, inMount)
	if err != nil {
		return nil
	}
	is, err := fstat(f)
	if err != nil || is.Mode != st.Mode || is.Size != st.Size || is.Mtim != st.Mtim || is.Nlink != 1 || hasAttributes(f) {
		f.Close()
		return nil
	}
	return f
}

// hasAttributes reports whether a file has extended attributes, by which an overlay says that its content is elsewhere.
func hasAttributes(f *os.File) bool {
	defer runtime.KeepAlive(f)
	n, err := unix.Flistxattr(int(f.Fd()), nil)
	return n > 0 || err != nil && err != unix.EOPNOTSUPP
}

// content has what is in a file stored, which is closed then.
func (c *collector) content(x *content) (err error) {
	defer func() {
		if err != nil {
			x.f.Close()
		}
	}()
	if x.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &EntryError{Path: x.path, Reason: "became " + kindOf(x.st.Mode) + " meanwhile; let nothing else change the work directory"}
	}
	if x.st.Size > c.lim.MaxBytes-c.bytes {
		return &LimitError{Path: x.path, Limit: "bytes", Max: c.lim.MaxBytes}
	}
	if c.store.failed.Load() {
		return errFailed
	}
	c.bytes += x.st.Size
	x.entry = len(c.entries)
	c.entries = append(c.entries, Entry{Path: x.path, Kind: 'f', Mode: x.st.Mode & 0o777, Size: x.st.Size})
	c.store.add(x)
	return nil
}

func (c *collector) dir(parent *os.File, p string, depth int) error {
	d, err := openBeneath(parent, path.Base(p), unix.O_RDONLY|unix.O_DIRECTORY, inMount)
	if err != nil {
		return explain(p, err)
	}
	defer d.Close()
	st, err := fstat(d)
	if err != nil {
		return explain(p, err)
	}
	c.entries = append(c.entries, Entry{Path: p, Kind: 'd', Mode: st.Mode & 0o777})
	names, err := c.list(d, p)
	if err != nil {
		return err
	}
	if len(names) > 0 && depth >= c.lim.MaxDepth {
		return &LimitError{Path: p, Limit: "levels of directories", Max: int64(c.lim.MaxDepth)}
	}
	for _, n := range names {
		st, err := lstat(d, n)
		if err != nil {
			return explain(p+"/"+n, err)
		}
		if err := c.entry(d, p+"/"+n, st, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// list reads and sorts the names in d, as many as there may be.
func (c *collector) list(d *os.File, p string) ([]string, error) {
	var names []string
	for {
		batch, err := d.Readdirnames(dirBatch)
		names = append(names, batch...)
		c.pending += int64(len(batch))
		for _, n := range batch {
			if err := c.name(p, n); err != nil {
				return nil, err
			}
		}
		if int64(len(c.entries))+c.pending > c.lim.MaxEntries {
			return nil, &LimitError{Path: p, Limit: "entries", Max: c.lim.MaxEntries}
		}
		if err == io.EOF {
			slices.Sort(names)
			return names, nil
		}
		if err != nil {
			return nil, explain(p, err)
		}
		if err := c.ctx.Err(); err != nil {
			return nil, err
		}
	}
}
