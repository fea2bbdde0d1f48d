package box

import (
	"archive/tar"
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/sed"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
	"mvdan.cc/sh/v3/pattern"
)

type tarrer struct {
	c                                     *tool.Call
	f                                     tool.Flags
	dir                                   string // where names are relative to
	exclude                               []func(string) bool
	renames                               []func(string) (string, error)
	mode                                  string // of members, as for chmod; empty is that of the files
	strip                                 int
	mtime                                 time.Time
	uid, gid                              int
	uname, gname                          string
	owned                                 bool
	status                                int
	links                                 map[[2]uint64]string
	dirs                                  []*tar.Header // whose times and modes are set last
	verbose                               bool
	stripped                              bool // a leading slash was taken away, and said
	keepOld, toStdout, keepMode, absolute bool
}

const tarLong = "create=c extract=x get=x list=t append=r update=u file:=f gzip=z gunzip=z ungzip=z bzip2=j xz=J zstd verbose=v directory:=C preserve-permissions=p " +
	"same-permissions=p exclude: exclude-from:=X strip-components: to-stdout=O owner: group: numeric-owner mtime: sort: files-from:=T null no-recursion dereference=h " +
	"keep-old-files=k skip-old-files overwrite touch=m absolute-names=P format:=H no-same-owner=o no-same-permissions auto-compress=a wildcards mode: exclude-vcs transform: xform: " +
	"hard-dereference one-file-system posix use-compress-program:=I warning: force-local"

func tarTool(_ context.Context, c *tool.Call) int {
	// The first word may be options without a dash, whose values follow it in turn.
	if len(c.Args) > 1 && c.Args[1] != "" && c.Args[1][0] != '-' {
		args := []string{c.Args[0]}
		rest := c.Args[2:]
		for _, l := range c.Args[1] {
			args = append(args, "-"+string(l))
			if strings.ContainsRune("fCXTbIH", l) {
				if len(rest) == 0 {
					return c.Usage(2, "Old option '%c' requires an argument.", l)
				}
				args[len(args)-1] += rest[0]
				rest = rest[1:]
			}
		}
		c.Args = append(args, rest...)
	}
	// -C counts for the names that follow it.
	f, names, status, ok := c.Parse(tool.Options{Short: "cxtruf:zjJvC:pX:OT:hkmPaoWI:b:H:", Long: tarLong, Status: 64})
	if !ok {
		return status
	}
	for _, x := range f {
		switch x.Name {
		case "I":
			if w := strings.Fields(x.Value); len(w) == 0 || w[0] != "gzip" && w[0] != "pigz" {
				return c.Usage(2, "compression by '%s' is not available in the wasm shell", x.Value)
			}
			f = append(f, tool.Flag{Name: "z"})
		case "r", "u", "W", "J", "zstd", "b", "hard-dereference":
			return c.Usage(2, "the option for '%s' is not available in the wasm shell", x.Name)
		}
	}
	t := &tarrer{c: c, f: f, dir: c.Dir, links: map[[2]uint64]string{}, verbose: f.Has("v"), keepOld: f.Has("k"), toStdout: f.Has("O"), keepMode: !f.Has("no-same-permissions"), absolute: f.Has("P")}
	if err := t.options(); err != nil {
		return t.fatal(err)
	}
	var err error
	switch modes := strings.Trim(f.Last("c")+f.Last("x")+f.Last("t"), " "); modes {
	case "c":
		err = t.create(names)
	case "x", "t":
		err = t.read(names, modes == "x")
	case "":
		return c.Usage(2, "You must specify one of the '-Acdtrux', '--delete' or '--test-label' options")
	default:
		return c.Usage(2, "You may not specify more than one '-Acdtrux', '--delete' or  '--test-label' option")
	}
	if err != nil {
		return t.fatal(err)
	}
	if t.status != 0 {
		c.Errorf("Exiting with failure status due to previous errors")
	}
	return t.status
}

