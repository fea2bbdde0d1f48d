package rootfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// copyChunk is how much is copied between looks at the context.
const copyChunk = 64 << 20

// Place puts entries, as Collect returned them, below work, the open root of the
// caller's tree. Each output that has entries replaces what was there, whole, so
// that files of an earlier run vanish; outputs without entries are left as they
// are. Missing parents are made with mode 0755; one that is a symbolic link is
// refused. All is written beside its place first, under names that begin with
// ".sandboxd-", and then swapped in, so that an error (no space, say) leaves the
// tree as it was, but for the times of directories. The exception: a file system
// that can neither swap nor move the old version (a directory of a lower layer of
// overlayfs) loses it before the new one is there.
//
// note, unless nil, is called before anything is made. If it has put the Placing where
// it outlasts the process, then what a killed process leaves can be dealt with: see
// [Recover]. An error of note ends the Place.
//
// open returns the content of a file entry, from offset 0; Place closes it.
// Everything, open and note included, runs on the calling goroutine, so that Place may run
// on a thread with the file system credentials of the tree's owner, as it should
// where that is another user. open then has those, too: let it return files that
// were opened before, or by another goroutine.
//
// help, unless nil, lets several goroutines write where there are many files. It is called in each of them and
// must call its argument once, with the credentials that Place was called with, and return its error, or one
// that says why it could not. open is then called by several at once. All have ended when Place returns.
//
// Content is shared where the file system can (reflinks), and copied in the
// kernel elsewhere. Nothing is synced: a machine that crashes may lose outputs.
func Place(ctx context.Context, work *os.File, outputs []string, entries []Entry, open func(Entry) (*os.File, error), note func(Placing) error, help func(work func() error) error) error {
	groups, err := plan(outputs, entries)
	if err != nil {
		return err
	}
	if err := isDir(work); err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	if len(groups) == 0 {
		return nil
	}
	p := &placer{ctx: ctx, work: work, open: open, help: help, token: tokenPrefix + rand.Text() + "-", parents: map[string]*os.File{".": work}}
	defer p.close()
	if note != nil {
		if err := note(p.placing(groups)); err != nil {
			return err
		}
	}
	for _, g := range groups {
		if err := p.stage(g); err != nil {
			return errors.Join(noSpace(err), p.undo())
		}
	}
	for _, s := range p.staged {
		if err := p.commit(s); err != nil {
			return errors.Join(noSpace(err), p.undo())
		}
	}
	for _, s := range p.staged {
		err = errors.Join(err, s.discard())
	}
	return err
}

