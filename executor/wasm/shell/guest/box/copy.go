package box

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// copier copies as cp, mv and install do.
type copier struct {
	c *tool.Call
	recursive, force, update, noClobber, verbose,
	mode, times, // what of a file's metadata is kept
	link, symlink, // instead of a copy
	parents, noTarget, replace bool
	links  map[[2]uint64]string // where files of several names were copied to; nil if each becomes one of its own
	follow byte                 // which symbolic links are followed: all, those given, none: L, H, P
	status int
	buf    []byte // for content, made with the first file: one for each would keep the garbage collector busy
}

func cp(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "aRrdpfnuvlsLHPTt:i",
		Long: "archive=a recursive=R force=f no-clobber=n update=u verbose=v link=l symbolic-link=s dereference=L no-dereference=P " +
			"no-target-directory=T target-directory:=t preserve:: no-preserve: parents interactive=i remove-destination reflink:: sparse:"})
	if !ok {
		return status
	}
	if f.Has("i") && !f.Has("f", "n") {
		return c.Usage(1, "the option -i is not available in the wasm shell: nobody is there to answer")
	}
	if how, _ := f.Get("reflink"); f.Has("reflink") && how != "auto" && how != "never" {
		return c.Usage(1, "clones of files are not available in the wasm shell: --reflink=auto copies")
	}
	k := copier{c: c, replace: f.Has("remove-destination"), recursive: f.Has("a", "R", "r"), force: f.Has("f"), update: f.Has("u"), noClobber: f.Last("n", "f") == "n",
		verbose: f.Has("v"), mode: f.Has("a", "p"), times: f.Has("a", "p"), link: f.Has("l"), symlink: f.Has("s"), parents: f.Has("parents"),
		noTarget: f.Has("T"), follow: 'L'}
	if k.recursive {
		k.follow = 'P'
	}
	for _, x := range f {
		switch x.Name {
		case "L", "H", "P":
			k.follow = x.Name[0]
		case "d", "a":
			k.follow = 'P'
			k.keepLinks(true)
		case "preserve", "no-preserve":
			if x.Value == "" {
				x.Value = "mode,ownership,timestamps"
			}
			for what := range strings.SplitSeq(x.Value, ",") {
				on := x.Name == "preserve"
				switch what {
				case "mode":
					k.mode = on
				case "timestamps":
					k.times = on
				case "all":
					k.mode, k.times = on, on
					k.keepLinks(on)
				case "links":
					k.keepLinks(on)
				case "ownership", "xattr", "context":
					// There is one owner, and nothing else of these.
				default:
					return c.Usage(1, "invalid argument '%s' for '--%s'", what, x.Name)
				}
			}
		}
	}
	target, hasTarget := f.Get("t")
	return k.into(names, target, hasTarget, k.copy)
}

func (k *copier) keepLinks(on bool) {
	k.links = nil
	if on {
		k.links = map[[2]uint64]string{}
	}
}

// linked makes dst a link to the copy of another name of the same file, if there is one.
func (k *copier) linked(dst string, from fs.FileInfo, exists bool) bool {
	id := identity(from)
	if k.links == nil || id.links < 2 {
		return false
	}
	key := [2]uint64{id.dev, id.ino}
	first, again := k.links[key]
	if !again {
		k.links[key] = dst
		return false
	}
	if exists {
		os.Remove(k.c.Path(dst))
	}
	if err := os.Link(k.c.Path(first), k.c.Path(dst)); err != nil {
		k.failf("cannot create hard link '%s' to '%s': %s", dst, first, tool.Text(err))
	}
	return true
}