func (t *tarrer) fatal(err error) int {
	t.c.Errorf("%s", tool.Text(err))
	t.c.Errorf("Error is not recoverable: exiting now")
	return 2
}

func (t *tarrer) options() error {
	for _, x := range t.f {
		var err error
		switch x.Name {
		case "C":
			dir := tool.Abs(t.dir, x.Value)
			if fi, e := tool.Stat(dir); e != nil || !fi.IsDir() {
				if e == nil {
					e = errString("Not a directory")
				}
				return fmt.Errorf("%s: Cannot open: %s", x.Value, tool.Text(e))
			}
			t.dir = dir
		case "exclude":
			err = t.addExclude(x.Value)
		case "X":
			var r io.ReadCloser
			if r, err = t.c.Input(x.Value); err == nil {
				err = errors.Join(lines(r, '\n', func(s string, _ bool) bool {
					err = t.addExclude(s)
					return err == nil
				}), r.Close(), err)
			}
		case "exclude-vcs":
			for _, p := range []string{".git", ".gitignore", ".gitattributes", ".gitmodules", ".svn", ".hg", ".hgignore", ".hgtags", ".bzr", ".bzrignore", ".bzrtags", "CVS", ".cvsignore", "RCS", "SCCS", "_darcs"} {
				err = errors.Join(err, t.addExclude(p))
			}
		case "transform", "xform":
			var rename func(string) (string, error)
			if rename, err = sed.Replacement(x.Value); err == nil {
				t.renames = append(t.renames, rename)
			}
		case "mode":
			_, err = tool.ParseMode(x.Value, 0, false, 0)
			t.mode = x.Value
		case "strip-components":
			t.strip, err = strconv.Atoi(x.Value)
		case "mtime":
			t.mtime, err = parseDate(x.Value, time.Now(), tool.Zone(t.c))
		case "owner", "group":
			t.owned = true
			name, id, both := strings.Cut(x.Value, ":")
			n, e := strconv.Atoi(id)
			if !both {
				n, e = strconv.Atoi(name)
				if e == nil {
					name = ""
				} else {
					n, e = 0, nil
				}
			}
			err = e
			if x.Name == "owner" {
				t.uid, t.uname = n, name
			} else {
				t.gid, t.gname = n, name
			}
		case "sort":
			if x.Value != "name" && x.Value != "none" {
				err = fmt.Errorf("the sort order '%s' is not available in the wasm shell", x.Value)
			}
		case "H":
			if x.Value != "gnu" && x.Value != "ustar" && x.Value != "posix" && x.Value != "pax" {
				err = fmt.Errorf("the format '%s' is not available in the wasm shell", x.Value)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", x.Value, err)
		}
	}
	return nil
}

// addExclude takes a pattern that matches a name, or a part of it from a slash to the end.
func (t *tarrer) addExclude(p string) error {
	match, err := matcher(strings.TrimSuffix(p, "/"), pattern.EntireString)
	if err == nil {
		t.exclude = append(t.exclude, match)
	}
	return err
}

func (t *tarrer) excluded(name string) bool {
	name = strings.TrimSuffix(name, "/")
	for _, match := range t.exclude {
		for rest := name; ; {
			if match(rest) {
				return true
			}
			_, after, more := strings.Cut(rest, "/")
			if !more {
				break
			}
			rest = after
		}
	}
	return false
}

func (t *tarrer) create(names []string) (err error) {
	if list, given := t.f.Get("T"); given {
		r, err := t.c.Input(list)
		if err != nil {
			return fmt.Errorf("%s: %s", list, tool.Text(err))
		}
		end := byte('\n')
		if t.f.Has("null") {
			end = 0
		}
		err = lines(r, end, func(s string, _ bool) bool { names = append(names, s); return true })
		r.Close()
		if err != nil {
			return err
		}
	} else if len(names) == 0 {
		return errString("Cowardly refusing to create an empty archive")
	}
	var w io.Writer = t.c.Out
	file, given := t.f.Get("f")
	if given && file != "-" {
		f, e := t.c.Create(file, false)
		if e != nil {
			return fmt.Errorf("%s: Cannot open: %s", file, tool.Text(e))
		}
		b := bufio.NewWriterSize(f, 64<<10)
		defer func() {
			if e := errors.Join(b.Flush(), f.Close()); err == nil {
				err = e
			}
		}()
		w = b
	}
	if t.f.Has("j") {
		return errString("bzip2 is read, but not written, in the wasm shell")
	}
	if t.f.Has("z") || t.f.Has("a") && (strings.HasSuffix(file, ".gz") || strings.HasSuffix(file, ".tgz")) {
		z := gzip.NewWriter(w)
		z.OS = 3
		defer func() {
			if e := z.Close(); err == nil {
				err = e
			}
		}()
		w = z
	} else if t.f.Has("a") && !strings.HasSuffix(file, ".tar") {
		return fmt.Errorf("%s: only gzip is written in the wasm shell", file)
	}
	n := &counter{w: w}
	format, _ := t.f.Get("H")
	tw := &tarWriter{w: n, ustar: format == "ustar", root: "root"}
	if t.f.Has("numeric-owner") {
		tw.root = ""
	}
	// Each -C is for the names behind it.
	dirs := slices.DeleteFunc(slices.Clone(t.f), func(x tool.Flag) bool { return x.Name != "C" })
	t.dir = t.c.Dir
	for i, name := range names {
		for ; len(dirs) > 0 && dirs[0].At <= i; dirs = dirs[1:] {
			t.dir = tool.Abs(t.dir, dirs[0].Value)
		}
		t.add(tw, name, file)
	}
	if err := tw.Close(); err != nil {
		return err
	}
	_, err = w.Write(make([]byte, (record-n.n%record)%record))
	return err
}

// record is what an archive's length is a multiple of.
const record = 10240

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// add puts a file, and what is below it, into the archive.
func (t *tarrer) add(w *tarWriter, name, archive string) {
	full := tool.Abs(t.dir, name)
	get := tool.Lstat
	if t.f.Has("h") {
		get = tool.Stat
	}
	fi, err := get(full)
	if err != nil {
		t.c.Errorf("%s: Cannot stat: %s", name, tool.Text(err))
		t.status = 2
		return
	}
	if t.excluded(name) {
		return
	}
	if err := t.entry(w, name, full, fi, archive); err != nil {
		t.c.Errorf("%s: %s", name, tool.Text(err))
		t.status = 2
		return
	}
	if !fi.IsDir() || t.f.Has("no-recursion") {
		return
	}
	list, err := os.ReadDir(full)
	if err != nil {
		t.c.Errorf("%s: Cannot open: %s", name, tool.Text(err))
		t.status = 2
	}
	for _, e := range list {
		t.add(w, strings.TrimSuffix(name, "/")+"/"+e.Name(), archive)
	}
}

func (t *tarrer) entry(w *tarWriter, name, full string, fi fs.FileInfo, archive string) error {
	id := identity(fi)
	h := &tar.Header{Name: t.member(name), Mode: int64(tool.Bits(fi.Mode())), ModTime: fi.ModTime().Truncate(time.Second), Uid: id.uid, Gid: id.gid, Uname: id.owner, Gname: id.group}
	if t.f.Has("numeric-owner") {
		h.Uname, h.Gname = "", ""
	}
	if _, given := t.f.Get("owner"); given {
		h.Uid, h.Uname = t.uid, t.uname
	}
	if _, given := t.f.Get("group"); given {
		h.Gid, h.Gname = t.gid, t.gname
	}
	if t.f.Has("mtime") {
		h.ModTime = t.mtime.Truncate(time.Second)
	}
	if t.mode != "" {
		m, err := tool.ParseMode(t.mode, fi.Mode(), fi.IsDir(), t.c.Proc.Umask(-1))
		if err != nil {
			return err
		}
		h.Mode = int64(tool.Bits(m))
	}
	var err error
	if h.Name, err = t.rename(h.Name); err != nil {
		return err
	}
	key := [2]uint64{id.dev, id.ino}
	first, again := t.links[key]
	switch m := fi.Mode(); {
	case fi.IsDir():
		h.Typeflag = tar.TypeDir
		h.Name = strings.TrimSuffix(h.Name, "/") + "/"
	case m&fs.ModeSymlink != 0:
		to, err := os.Readlink(full)
		if err != nil {
			return err
		}
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = t.rename(to); err != nil {
			return err
		}
	case again && id.links > 1:
		h.Typeflag, h.Linkname = tar.TypeLink, first
	case m.IsRegular():
		if archive != "" && t.isArchive(full, archive) {
			t.c.Errorf("%s: file is the archive; not dumped", name)
			return nil
		}
		h.Typeflag, h.Size = tar.TypeReg, fi.Size()
		t.links[key] = h.Name
	default:
		return errString("only files, folders and links are archived in the wasm shell")
	}
	if t.verbose {
		t.said(name, h)
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	r, err := os.Open(full)
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.CopyN(w, r, h.Size)
	if errors.Is(err, io.EOF) {
		// It shrank; the archive must have what its header says.
		t.c.Errorf("%s: File shrank by %d bytes; padding with zeros", name, h.Size-n)
		t.status = 1
		_, err = io.CopyN(w, zeroReader{}, h.Size-n)
	}
	return err
}

// rename is what a name becomes by the options --transform.
func (t *tarrer) rename(name string) (string, error) {
	for _, f := range t.renames {
		var err error
		if name, err = f(name); err != nil {
			return name, err
		}
	}
	return name, nil
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (t *tarrer) isArchive(full, archive string) bool {
	a, errA := tool.Stat(full)
	b, errB := t.c.Stat(archive)
	return errA == nil && errB == nil && tool.SameFile(a, b) && a.Sys() != nil
}

func (t *tarrer) said(name string, h *tar.Header) {
	out := io.Writer(t.c.Out)
	if f, given := t.f.Get("f"); t.f.Has("c") && (!given || f == "-") || t.toStdout {
		out = t.c.Stderr
	}
	if h.Typeflag == tar.TypeDir {
		name = strings.TrimSuffix(name, "/") + "/"
	}
	fmt.Fprintln(out, name)
}

// member is the name of a file in the archive: never absolute, and never above.
func (t *tarrer) member(name string) string {
	if t.absolute {
		return name
	}
	rel := name
	for i, part := 0, ""; i < len(name); i += len(part) + 1 {
		if part, _, _ = strings.Cut(name[i:], "/"); part == ".." {
			rel = name[min(len(name), i+len("../")):]
		}
	}
	rel = strings.TrimLeft(rel, "/")
	if rel != name && !t.stripped {
		t.stripped = true
		t.c.Errorf("Removing leading `%s' from member names", strings.TrimSuffix(name, rel))
	}
	if rel == "" {
		return "./"
	}
	return rel
}

func (t *tarrer) read(names []string, extract bool) error {
	file, given := t.f.Get("f")
	if !given {
		file = "-"
	}
	r, err := t.c.Input(file)
	if err != nil {
		return fmt.Errorf("%s: Cannot open: %s", file, tool.Text(err))
	}
	defer r.Close()
	in, err := decompressed(bufio.NewReaderSize(r, 64<<10))
	if err != nil {
		return err
	}
	tr := tar.NewReader(in)
	found := make([]bool, len(names))
	match, err := t.patterns(names)
	if err != nil {
		return err
	}
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			if errors.Is(err, tar.ErrHeader) {
				err = errString("This does not look like a tar archive")
			}
			return err
		}
		if len(names) > 0 && !wanted(h.Name, match, found) || t.excluded(h.Name) {
			continue
		}
		if !extract {
			t.show(h)
			continue
		}
		err = t.renamed(h)
		if err == nil {
			err = t.extract(tr, h)
		}
		if err != nil {
			t.c.Errorf("%s: %s", h.Name, tool.Text(err))
			t.status = 2
		}
	}
	for i, n := range names {
		if !found[i] {
			t.c.Errorf("%s: Not found in archive", n)
			t.status = 2
		}
	}
	for _, h := range slices.Backward(t.dirs) {
		if err := t.finish(t.target(h), h); err != nil {
			t.c.Errorf("%s: %s", h.Name, tool.Text(err))
			t.status = 2
		}
	}
	return nil
}

// renamed gives a member its new name.
func (t *tarrer) renamed(h *tar.Header) (err error) {
	if h.Name, err = t.rename(h.Name); err == nil && h.Linkname != "" {
		h.Linkname, err = t.rename(h.Linkname)
	}
	return err
}

// decompressed looks at the first bytes rather than at the options, as GNU's tar does.
func decompressed(r *bufio.Reader) (io.Reader, error) {
	magic, _ := r.Peek(6)
	switch {
	case strings.HasPrefix(string(magic), "\x1f\x8b"):
		return gzip.NewReader(r)
	case strings.HasPrefix(string(magic), "BZh"):
		return bzip2.NewReader(r), nil
	case strings.HasPrefix(string(magic), "\xfd7zXZ"), strings.HasPrefix(string(magic), "\x28\xb5\x2f\xfd"):
		return nil, errString("xz and zstd are not available in the wasm shell")
	case len(magic) == 0:
		return nil, errString("This does not look like a tar archive")
	}
	return r, nil
}

// patterns are functions that know the members of names, or what lies above them.
func (t *tarrer) patterns(names []string) (all []func(string) bool, err error) {
	for _, n := range names {
		n = strings.TrimSuffix(n, "/")
		match := func(s string) bool { return s == n }
		if t.f.Has("wildcards") {
			if match, err = matcher(n, pattern.EntireString); err != nil {
				return nil, err
			}
		}
		all = append(all, match)
	}
	return all, nil
}

func wanted(name string, match []func(string) bool, found []bool) bool {
	name = strings.TrimSuffix(name, "/")
	ok := false
	for i, m := range match {
		is := m(name)
		for at := 0; !is && at < len(name); at++ {
			is = name[at] == '/' && m(name[:at])
		}
		if is {
			found[i], ok = true, true
		}
	}
	return ok
}

func (t *tarrer) show(h *tar.Header) {
	if !t.verbose {
		fmt.Fprintln(t.c.Out, h.Name)
		return
	}
	owner, group := h.Uname, h.Gname
	if owner == "" || t.f.Has("numeric-owner") {
		owner = strconv.Itoa(h.Uid)
	}
	if group == "" || t.f.Has("numeric-owner") {
		group = strconv.Itoa(h.Gid)
	}
	mode := tool.FromBits(uint32(h.Mode))
	kind := h.FileInfo().Mode().Type()
	link := ""
	switch h.Typeflag {
	case tar.TypeSymlink:
		link = " -> " + h.Linkname
	case tar.TypeLink:
		link = " link to " + h.Linkname
	}
	m := modeString(mode | kind)
	if h.Typeflag == tar.TypeLink {
		m = "h" + m[1:]
	}
	who := owner + "/" + group
	size := strconv.FormatInt(h.Size, 10)
	fmt.Fprintf(t.c.Out, "%s %s %s %s %s%s\n", m, who, strings.Repeat(" ", max(0, 19-1-len(who)-len(size)-1))+size,
		tool.Strftime("%Y-%m-%d %H:%M", h.ModTime.In(tool.Zone(t.c))), h.Name, link)
}

// target is where a member goes: below dir, less the stripped components.
func (t *tarrer) target(h *tar.Header) string {
	name := h.Name
	for range t.strip {
		_, rest, more := strings.Cut(strings.TrimLeft(name, "/"), "/")
		if !more {
			return ""
		}
		name = rest
	}
	if !t.absolute {
		if rel := strings.TrimLeft(name, "/"); rel != name {
			if !t.stripped {
				t.stripped = true
				t.c.Errorf("Removing leading `/' from member names")
			}
			name = rel
		}
	}
	if name == "" {
		return ""
	}
	return tool.Abs(t.dir, name)
}

func (t *tarrer) extract(r io.Reader, h *tar.Header) error {
	if slices.Contains(strings.Split(h.Name, "/"), "..") && !t.absolute {
		return errString("Member name contains '..'")
	}
	to := strings.TrimRight(t.target(h), "/")
	if to == "" {
		return nil
	}
	if t.toStdout {
		if h.Typeflag == tar.TypeReg {
			if t.verbose {
				t.said(h.Name, h)
			}
			_, err := io.Copy(t.c.Out, r)
			return err
		}
		return nil
	}
	if t.verbose {
		t.said(h.Name, h)
	}
	// A link that an earlier member made must not lead this one elsewhere.
	if err := t.parents(path.Dir(to)); err != nil {
		return err
	}
	fi, err := os.Lstat(to)
	exists := err == nil
	if h.Typeflag == tar.TypeDir {
		if exists && !fi.IsDir() {
			return errString("Cannot mkdir: File exists")
		}
		if !exists {
			if err := os.Mkdir(to, 0o755); err != nil {
				return err
			}
		}
		t.dirs = append(t.dirs, h)
		return nil
	}
	if exists {
		if t.f.Has("skip-old-files") {
			return nil
		}
		if t.keepOld {
			return errString("Cannot open: File exists")
		}
		if err := os.Remove(to); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, r)
		if err = errors.Join(err, w.Close()); err != nil {
			return err
		}
		return t.finish(to, h)
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, to)
	case tar.TypeLink:
		if slices.Contains(strings.Split(h.Linkname, "/"), "..") && !t.absolute {
			return errString("Link name contains '..'")
		}
		return os.Link(t.target(&tar.Header{Name: h.Linkname}), to)
	}
	return fmt.Errorf("a member of the type '%c' is not available in the wasm shell", h.Typeflag)
}

