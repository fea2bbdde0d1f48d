package box

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func mkdir(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "pm:v", Long: "parents=p mode:=m verbose=v"})
	if !ok {
		return status
	}
	if len(names) == 0 {
		return c.Usage(1, "missing operand")
	}
	perm, exact := fs.FileMode(0o777), false
	if m, given := f.Get("m"); given {
		var err error
		if perm, err = tool.ParseMode(m, 0o777, true, c.Proc.Umask(-1)); err != nil {
			return c.Fail("invalid mode '%s'", m)
		}
		if tool.Special(perm) {
			return c.Fail("the mode '%s': %s", m, tool.Text(tool.ErrSpecial))
		}
		exact = true
	}
	for _, n := range names {
		made := func(dir string) {
			if f.Has("v") {
				fmt.Fprintf(c.Out, "mkdir: created directory '%s'\n", dir)
			}
		}
		var err error
		if f.Has("p") {
			err = makeAll(c, n, made)
		} else if err = c.Mkdir(n, 0o777); err == nil {
			made(n)
		}
		if err == nil && exact {
			err = tool.Chmod(c.Path(n), perm)
		}
		if err != nil {
			status = c.Fail("cannot create directory '%s': %s", n, tool.Text(err))
		}
	}
	return status
}

// makeAll is mkdir -p: what exists already is no error if it is a directory.
func makeAll(c *tool.Call, name string, made func(string)) error {
	if name == "" {
		return fs.ErrNotExist
	}
	at := ""
	if path.IsAbs(name) {
		at = "/"
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." {
			continue
		}
		if at == "" {
			at = part
		} else {
			at = strings.TrimSuffix(at, "/") + "/" + part
		}
		err := c.Mkdir(at, 0o777)
		if err == nil {
			made(at)
			continue
		}
		fi, e := c.Stat(at)
		switch {
		case e == nil && fi.IsDir():
		case e == nil && strings.HasPrefix(name[len(at):], "/"):
			return &fs.PathError{Op: "mkdir", Path: at, Err: syscall.ENOTDIR}
		default:
			return err
		}
	}
	return nil
}

func rmdir(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "pv", Long: "parents=p verbose=v ignore-fail-on-non-empty"})
	if !ok {
		return status
	}
	if len(names) == 0 {
		return c.Usage(1, "missing operand")
	}
	for _, n := range names {
		for n = strings.TrimRight(n, "/"); n != "" && n != "."; n = dir(n) {
			fi, err := c.Lstat(n)
			if err == nil && !fi.IsDir() {
				err = syscall.ENOTDIR
			}
			if err == nil {
				err = notEmpty(os.Remove(c.Path(n)))
			}
			if err != nil {
				if !f.Has("ignore-fail-on-non-empty") || !errors.Is(err, syscall.ENOTEMPTY) {
					status = c.Fail("failed to remove '%s': %s", n, tool.Text(err))
				}
				break
			}
			if f.Has("v") {
				fmt.Fprintf(c.Out, "rmdir: removing directory, '%s'\n", n)
			}
			if !f.Has("p") {
				break
			}
		}
	}
	return status
}

// notEmpty gives the error its usual name, where a system has another.
func notEmpty(err error) error {
	if errors.Is(err, fs.ErrExist) {
		return syscall.ENOTEMPTY
	}
	return err
}

func rm(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "rRfvdiI", Long: "recursive=r force=f verbose=v dir=d preserve-root no-preserve-root one-file-system interactive::"})
	if !ok {
		return status
	}
	if w, _ := f.Get("interactive"); f.Last("i", "I", "f") == "i" || f.Last("i", "I", "f") == "I" || f.Has("interactive") && w != "never" {
		return c.Usage(1, "asking is not available in the wasm shell: nobody is there to answer")
	}
	if len(names) == 0 && !f.Has("f") {
		return c.Usage(1, "missing operand")
	}
	for _, n := range names {
		if b := path.Base(strings.TrimRight(n, "/")); (b == "." || b == "..") && f.Has("r", "R") {
			status = c.Fail("refusing to remove '.' or '..' directory: skipping '%s'", n)
			continue
		}
		if path.Clean(c.Path(n)) == "/" {
			return c.Fail("it is dangerous to operate recursively on '/'")
		}
		fi, err := c.Lstat(n)
		switch {
		case err != nil && f.Has("f") && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)):
		case err != nil:
			status = c.Fail("cannot remove '%s': %s", n, tool.Text(err))
		case fi.IsDir() && !f.Has("r", "R") && !f.Has("d"):
			status = c.Fail("cannot remove '%s': Is a directory", n)
		default:
			if !remove(c, strings.TrimRight(n, "/"), fi, f) {
				status = 1
			}
		}
	}
	return status
}