// into calls do for each source with its destination, as cp, mv, ln and install have it.
func (k *copier) into(names []string, target string, hasTarget bool, do func(src, dst string)) int {
	c := k.c
	switch {
	case len(names) == 0:
		return c.Usage(1, "missing file operand")
	case hasTarget:
		if fi, err := c.Stat(target); err != nil {
			return c.Fail("target directory '%s': %s", target, tool.Text(err))
		} else if !fi.IsDir() {
			return c.Fail("target directory '%s': Not a directory", target)
		}
	case len(names) == 1:
		return c.Usage(1, "missing destination file operand after '%s'", names[0])
	default:
		target = names[len(names)-1]
		names = names[:len(names)-1]
		fi, err := c.Stat(target)
		isDir := err == nil && fi.IsDir()
		if k.noTarget && len(names) > 1 {
			return c.Usage(1, "extra operand '%s'", target)
		}
		if k.parents && !isDir {
			return c.Fail("with --parents, the destination must be a directory")
		}
		if len(names) == 1 && (k.noTarget || !isDir) {
			if strings.HasSuffix(target, "/") && err != nil && !k.recursive {
				return c.Fail("cannot create regular file '%s': Not a directory", target)
			}
			do(names[0], target)
			return k.status
		}
		if !isDir {
			if err == nil {
				err = syscall.ENOTDIR
			}
			return c.Fail("target '%s': %s", target, tool.Text(err))
		}
	}
	made := map[string]fs.FileInfo{}
	for _, n := range names {
		name := path.Base(path.Clean(n))
		if k.parents {
			name = path.Clean(n)
			if err := k.makeParents(n, target); err != nil {
				k.failf("cannot make directory for '%s': %s", n, tool.Text(err))
				continue
			}
		}
		if name == ".." || name == "/" {
			name = "."
		}
		dst := path.Join(target, name)
		if fi, err := c.Lstat(n); err == nil && !fi.IsDir() {
			switch first := made[dst]; {
			case first == nil:
				made[dst] = fi
			case k.follow != 0 && tool.SameFile(first, fi): // a copy of the same
				c.Errorf("warning: source file '%s' specified more than once", n)
				continue
			default:
				k.failf("will not overwrite just-created '%s' with '%s'", dst, n)
				continue
			}
		}
		do(n, dst)
	}
	return k.status
}