// parents makes the folders down to dir, none of which may be reached through a link that
// was not there before.
func (t *tarrer) parents(dir string) error {
	at := path.Clean(t.dir)
	rel, below := strings.CutPrefix(path.Clean(dir), strings.TrimSuffix(at, "/"))
	if !below {
		return os.MkdirAll(dir, 0o755)
	}
	for part := range strings.SplitSeq(strings.Trim(rel, "/"), "/") {
		if part == "" {
			continue
		}
		at = path.Join(at, part)
		fi, err := os.Lstat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if err := os.Mkdir(at, 0o755); err != nil {
				return err
			}
			if err := tool.Chmod(at, 0o777&^t.c.Proc.Umask(-1)); err != nil {
				return err
			}
		case err != nil:
			return err
		case fi.Mode()&fs.ModeSymlink != 0 && !t.absolute:
			return errString("Cannot open: a folder of its name is a symbolic link")
		}
	}
	return nil
}

// finish sets mode and time.
func (t *tarrer) finish(to string, h *tar.Header) error {
	if to == "" {
		return nil
	}
	to = strings.TrimRight(to, "/")
	mode := tool.FromBits(uint32(h.Mode))
	if !t.keepMode {
		mode = mode.Perm() &^ t.c.Proc.Umask(-1)
	}
	if err := tool.Chmod(to, mode.Perm()); err != nil {
		return err
	}
	if !t.f.Has("m") {
		if err := os.Chtimes(to, h.ModTime, h.ModTime); err != nil {
			return err
		}
	}
	if tool.Special(mode) {
		return fmt.Errorf("%w: --no-same-permissions extracts without them", tool.ErrSpecial)
	}
	return nil
}