// Placeable reports why Place could not put anything at outputs, as far as that can be told before
// there is something to put there: a parent that is a link, or a directory that this thread, with the credentials that it
// has, may not write to. Nothing is changed.
func Placeable(work *os.File, outputs []string) error {
	if err := checkOutputs(outputs); err != nil {
		return err
	}
	known := map[string]bool{}
	for _, o := range outputs {
		if dir := path.Dir(o); !known[dir] {
			known[dir] = true
			if err := placeable(work, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// placeable looks at the directory dir below work, or at the last on the way that there is.
func placeable(work *os.File, dir string) error {
	at, in := ".", work
	defer func() {
		if in != work {
			in.Close()
		}
	}()
	for name := range strings.SplitSeq(dir, "/") {
		d, err := openDir(in, name, beneath)
		if err == unix.ENOENT {
			break
		}
		if err != nil {
			return explain(path.Join(at, name), err)
		}
		if in != work {
			in.Close()
		}
		at, in = path.Join(at, name), d
	}
	// AT_EACCESS is with the ids that count for files. That of package unix works around EPERM.
	name := []byte(".\x00")
	_, _, e := unix.Syscall6(unix.SYS_FACCESSAT2, in.Fd(), uintptr(unsafe.Pointer(&name[0])), unix.W_OK|unix.X_OK, unix.AT_EACCESS, 0, 0)
	runtime.KeepAlive(in)
	switch e {
	case 0:
		return nil
	case unix.EACCES, unix.EPERM, unix.EROFS:
		return &EntryError{Path: at, Reason: "is a directory that you may not write to, and outputs would go there", Err: e}
	}
	return explain(at, e)
}

// noSpace says what to do where a disk is full.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("the work directory's file system is full, nothing was placed; free some space: %w", err)
	}
	return err
}

// plan checks the entries, which may come from an old or a strange cache, and
// sorts them into one group for each output, the output itself first.
func plan(outputs []string, entries []Entry) ([][]Entry, error) {
	if err := checkOutputs(outputs); err != nil {
		return nil, err
	}
	declared := make(map[string]bool, len(outputs))
	for _, o := range outputs {
		declared[o] = true
	}
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b Entry) int { return comparePaths(a.Path, b.Path) })
	kinds := make(map[string]byte, len(entries))
	var groups [][]Entry
	for _, e := range entries {
		if reason := badEntry(e); reason != "" {
			return nil, &EntryError{Path: e.Path, Reason: reason}
		}
		if kinds[e.Path] != 0 {
			return nil, &EntryError{Path: e.Path, Reason: "is there twice"}
		}
		kinds[e.Path] = e.Kind
		switch {
		case declared[e.Path]:
			groups = append(groups, nil)
		case kinds[path.Dir(e.Path)] != 'd':
			return nil, &EntryError{Path: e.Path, Reason: "is neither a declared output nor in a directory of one"}
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], e)
	}
	return groups, nil
}

func badEntry(e Entry) string {
	if reason := badPath(e.Path); reason != "" {
		return reason
	}
	switch {
	case e.Kind != 'f' && e.Kind != 'd' && e.Kind != 'l':
		return fmt.Sprintf("is of the unknown kind %q", e.Kind)
	case e.Kind == 'l' && (e.Target == "" || len(e.Target) > maxPath || strings.ContainsRune(e.Target, 0)):
		return "is a link to what is no path"
	case e.Size < 0:
		return "has a negative size"
	}
	return ""
}

// placer is one Place under way.
type placer struct {
	ctx    context.Context
	work   *os.File
	open   func(Entry) (*os.File, error)
	help   func(work func() error) error
	token  string
	made   []string // parents that were not there, outermost first
	staged []*staged
	// parents are the directories that hold outputs, by path. They stay open, so
	// that what was staged in one is found again whatever its path leads to by then.
	parents map[string]*os.File
}

func (p *placer) close() {
	for _, d := range p.parents {
		if d != p.work {
			d.Close()
		}
	}
}

// staged is one output beside its place, in the same directory.
type staged struct {
	path string
	dir  *os.File // that holds it; the placer's
	temp string   // the new version's name, until it is in place
	old  string   // the old version's name, once it is out of place; or empty
	done bool     // the new version is in place
}

// parent opens the directory that holds the output o, and makes it if need be.
func (p *placer) parent(o string) (*os.File, error) {
	dir := path.Dir(o)
	if d := p.parents[dir]; d != nil {
		return d, nil
	}
	d, err := p.makeParents(dir)
	if err == nil {
		p.parents[dir] = d
	}
	return d, err
}