// remove removes a file, or a directory with what is in it.
func remove(c *tool.Call, name string, fi fs.FileInfo, f tool.Flags) bool {
	ok, what := true, ""
	if fi.IsDir() {
		what = "directory "
		if f.Has("r", "R") {
			entries, err := os.ReadDir(c.Path(name))
			if err != nil {
				c.Errorf("cannot remove '%s': %s", name, tool.Text(err))
				return false
			}
			for _, e := range entries {
				sub := name + "/" + e.Name()
				fi, err := c.Lstat(sub)
				if err != nil {
					c.Errorf("cannot remove '%s': %s", sub, tool.Text(err))
					ok = false
					continue
				}
				ok = remove(c, sub, fi, f) && ok
			}
			if !ok {
				return false
			}
		}
	}
	if err := notEmpty(os.Remove(c.Path(name))); err != nil {
		c.Errorf("cannot remove '%s': %s", name, tool.Text(err))
		return false
	}
	if f.Has("v") {
		fmt.Fprintf(c.Out, "removed %s'%s'\n", what, name)
	}
	return ok
}

func touch(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "acmhd:t:r:", Long: "no-create=c date:=d reference:=r no-dereference=h time:"})
	if !ok {
		return status
	}
	if f.Has("time") {
		return c.Usage(1, "the option --time is not available in the wasm shell")
	}
	if len(names) == 0 {
		return c.Usage(1, "missing file operand")
	}
	now := time.Now()
	atime, mtime := now, now
	if r, given := f.Get("r"); given {
		fi, err := c.Stat(r)
		if err != nil {
			return c.Fail("failed to get attributes of '%s': %s", r, tool.Text(err))
		}
		atime, mtime = fi.ModTime(), fi.ModTime()
	}
	if s, given := f.Get("d"); given {
		t, err := parseDate(s, now, tool.Zone(c))
		if err != nil {
			return c.Fail("invalid date format '%s'", s)
		}
		atime, mtime = t, t
	}
	if s, given := f.Get("t"); given {
		t, err := parseStamp(s, now, tool.Zone(c))
		if err != nil {
			return c.Fail("invalid date format '%s'", s)
		}
		atime, mtime = t, t
	}
	// A zero time leaves what is.
	if f.Has("a") && !f.Has("m") {
		mtime = time.Time{}
	}
	if f.Has("m") && !f.Has("a") {
		atime = time.Time{}
	}
	for _, n := range names {
		if f.Has("h") {
			if fi, err := c.Lstat(n); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
				if mtime.IsZero() {
					continue
				}
				if err := tool.TouchLink(c.Path(n), mtime); err != nil {
					status = c.Fail("setting times of '%s': %s", n, tool.Text(err))
				}
				continue
			} else if errors.Is(err, fs.ErrNotExist) {
				if !f.Has("c") {
					status = c.Fail("setting times of '%s': %s", n, tool.Text(err))
				}
				continue
			}
		}
		if _, err := c.Stat(n); errors.Is(err, fs.ErrNotExist) {
			if f.Has("c") {
				continue
			}
			w, err := c.Create(n, true)
			if err != nil {
				status = c.Fail("cannot touch '%s': %s", n, tool.Text(err))
				continue
			}
			w.Close()
		}
		if fi, err := c.Stat(n); err == nil && fi.Mode()&(fs.ModeDevice|fs.ModeNamedPipe) != 0 {
			continue // the time of a device is nobody's
		}
		if err := os.Chtimes(c.Path(n), atime, mtime); err != nil {
			status = c.Fail("setting times of '%s': %s", n, tool.Text(err))
		}
	}
	return status
}

func mktemp(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "dqutp:", Long: "directory=d quiet=q dry-run=u tmpdir::=p suffix:"})
	if !ok {
		return status
	}
	template, in := "tmp.XXXXXXXXXX", ""
	if len(names) > 1 {
		return c.Usage(1, "too many templates")
	}
	if tmp := c.Getenv("TMPDIR"); tmp != "" {
		in = tmp
	} else {
		in = "/tmp"
	}
	if p, given := f.Get("p"); given && p != "" {
		in = p
	}
	if len(names) == 1 {
		if template = names[0]; !f.Has("p", "t") {
			in = ""
		}
	}
	suffix, given := f.Get("suffix")
	if !given {
		i := strings.LastIndexByte(template, 'X') + 1
		template, suffix = template[:i], template[i:]
	}
	prefix := strings.TrimRight(template, "X")
	n := len(template) - len(prefix)
	if n < 3 {
		return c.Fail("too few X's in template '%s'", names[0])
	}
	if strings.Contains(suffix, "/") {
		return c.Fail("invalid suffix '%s', contains directory separator", suffix)
	}
	kind := "file"
	if f.Has("d") {
		kind = "directory"
	}
	for try := 0; ; try++ {
		name := prefix + random(n) + suffix
		if in != "" {
			name = strings.TrimSuffix(in, "/") + "/" + name
		}
		var err error
		switch {
		case f.Has("u"):
			_, err = c.Lstat(name)
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			} else if err == nil {
				err = fs.ErrExist
			}
		case f.Has("d"):
			if err = os.Mkdir(c.Path(name), 0o700); err == nil {
				err = tool.Chmod(c.Path(name), 0o700)
			}
		default:
			var w *os.File
			if w, err = os.OpenFile(c.Path(name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err == nil {
				w.Close()
				err = tool.Chmod(c.Path(name), 0o600)
			}
		}
		if errors.Is(err, fs.ErrExist) && try < 1000 {
			continue
		}
		if err != nil {
			if !f.Has("q") {
				c.Errorf("failed to create %s via template '%s': %s", kind, template+suffix, tool.Text(err))
			}
			return 1
		}
		c.Out.WriteString(name + "\n")
		return 0
	}
}