func (k *copier) makeParents(name, target string) error {
	at := target
	for _, part := range strings.Split(path.Dir(path.Clean(name)), "/") {
		at = path.Join(at, part)
		if err := k.c.Mkdir(at, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func (k *copier) failf(format string, a ...any) { k.status = k.c.Fail(format, a...) }

// copy copies src to be dst.
func (k *copier) copy(src, dst string) { k.copyFile(src, dst, true) }

func (k *copier) copyFile(src, dst string, given bool) {
	c := k.c
	stat := c.Lstat
	if k.follow == 'L' || k.follow == 'H' && given || given && strings.HasSuffix(src, "/") {
		stat = c.Stat
	}
	from, err := stat(src)
	if err != nil {
		k.failf("cannot stat '%s': %s", src, tool.Text(err))
		return
	}
	if from.IsDir() && !k.recursive {
		k.failf("-r not specified; omitting directory '%s'", src)
		return
	}
	to, err := c.Lstat(dst)
	links := k.link || k.symlink
	if err == nil && to.Mode()&fs.ModeSymlink != 0 && from.Mode()&fs.ModeSymlink == 0 && !links {
		if t, err := c.Stat(dst); err == nil {
			to = t
		} else if !from.IsDir() && !k.replace {
			k.failf("not writing through dangling symlink '%s'", dst)
			return
		}
	}
	exists := err == nil
	if exists {
		switch {
		case k.noClobber, k.link && tool.SameFile(from, to):
			return
		case tool.SameFile(from, to), leadsTo(c, src, from, to):
			k.failf("'%s' and '%s' are the same file", src, dst)
			return
		case k.update && !from.ModTime().After(to.ModTime()) && !from.IsDir():
			return
		case from.IsDir() && !to.IsDir():
			k.failf("cannot overwrite non-directory '%s' with directory '%s'", dst, src)
			return
		case !from.IsDir() && to.IsDir():
			k.failf("cannot overwrite directory '%s' with non-directory '%s'", dst, src)
			return
		}
	}
	// What keeps links does not write to the other names of what was there.
	if exists && !from.IsDir() && !links && (k.replace || k.links != nil && to.Mode().IsRegular() && identity(to).links > 1) {
		if err := os.Remove(c.Path(dst)); err != nil {
			k.failf("cannot remove '%s': %s", dst, tool.Text(err))
			return
		}
		exists = false
	}
	switch {
	case from.IsDir():
		k.copyDir(src, dst, from, exists)
	case k.link || k.symlink:
		k.makeLink(src, dst, exists)
	case from.Mode()&fs.ModeSymlink != 0:
		k.copyLink(src, dst, exists)
	case k.linked(dst, from, exists):
	default:
		k.copyData(src, dst, from, exists)
	}
}

// leadsTo tells whether a symbolic link, which is about to take the place of a file, leads to it.
func leadsTo(c *tool.Call, link string, from, to fs.FileInfo) bool {
	if from.Mode()&fs.ModeSymlink == 0 {
		return false
	}
	fi, err := c.Stat(link)
	return err == nil && tool.SameFile(fi, to)
}

// samePlace tells whether two names are one entry of one directory, so that whoever removes
// the second removes the first.
func samePlace(c *tool.Call, a, b string) bool {
	at, err := place(c, a)
	if err != nil {
		return false
	}
	to, err := place(c, b)
	return err == nil && at == to
}

// place is the path of an entry through no links, though it may be one.
func place(c *tool.Call, name string) (string, error) {
	name = path.Clean(c.Path(name))
	dir, _, err := resolve(path.Dir(name), false)
	return path.Join(dir, path.Base(name)), err
}

// isPlace tells whether the content of src is at dst, where links lead from src.
func isPlace(c *tool.Call, src, dst string) bool {
	real, _, err := resolve(c.Path(src), false)
	return err == nil && samePlace(c, real, dst)
}

func (k *copier) said(src, dst string) {
	if k.verbose {
		fmt.Fprintf(k.c.Out, "'%s' -> '%s'\n", src, dst)
	}
}

func (k *copier) copyDir(src, dst string, from fs.FileInfo, exists bool) {
	c := k.c
	if inside(c.Path(src), c.Path(dst)) {
		k.failf("cannot copy a directory, '%s', into itself, '%s'", src, dst)
		return
	}
	perm := from.Mode().Perm()
	if !exists {
		// Writable until it is filled.
		if err := c.Mkdir(dst, perm|0o700); err != nil {
			k.failf("cannot create directory '%s': %s", dst, tool.Text(err))
			return
		}
		k.said(src, dst)
	}
	entries, err := os.ReadDir(c.Path(src))
	if err != nil {
		k.failf("cannot access '%s': %s", src, tool.Text(err))
	}
	for _, e := range entries {
		k.copyFile(path.Join(src, e.Name()), dst+"/"+e.Name(), false)
	}
	if !k.mode {
		perm &^= c.Proc.Umask(-1)
	}
	if !exists || k.mode {
		tool.Chmod(c.Path(dst), perm)
	}
	k.keepTimes(dst, from)
}

// inside tells whether dst is src or below it, once links are resolved.
func inside(src, dst string) bool {
	src, _, err := resolve(src, false)
	if err != nil {
		return false
	}
	dst, _, err = resolve(dst, true)
	return err == nil && (dst == src || strings.HasPrefix(dst, strings.TrimSuffix(src, "/")+"/"))
}

func (k *copier) makeLink(src, dst string, exists bool) {
	c := k.c
	if k.symlink && !path.IsAbs(src) {
		here, e1 := c.Stat(".")
		there, e2 := c.Stat(dir(dst))
		if e1 != nil || e2 != nil || !tool.SameFile(here, there) {
			k.failf("%s: can make relative symbolic links only in current directory", dst)
			return
		}
	}
	if exists && (k.force || k.replace) {
		os.Remove(c.Path(dst))
	}
	var err error
	if k.link {
		err = os.Link(c.Path(src), c.Path(dst))
	} else {
		err = os.Symlink(src, c.Path(dst))
	}
	if err != nil {
		k.failf("cannot create link '%s' to '%s': %s", dst, src, tool.Text(err))
		return
	}
	k.said(src, dst)
}

func (k *copier) copyLink(src, dst string, exists bool) {
	c := k.c
	to, err := os.Readlink(c.Path(src))
	if err == nil {
		if exists {
			os.Remove(c.Path(dst))
		}
		err = os.Symlink(to, c.Path(dst))
	}
	if err != nil {
		k.failf("cannot create symbolic link '%s': %s", dst, tool.Text(err))
		return
	}
	k.said(src, dst)
}

func (k *copier) copyData(src, dst string, from fs.FileInfo, exists bool) {
	c := k.c
	r, err := c.Open(src)
	if err != nil {
		k.failf("cannot open '%s' for reading: %s", src, tool.Text(err))
		return
	}
	defer r.Close()
	flag := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	open := func() (tool.File, error) {
		return tool.OpenFile(c.Dir, dst, flag, from.Mode().Perm(), c.Proc, nil, c.Stdout, c.Stderr)
	}
	w, err := open()
	if err != nil && exists && k.force {
		os.Remove(c.Path(dst))
		w, err = open()
	}
	if err != nil {
		k.failf("cannot create regular file '%s': %s", dst, tool.Text(err))
		return
	}
	if k.buf == nil {
		k.buf = make([]byte, 32<<10)
	}
	to := &writing{w: w}
	_, err = io.CopyBuffer(to, struct{ io.Reader }{r}, k.buf)
	if e := w.Close(); err == nil {
		err, to.err = e, e
	}
	switch {
	case to.err != nil:
		k.failf("error writing '%s': %s", dst, tool.Text(to.err))
		return
	case err != nil:
		k.failf("error reading '%s': %s", src, tool.Text(err))
		return
	}
	k.said(src, dst)
	if k.mode {
		if err := tool.Chmod(c.Path(dst), from.Mode()); err != nil {
			k.failf("preserving permissions for '%s': %s", dst, tool.Text(err))
		}
	}
	k.keepTimes(dst, from)
}

// writing keeps the error of a writer, to tell it from one of the reader.
type writing struct {
	w   io.Writer
	err error
}

func (w *writing) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	w.err = err
	return n, err
}

func (k *copier) keepTimes(dst string, from fs.FileInfo) {
	if !k.times {
		return
	}
	if err := os.Chtimes(k.c.Path(dst), from.ModTime(), from.ModTime()); err != nil {
		k.failf("preserving times for '%s': %s", dst, tool.Text(err))
	}
}

func mv(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "fnuvTt:i",
		Long: "force=f no-clobber=n update=u verbose=v no-target-directory=T target-directory:=t interactive=i"})
	if !ok {
		return status
	}
	if f.Last("i", "f", "n") == "i" {
		return c.Usage(1, "the option -i is not available in the wasm shell: nobody is there to answer")
	}
	k := copier{c: c, recursive: true, noTarget: f.Has("T")}
	noClobber, update := f.Last("n", "f") == "n", f.Has("u")
	target, hasTarget := f.Get("t")
	return k.into(names, target, hasTarget, func(src, dst string) {
		from, err := c.Lstat(src)
		if err != nil {
			k.failf("cannot stat '%s': %s", src, tool.Text(err))
			return
		}
		if to, err := c.Lstat(dst); err == nil {
			switch {
			case noClobber:
				return
			case tool.SameFile(from, to) && !from.IsDir(), leadsTo(c, src, from, to) && !to.IsDir():
				k.failf("'%s' and '%s' are the same file", src, dst)
				return
			case !from.IsDir() && to.IsDir():
				k.failf("cannot overwrite directory '%s' with non-directory", dst)
				return
			case from.IsDir() && !to.IsDir():
				k.failf("cannot overwrite non-directory '%s' with directory '%s'", dst, src)
				return
			case update && !from.ModTime().After(to.ModTime()):
				return
			}
		}
		if from.IsDir() && inside(c.Path(src), c.Path(dst)) {
			k.failf("cannot move '%s' to a subdirectory of itself, '%s'", src, dst)
			return
		}
		// Other than os.Rename, this also takes the place of an empty directory.
		full := c.Path(dst)
		if from.IsDir() {
			full = strings.TrimRight(full, "/")
		}
		err = syscall.Rename(strings.TrimRight(c.Path(src), "/"), full)
		if errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.ENOSYS) {
			// To another file system, of which a host in WebAssembly says that it cannot.
			if !k.moveByCopy(src, dst, from) {
				return
			}
			err = nil
		}
		if err != nil {
			k.failf("cannot move '%s' to '%s': %s", src, dst, tool.Text(err))
			return
		}
		if f.Has("v") {
			fmt.Fprintf(c.Out, "renamed '%s' -> '%s'\n", src, dst)
		}
	})
}