// stage writes one output under a temporary name.
func (p *placer) stage(g []Entry) error {
	top := g[0]
	d, err := p.parent(top.Path)
	if err != nil {
		return err
	}
	s := &staged{path: top.Path, dir: d, temp: tempName(p.token, len(p.staged))}
	p.staged = append(p.staged, s)
	if err := p.write(d, s.temp, top); err != nil || top.Kind != 'd' {
		return err
	}
	root, err := openBeneath(d, s.temp, unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	if err != nil {
		return explain(top.Path, err)
	}
	defer root.Close()
	fill := &filling{placer: p, root: root, top: top.Path}
	if err := fill.run(g[1:]); err != nil {
		return err
	}
	// Last, since a mode may forbid to write.
	for _, e := range slices.Backward(g[1:]) {
		if e.Kind == 'd' {
			if err := p.setMode(root, e.Path[len(top.Path)+1:], e); err != nil {
				return err
			}
		}
	}
	return explain(top.Path, setDirMode(root, top.Mode))
}

// setDirMode sets the permissions of a directory that was just made. The setgid bit, which it has if the
// one that it was made in has, stays: it gives what is made in there later the same group.
func setDirMode(d *os.File, mode uint32) error {
	defer runtime.KeepAlive(d)
	st, err := fstat(d)
	if err != nil {
		return err
	}
	return unix.Fchmod(int(d.Fd()), st.Mode&unix.S_ISGID|mode&0o777)
}

func (p *placer) setMode(root *os.File, rel string, e Entry) error {
	d, err := openBeneath(root, rel, unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	if err != nil {
		return explain(e.Path, err)
	}
	defer d.Close()
	return explain(e.Path, setDirMode(d, e.Mode))
}

// write makes d's new entry name; a directory is left empty and with mode 0700.
func (p *placer) write(d *os.File, name string, e Entry) error {
	defer runtime.KeepAlive(d)
	if err := p.ctx.Err(); err != nil {
		return err
	}
	switch e.Kind {
	case 'd':
		return explain(e.Path, unix.Mkdirat(int(d.Fd()), name, 0o700))
	case 'l':
		return explain(e.Path, unix.Symlinkat(e.Target, int(d.Fd()), name))
	}
	src, err := p.open(e)
	if err != nil {
		return fmt.Errorf("open the content of %s: %w", display(e.Path), err)
	}
	defer src.Close()
	dst, err := createBeneath(d, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600, beneath)
	if err != nil {
		return explain(e.Path, err)
	}
	err = p.copy(dst, src, e)
	if err == nil {
		err = dst.Chmod(os.FileMode(e.Mode & 0o777))
	}
	if e := dst.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", display(e.Path), err)
	}
	return nil
}

// copy fills dst with src, which has e.Size bytes: by reference where the file
// system can, else in the kernel, else by hand.
func (p *placer) copy(dst, src *os.File, e Entry) error {
	defer runtime.KeepAlive(dst)
	defer runtime.KeepAlive(src)
	st, err := fstat(src)
	if err != nil {
		return err
	}
	if st.Size != e.Size {
		return fmt.Errorf("content has %d bytes where %d were recorded: drop it from the cache", st.Size, e.Size)
	}
	if e.Size > 0 && unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	if err := dst.Truncate(e.Size); err != nil { // so that holes need not be written
		return err
	}
	for at := int64(0); at < e.Size; {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		end := e.Size
		switch data, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA); err {
		case nil:
			at = data
			if hole, err := unix.Seek(int(src.Fd()), at, unix.SEEK_HOLE); err == nil {
				end = min(end, hole)
			}
		case unix.ENXIO: // a hole up to the end
			return nil
		}
		n, err := copyPiece(dst, src, at, min(copyChunk, end-at))
		if err != nil {
			return err
		}
		at += n
	}
	return nil
}

// copyPiece copies up to size bytes at the same offset.
func copyPiece(dst, src *os.File, at, size int64) (int64, error) {
	from, to := at, at
	n := 0
	err := again(func() (err error) {
		n, err = unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(size), 0)
		return err
	})
	switch err {
	case nil:
		if n > 0 {
			return int64(n), nil
		}
		// 0 is the end of the file, or a file system that does not tell.
	case unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EBADF, unix.EPERM:
	default:
		return 0, err
	}
	m, err := io.Copy(io.NewOffsetWriter(dst, at), io.NewSectionReader(src, at, size))
	if err == nil && m == 0 {
		err = io.ErrUnexpectedEOF
	}
	return m, err
}

