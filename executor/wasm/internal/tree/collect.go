package tree

import (
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// Entry is a file, directory or link that a declared output is or holds.
type Entry struct {
	// Path is relative to the work directory.
	Path string
	Mode fs.FileMode
	// Number is the file of Scratch that holds a file's content, of Size bytes. Where it is 0, that is Content.
	Number  int
	Content []byte
	Size    int64
	// Target is where a link points.
	Target string
}

// EntryError says that something declared is neither file, directory nor link, or cannot be read.
type EntryError struct {
	Path   string
	Reason string
}

// Error implements error.
func (e *EntryError) Error() string { return e.Path + " " + e.Reason }

// Outputs calls each with all that declared outputs are and hold, in order of their paths, and
// returns those that are not there.
func (f *FS) Outputs(declared []string, each func(Entry) error) (missing []string, err error) {
	for _, o := range slices.Sorted(slices.Values(declared)) {
		n := f.build
		for p := range strings.SplitSeq(o, "/") {
			if n != nil && n.isDir() {
				n, _ = f.child(n, p)
			} else {
				n = nil
			}
		}
		if n == nil {
			missing = append(missing, o)
			continue
		}
		if err := f.output(o, n, each); err != nil {
			return nil, err
		}
	}
	return missing, nil
}

func (f *FS) output(p string, n *inode, each func(Entry) error) error {
	e := Entry{Path: p, Mode: n.mode}
	switch {
	case len(p) > maxPath:
		return &EntryError{p[:80] + "…", "has too long a path; name it shorter"}
	case n.isDir():
		if err := each(e); err != nil {
			return err
		}
		names, en := f.names(n)
		if en != 0 {
			return &EntryError{p, "cannot be listed: " + en.Error()}
		}
		for _, name := range names {
			c, en := f.child(n, name)
			if en != 0 {
				return &EntryError{path.Join(p, name), "cannot be looked at: " + en.Error()}
			}
			if err := f.output(path.Join(p, name), c, each); err != nil {
				return err
			}
		}
		return nil
	case n.mode.Type() == fs.ModeSymlink:
		e.Target = n.target
	case n.mode.IsRegular():
		if en := f.copyUp(n, false); en != 0 {
			return &EntryError{p, "cannot be read: " + en.Error()}
		}
		if n.opens == 0 {
			n.content.rest()
		}
		e.Number, e.Content, e.Size = n.content.number, n.content.small, n.size
	default:
		return &EntryError{p, "is neither a file nor a directory nor a link; make it one, or leave it out"}
	}
	return each(e)
}

// Undeclared calls each with what the task made, changed or removed in its work directory
// beyond its outputs, in order: a directory ends in "/", and is named if it is new or holds
// nothing; what was removed is followed by " (deleted)".
func (f *FS) Undeclared(declared []string, each func(string)) {
	outputs, above := map[string]bool{}, map[string]bool{}
	for _, o := range declared {
		outputs[o] = true
		for d := path.Dir(o); d != "."; d = path.Dir(d) {
			above[d] = true
		}
	}
	var walk func(p string, d *inode)
	walk = func(p string, d *inode) {
		for _, name := range slices.Sorted(maps.Keys(d.children)) {
			at, c := path.Join(p, name), d.children[name]
			switch {
			case outputs[at] || len(at) > maxPath:
			case c == nil:
				if _, err := d.from.Lstat(path.Join(d.at, name)); err == nil && !above[at] {
					each(at + " (deleted)")
				}
			case c.isDir():
				if c.own && !above[at] {
					each(at + "/")
				}
				walk(at, c)
			case c.own:
				each(at)
			}
		}
	}
	walk("", f.build)
}