// moveByCopy copies a tree as cp -a does, in place of what there was, and then removes it.
func (k *copier) moveByCopy(src, dst string, from fs.FileInfo) bool {
	if err := os.Remove(strings.TrimRight(k.c.Path(dst), "/")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.failf("inter-device move failed: '%s' to '%s'; unable to remove target: %s", src, dst, tool.Text(err))
		return false
	}
	copies := copier{c: k.c, recursive: true, mode: true, times: true, follow: 'P'}
	copies.keepLinks(true)
	copies.copy(src, dst)
	if copies.status != 0 || !remove(k.c, strings.TrimRight(src, "/"), from, tool.Flags{{Name: "r"}}) {
		k.status = 1
		return false
	}
	return true
}

func ln(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "sfnvrTt:LP",
		Long: "symbolic=s force=f no-dereference=n verbose=v relative=r no-target-directory=T target-directory:=t logical=L physical=P"})
	if !ok {
		return status
	}
	if f.Has("L") {
		return c.Usage(1, "the option -L is not available in the wasm shell")
	}
	if f.Has("r") && !f.Has("s") {
		return c.Fail("cannot do --relative without --symbolic")
	}
	k := copier{c: c, recursive: true, noTarget: f.Has("T")}
	target, hasTarget := f.Get("t")
	if len(names) == 1 && !hasTarget {
		target, hasTarget = ".", true
	}
	if f.Has("n") && len(names) == 2 && !hasTarget {
		if fi, err := c.Lstat(names[1]); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
			k.noTarget = true
		}
	}
	return k.into(names, target, hasTarget, func(src, dst string) {
		if !f.Has("s") {
			if fi, err := c.Lstat(src); err != nil {
				k.failf("failed to access '%s': %s", src, tool.Text(err))
				return
			} else if fi.IsDir() {
				k.failf("%s: hard link not allowed for directory", src)
				return
			}
		}
		var err error
		if fi, e := c.Lstat(dst); e == nil && f.Has("f") {
			switch {
			case fi.IsDir():
				k.failf("%s: cannot overwrite directory", dst)
				return
			case !f.Has("s") && samePlace(c, src, dst), f.Has("s") && fi.Mode()&fs.ModeSymlink == 0 && isPlace(c, src, dst):
				k.failf("'%s' and '%s' are the same file", src, dst)
				return
			}
			err = os.Remove(c.Path(dst))
		}
		to := src
		switch {
		case err != nil:
		case f.Has("s"):
			if f.Has("r") {
				if to, err = relative(c.Path(src), c.Path(dst)); err != nil {
					break
				}
			}
			err = os.Symlink(to, c.Path(dst))
		default:
			err = os.Link(c.Path(src), c.Path(dst))
		}
		if err != nil {
			kind := "hard"
			if f.Has("s") {
				kind = "symbolic"
			}
			if kind == "hard" {
				k.failf("failed to create hard link '%s' => '%s': %s", dst, src, tool.Text(err))
			} else {
				k.failf("failed to create %s link '%s': %s", kind, dst, tool.Text(err))
			}
			return
		}
		if f.Has("v") {
			arrow := "=>"
			if f.Has("s") {
				arrow = "->"
			}
			fmt.Fprintf(c.Out, "'%s' %s '%s'\n", dst, arrow, to)
		}
	})
}

// relative is the path of target as seen from where the link at name stands.
func relative(target, name string) (string, error) {
	target, _, err := resolve(target, true)
	if err != nil {
		return "", err
	}
	from, _, err := resolve(path.Dir(name), true)
	if err != nil {
		return "", err
	}
	return relativeTo(from, target), nil
}

func relativeTo(from, target string) string {
	a, b := strings.Split(strings.Trim(from, "/"), "/"), strings.Split(strings.Trim(target, "/"), "/")
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	var up []string
	for _, part := range a[i:] {
		if part != "" {
			up = append(up, "..")
		}
	}
	if p := strings.Join(append(up, b[i:]...), "/"); p != "" {
		return p
	}
	return "."
}