// makeParents opens the directory dir, and makes what is missing on the way.
func (p *placer) makeParents(dir string) (*os.File, error) {
	at, in := "", p.work
	for name := range strings.SplitSeq(dir, "/") {
		at = dir[:len(at)+len(name)+min(len(at), 1)] // no string of its own: there may be many, and long ones
		d, err := p.enter(in, name, at)
		if in != p.work {
			in.Close()
		}
		if err != nil {
			return nil, explain(at, err)
		}
		in = d
	}
	return in, nil
}

// enter opens in's directory name, which is at path at, and makes it if need be.
func (p *placer) enter(in *os.File, name, at string) (*os.File, error) {
	defer runtime.KeepAlive(in)
	d, err := openDir(in, name, beneath)
	if err != unix.ENOENT {
		return d, err
	}
	if err := unix.Mkdirat(int(in.Fd()), name, 0o755); err != nil {
		return nil, err
	}
	p.made = append(p.made, at)
	d, err = openBeneath(in, name, unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	if err != nil {
		return nil, err
	}
	if err := setDirMode(d, 0o755); err != nil { // whatever the umask
		d.Close()
		return nil, err
	}
	return d, nil
}

// commit swaps one output in.
func (p *placer) commit(s *staged) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	var err error
	d, name := s.dir, path.Base(s.path)
	for range maxTries {
		err = rename(d, s.temp, d, name, unix.RENAME_NOREPLACE)
		if err == nil {
			s.done = true
			return nil
		}
		if err != unix.EEXIST {
			break
		}
		err = rename(d, s.temp, d, name, unix.RENAME_EXCHANGE)
		if err == nil {
			s.done, s.old = true, s.temp
			return nil
		}
		if err != unix.ENOENT {
			break
		}
	}
	if err == unix.EINVAL || err == unix.EXDEV || err == unix.ENOSYS {
		return s.replace(name)
	}
	return explain(s.path, err)
}

// replace is the swap for file systems without one: the old version is moved
// aside, or removed where it cannot be moved.
func (s *staged) replace(name string) error {
	d, old := s.dir, oldName(s.temp)
	switch err := rename(d, name, d, old, 0); err {
	case nil:
		s.old = old
	case unix.ENOENT:
	case unix.EXDEV:
		if err := RemoveTree(d, name); err != nil {
			return err
		}
	default:
		return explain(s.path, err)
	}
	if err := rename(d, s.temp, d, name, 0); err != nil {
		return explain(s.path, err)
	}
	s.done = true
	return nil
}

// undo puts everything back as it was, last change first.
func (p *placer) undo() error {
	var errs error
	for _, s := range slices.Backward(p.staged) {
		errs = errors.Join(errs, s.revert())
	}
	for _, m := range slices.Backward(p.made) {
		d, err := openParent(p.work, m, beneath)
		if err == nil {
			err = unlink(d, path.Base(m), unix.AT_REMOVEDIR)
			d.Close()
		}
		if err != nil && !isNotEmpty(err) && err != unix.ENOENT {
			errs = errors.Join(errs, fmt.Errorf("take back: %w", explain(m, err)))
		}
	}
	return errs
}

func (s *staged) revert() error {
	d, name := s.dir, path.Base(s.path)
	var err error
	switch {
	case s.done && s.old == s.temp:
		err = rename(d, s.temp, d, name, unix.RENAME_EXCHANGE)
	case s.done:
		err = rename(d, name, d, s.temp, 0)
	}
	if err == nil && s.old != "" && s.old != s.temp {
		err = rename(d, s.old, d, name, 0)
	}
	if err != nil {
		return fmt.Errorf("take back %s, whose old version is %s beside it: %w", display(s.path), s.old, err)
	}
	return RemoveTree(d, s.temp)
}

// discard removes the old version of an output that is in place.
func (s *staged) discard() error {
	if s.old == "" {
		return nil
	}
	if err := RemoveTree(s.dir, s.old); err != nil {
		return fmt.Errorf("%s is in place, but its old version stays beside it as %s: %w", display(s.path), s.old, err)
	}
	return nil
}