func random(n int) string {
	const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return string(b)
}

func chmod(_ context.Context, c *tool.Call) int {
	// A mode may begin as an option does.
	args := append([]string{}, c.Args...)
	for i, a := range args[1:] {
		if len(a) > 1 && a[0] == '-' && strings.IndexByte("rwxXst", a[1]) >= 0 {
			args = append(append(args[:i+1:i+1], "--"), args[i+1:]...)
			break
		}
	}
	c.Args = args
	f, names, status, ok := c.Parse(tool.Options{Short: "Rvfc", Long: "recursive=R verbose=v silent=f quiet=f changes=c reference:"})
	if !ok {
		return status
	}
	mode := ""
	var as fs.FileInfo
	if r, given := f.Get("reference"); given {
		var err error
		if as, err = c.Stat(r); err != nil {
			return c.Fail("failed to get attributes of '%s': %s", r, tool.Text(err))
		}
	} else {
		if len(names) == 0 {
			return c.Usage(1, "missing operand")
		}
		mode, names = names[0], names[1:]
		if _, err := tool.ParseMode(mode, 0, false, 0); err != nil {
			return c.Usage(1, "invalid mode: '%s'", mode)
		}
	}
	if len(names) == 0 {
		return c.Usage(1, "missing operand after '%s'", mode)
	}
	var change func(name string, given bool)
	change = func(name string, given bool) {
		fi, err := c.Lstat(name)
		if err == nil && fi.Mode()&fs.ModeSymlink != 0 {
			if !given {
				return
			}
			fi, err = c.Stat(name)
		}
		if err != nil {
			if !f.Has("f") {
				c.Errorf("cannot access '%s': %s", name, tool.Text(err))
			}
			status = 1
			return
		}
		old := fi.Mode()
		m := old
		if as != nil {
			m = as.Mode()
		} else if m, err = tool.ParseMode(mode, old, fi.IsDir(), c.Proc.Umask(-1)); err == nil && fi.IsDir() && mode[0] >= '0' && mode[0] <= '9' && len(mode) < 5 {
			m |= old & (fs.ModeSetuid | fs.ModeSetgid)
		}
		if err := tool.Chmod(c.Path(name), m); err != nil {
			status = c.Fail("changing permissions of '%s': %s", name, tool.Text(err))
			return
		}
		switch a, b := tool.Bits(old), tool.Bits(m); {
		case a != b && f.Has("v", "c"):
			fmt.Fprintf(c.Out, "mode of '%s' changed from %04o (%s) to %04o (%s)\n", name, a, modeString(old)[1:], b, modeString(m)[1:])
		case f.Has("v"):
			fmt.Fprintf(c.Out, "mode of '%s' retained as %04o (%s)\n", name, a, modeString(old)[1:])
		}
		if fi.IsDir() && f.Has("R") {
			entries, err := os.ReadDir(c.Path(name))
			if err != nil {
				status = c.Fail("cannot read directory '%s': %s", name, tool.Text(err))
			}
			for _, e := range entries {
				change(strings.TrimSuffix(name, "/")+"/"+e.Name(), false)
			}
		}
	}
	for _, n := range names {
		change(n, true)
	}
	return status
}

// chown is for scripts that give files to root, to whom all belong.
func chown(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "RhvfcHLP", Long: "recursive=R no-dereference=h verbose=v silent=f quiet=f changes=c"})
	if !ok {
		return status
	}
	if len(names) < 2 {
		return c.Usage(1, "missing operand")
	}
	for who := range strings.FieldsFuncSeq(names[0], func(r rune) bool { return r == ':' || r == '.' }) {
		if who != "root" && who != "0" {
			return c.Fail("invalid user: '%s': all files are root's in the wasm shell", names[0])
		}
	}
	for _, n := range names[1:] {
		if _, err := c.Lstat(n); err != nil {
			if !f.Has("f") {
				c.Errorf("cannot access '%s': %s", n, tool.Text(err))
			}
			status = 1
		}
	}
	return status
}
