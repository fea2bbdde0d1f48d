package box

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/regex"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
	"mvdan.cc/sh/v3/pattern"
)

// visit is one file that find looks at.
type visit struct {
	path, start string
	depth       int
	fi          fs.FileInfo
	prune       bool
}

// test is one part of find's expression.
type test func(v *visit) bool

type finder struct {
	c                  *tool.Call
	ctx                context.Context
	words              []string
	depth              int
	action             bool // the expression has one, so that -print is not implied
	minDepth, maxDepth int
	deepFirst          bool
	follow             byte // P, H or L
	status             int
	batches            []*batch
	quit               bool
	extended           bool // regular expressions that follow are
	now                time.Time
}

// batch is -exec … +.
type batch struct {
	args, names []string
	size        int
}

func find(ctx context.Context, c *tool.Call) int {
	f := &finder{c: c, ctx: ctx, maxDepth: -1, follow: 'P', now: time.Now()}
	args := c.Args[1:]
	for len(args) > 0 && (args[0] == "-P" || args[0] == "-H" || args[0] == "-L") {
		f.follow = args[0][1]
		args = args[1:]
	}
	var starts []string
	for len(args) > 0 && (args[0] == "" || args[0][0] != '-' && args[0] != "(" && args[0] != "!") {
		starts = append(starts, args[0])
		args = args[1:]
	}
	if len(starts) == 0 {
		starts = []string{"."}
	}
	f.words = args
	var expr test
	if len(args) > 0 {
		var err error
		if expr, err = f.or(); err == nil && len(f.words) > 0 {
			err = errorf("paths must precede expression: `%s'", f.words[0])
			if f.words[0] == ")" {
				err = errorf("you have too many ')'")
			}
		}
		if err != nil {
			return c.Fail("%v", err)
		}
	}
	for _, s := range starts {
		fi, err := f.stat(s, true)
		if err != nil {
			f.status = c.Fail("'%s': %s", s, tool.Text(err))
			continue
		}
		f.walk(&visit{path: s, start: s, fi: fi}, expr, nil)
	}
	for _, b := range f.batches {
		f.run(b)
	}
	return f.status
}

func (f *finder) stat(name string, start bool) (fs.FileInfo, error) {
	if f.follow == 'L' || f.follow == 'H' && start {
		if fi, err := f.c.Stat(name); err == nil {
			return fi, nil
		}
	}
	return f.c.Lstat(name)
}

func (f *finder) walk(v *visit, expr test, above []fs.FileInfo) {
	look := func() {
		if v.depth < f.minDepth || f.quit {
			return
		}
		if (expr == nil || expr(v)) && !f.action && !f.quit {
			f.c.Out.WriteString(v.path + "\n")
		}
	}
	if !f.deepFirst {
		look()
	}
	if v.fi.IsDir() && !f.quit && !(v.prune && !f.deepFirst) && (f.maxDepth < 0 || v.depth < f.maxDepth) {
		if f.follow == 'L' && slices.ContainsFunc(above, func(fi fs.FileInfo) bool { return tool.SameFile(fi, v.fi) }) {
			f.status = f.c.Fail("File system loop detected; '%s' is part of the same file system loop as one above it.", v.path)
			return
		}
		f.below(v, expr, append(above, v.fi))
	}
	if f.deepFirst {
		look()
	}
}

func (f *finder) below(v *visit, expr test, above []fs.FileInfo) {
	entries, err := os.ReadDir(f.c.Path(v.path))
	if err != nil {
		f.status = f.c.Fail("'%s': %s", v.path, tool.Text(err))
		return
	}
	for _, e := range entries {
		if f.quit {
			return
		}
		sub := strings.TrimSuffix(v.path, "/") + "/" + e.Name()
		fi, err := f.stat(sub, false)
		if err != nil {
			f.status = f.c.Fail("'%s': %s", sub, tool.Text(err))
			continue
		}
		f.walk(&visit{path: sub, start: v.start, depth: v.depth + 1, fi: fi}, expr, above)
	}
}

// run starts the command of a batch.
func (f *finder) run(b *batch) {
	if len(b.names) == 0 {
		return
	}
	if f.c.Child(f.ctx, slices.Concat(b.args, b.names)) != 0 {
		f.status = 1
	}
	b.names, b.size = nil, 0
}

func (f *finder) is(words ...string) bool {
	if len(f.words) > 0 && slices.Contains(words, f.words[0]) {
		f.words = f.words[1:]
		return true
	}
	return false
}

func (f *finder) or() (test, error) {
	if f.depth++; f.depth > 500 {
		return nil, errorf("expression too deep")
	}
	defer func() { f.depth-- }()
	a, err := f.and()
	for err == nil {
		switch {
		case f.is("-o", "-or"):
			var b test
			if b, err = f.and(); err == nil {
				x := a
				a = func(v *visit) bool { return x(v) || b(v) }
			}
		case f.is(","):
			var b test
			if b, err = f.and(); err == nil {
				x := a
				a = func(v *visit) bool { x(v); return b(v) }
			}
		default:
			return a, nil
		}
	}
	return nil, err
}

func (f *finder) and() (test, error) {
	a, err := f.primary()
	for err == nil && len(f.words) > 0 {
		f.is("-a", "-and")
		if len(f.words) == 0 {
			return nil, errorf("expected an expression after '-a'")
		}
		switch f.words[0] {
		case "-o", "-or", ",", ")":
			return a, nil
		}
		var b test
		if b, err = f.primary(); err == nil {
			x := a
			a = func(v *visit) bool { return x(v) && b(v) }
		}
	}
	return a, err
}

func (f *finder) arg(name string) (string, error) {
	if len(f.words) == 0 {
		return "", errorf("missing argument to `%s'", name)
	}
	a := f.words[0]
	f.words = f.words[1:]
	return a, nil
}

func (f *finder) primary() (test, error) {
	if len(f.words) == 0 {
		return nil, errorf("expected an expression")
	}
	name := f.words[0]
	f.words = f.words[1:]
	switch name {
	case "(":
		if f.is(")") {
			return nil, errorf("invalid expression; empty parentheses are not allowed.")
		}
		t, err := f.or()
		if err == nil && !f.is(")") {
			err = errorf("invalid expression; I was expecting to find a ')' somewhere but did not see one.")
		}
		return t, err
	case "!", "-not":
		t, err := f.primary()
		return func(v *visit) bool { return !t(v) }, err
	}
	if t := f.plain(name); t != nil {
		return t, nil
	}
	switch name {
	case "-exec", "-ok", "-execdir":
		return f.exec(name)
	}
	return f.withArgument(name)
}

// plain are the parts without an argument.
func (f *finder) plain(name string) test {
	yes := func(*visit) bool { return true }
	switch name {
	case "-print":
		f.action = true
		return func(v *visit) bool { f.c.Out.WriteString(v.path + "\n"); return true }
	case "-print0":
		f.action = true
		return func(v *visit) bool { f.c.Out.WriteString(v.path + "\x00"); return true }
	case "-prune":
		return func(v *visit) bool { v.prune = true; return true }
	case "-quit":
		return func(*visit) bool { f.quit = true; return true }
	case "-true":
		return yes
	case "-false":
		return func(*visit) bool { return false }
	case "-depth", "-d":
		f.deepFirst = true
		return yes
	case "-follow":
		f.follow = 'L'
		return yes
	case "-xdev", "-mount", "-noleaf", "-ignore_readdir_race":
		return yes // there is one file system
	case "-delete":
		f.action, f.deepFirst = true, true
		return f.delete
	case "-empty":
		return f.empty
	case "-executable":
		return func(v *visit) bool { return v.fi.Mode()&0o111 != 0 }
	case "-readable", "-writable":
		return yes // who runs this is root
	case "-ls":
		f.action = true
		return f.ls
	}
	return nil
}

func (f *finder) ls(v *visit) bool {
	id := identity(v.fi)
	link := ""
	if v.fi.Mode()&fs.ModeSymlink != 0 {
		to, _ := os.Readlink(f.c.Path(v.path))
		link = " -> " + to
	}
	fmt.Fprintf(f.c.Out, "%9d %6d %s %3d %-8s %-8s %8d %s %s%s\n", id.ino, blocks(v.fi)/2, modeString(v.fi.Mode()), id.links, id.owner, id.group,
		v.fi.Size(), listTime(f.c, v.fi.ModTime()), v.path, link)
	return true
}

func (f *finder) delete(v *visit) bool {
	if v.path == "." || v.path == "./" {
		return true
	}
	if err := notEmpty(os.Remove(f.c.Path(v.path))); err != nil {
		f.status = f.c.Fail("cannot delete '%s': %s", v.path, tool.Text(err))
		return false
	}
	return true
}

func (f *finder) empty(v *visit) bool {
	if !v.fi.IsDir() {
		return v.fi.Mode().IsRegular() && v.fi.Size() == 0
	}
	d, err := os.ReadDir(f.c.Path(v.path))
	return err == nil && len(d) == 0
}

// maxArgs bounds the arguments of one command, as ARG_MAX does.
const maxArgs = 128 << 10

func (f *finder) exec(name string) (test, error) {
	f.action = true
	if name == "-ok" {
		return nil, errorf("the action %s is not available in the wasm shell", name)
	}
	inDir := name == "-execdir"
	for i, w := range f.words {
		switch {
		case w == ";":
			args := f.words[:i]
			f.words = f.words[i+1:]
			if len(args) == 0 {
				return nil, errorf("missing argument to `-exec'")
			}
			return func(v *visit) bool {
				file, dir := v.path, ""
				if inDir {
					dir, file = path.Split(strings.TrimRight(v.path, "/"))
					if file = "./" + file; file == "./" {
						file = "/"
					}
				}
				call := make([]string, len(args))
				for j, a := range args {
					call[j] = strings.ReplaceAll(a, "{}", file)
				}
				child := f.c.Command(call, f.c.Raw())
				if dir != "" {
					child.Dir = f.c.Path(dir)
				}
				return f.c.Exec(f.ctx, child) == 0
			}, nil
		case w == "+" && i > 0 && f.words[i-1] == "{}" && inDir:
			return nil, errorf("the action -execdir with + is not available in the wasm shell")
		case w == "+" && i > 0 && f.words[i-1] == "{}":
			b := &batch{args: f.words[:i-1]}
			f.words = f.words[i+1:]
			if len(b.args) == 0 {
				return nil, errorf("missing argument to `-exec'")
			}
			f.batches = append(f.batches, b)
			return func(v *visit) bool {
				b.names = append(b.names, v.path)
				if b.size += len(v.path) + 1; b.size > maxArgs {
					f.run(b)
				}
				return true
			}, nil
		}
	}
	return nil, errorf("missing argument to `-exec'")
}

// withArgument are the parts with one argument.
func (f *finder) withArgument(name string) (test, error) {
	known := []string{"-name", "-iname", "-path", "-wholename", "-ipath", "-regex", "-iregex", "-type", "-xtype", "-maxdepth", "-mindepth", "-newer", "-anewer",
		"-cnewer", "-newermt", "-size", "-perm", "-mtime", "-mmin", "-links", "-inum", "-samefile", "-lname", "-user", "-group", "-uid", "-gid", "-printf", "-regextype"}
	if !slices.Contains(known, name) {
		if strings.HasPrefix(name, "-") {
			return nil, errorf("unknown predicate `%s'", name)
		}
		return nil, errorf("paths must precede expression: `%s'", name)
	}
	a, err := f.arg(name)
	if err != nil {
		return nil, err
	}
	switch name {
	case "-name", "-iname":
		match, err := glob(a, name == "-iname")
		return func(v *visit) bool { return match(path.Base(v.path)) }, err
	case "-path", "-wholename", "-ipath":
		match, err := glob(a, name == "-ipath")
		return func(v *visit) bool { return match(v.path) }, err
	case "-lname":
		match, err := glob(a, false)
		return func(v *visit) bool {
			to, e := os.Readlink(f.c.Path(v.path))
			return e == nil && match(to)
		}, err
	case "-regex", "-iregex":
		re, err := regex.Compile(a, regex.Options{Extended: f.extended, IgnoreCase: name == "-iregex", Whole: true})
		return func(v *visit) bool { return re.Match(v.path) }, err
	case "-regextype":
		basic := map[string]bool{"emacs": true, "findutils-default": true, "posix-basic": true, "ed": true, "sed": true, "grep": true}[a]
		f.extended = map[string]bool{"posix-extended": true, "egrep": true, "posix-egrep": true}[a]
		if !basic && !f.extended {
			return nil, errorf("the regular expression type '%s' is not available in the wasm shell", a)
		}
		return func(*visit) bool { return true }, nil
	case "-type", "-xtype":
		return f.ofType(name, a)
	case "-maxdepth", "-mindepth":
		n, err := strconv.Atoi(a)
		if err != nil || n < 0 {
			return nil, errorf("Expected a positive decimal integer argument to %s, but got '%s'", name, a)
		}
		if name == "-maxdepth" {
			f.maxDepth = n
		} else {
			f.minDepth = n
		}
		return func(*visit) bool { return true }, nil
	case "-newer":
		fi, err := f.c.Stat(a)
		if err != nil {
			return nil, errorf("'%s': %s", a, tool.Text(err))
		}
		return func(v *visit) bool { return v.fi.ModTime().After(fi.ModTime()) }, nil
	case "-newermt":
		t, err := parseDate(a, f.now, tool.Zone(f.c))
		if err != nil {
			return nil, errorf("I cannot figure out how to interpret '%s' as a date or time", a)
		}
		return func(v *visit) bool { return v.fi.ModTime().After(t) }, nil
	case "-samefile":
		fi, err := f.c.Stat(a)
		if err != nil {
			return nil, errorf("'%s': %s", a, tool.Text(err))
		}
		return func(v *visit) bool { return tool.SameFile(fi, v.fi) }, nil
	case "-perm":
		return permTest(a)
	case "-size":
		return sizeTest(a)
	case "-printf":
		f.action = true
		return f.printf(a)
	case "-user", "-group", "-uid", "-gid":
		return func(v *visit) bool {
			id := identity(v.fi)
			switch name {
			case "-user":
				return id.owner == a
			case "-group":
				return id.group == a
			case "-uid":
				return strconv.Itoa(id.uid) == a
			}
			return strconv.Itoa(id.gid) == a
		}, nil
	case "-mtime", "-mmin", "-links", "-inum":
		unit := map[string]time.Duration{"-mtime": 24 * time.Hour, "-mmin": time.Minute}[name]
		is, err := numberTest(name, a)
		return func(v *visit) bool {
			switch name {
			case "-links":
				return is(int64(identity(v.fi).links))
			case "-inum":
				return is(int64(identity(v.fi).ino))
			}
			return is(int64(f.now.Sub(v.fi.ModTime()) / unit))
		}, err
	}
	return nil, errorf("the predicate %s is not available in the wasm shell", name)
}

// glob compiles a pattern of the shell in which * matches slashes and leading dots too.
func glob(p string, fold bool) (func(string) bool, error) {
	mode := pattern.EntireString
	if fold {
		mode |= pattern.NoGlobCase
	}
	match, err := matcher(p, mode)
	if err != nil {
		// As a shell has it, a pattern that is none matches itself.
		return func(s string) bool { return s == p }, nil
	}
	return match, nil
}

func (f *finder) ofType(name, letters string) (test, error) {
	for l := range strings.SplitSeq(letters, ",") {
		if len(l) != 1 || strings.IndexByte("fdlbcps", l[0]) < 0 {
			return nil, errorf("Unknown argument to %s: %s", name, letters)
		}
	}
	return func(v *visit) bool {
		fi := v.fi
		if name == "-xtype" {
			if t, err := f.c.Stat(v.path); err == nil {
				fi = t
			}
		}
		l := strings.Replace(modeString(fi.Mode())[:1], "-", "f", 1)
		return strings.Contains(letters, l)
	}, nil
}

// numberTest reads N, +N or -N.
func numberTest(name, s string) (func(int64) bool, error) {
	n, err := strconv.ParseInt(strings.TrimLeft(s, "+-"), 10, 64)
	if err != nil {
		return nil, errorf("invalid argument `%s' to `%s'", s, name)
	}
	switch s[0] {
	case '+':
		return func(v int64) bool { return v > n }, nil
	case '-':
		return func(v int64) bool { return v < n }, nil
	}
	return func(v int64) bool { return v == n }, nil
}

func sizeTest(s string) (test, error) {
	unit := int64(512)
	digits := s
	if s != "" {
		if u := map[byte]int64{'b': 512, 'c': 1, 'w': 2, 'k': 1 << 10, 'M': 1 << 20, 'G': 1 << 30}[s[len(s)-1]]; u > 0 {
			unit, digits = u, s[:len(s)-1]
		}
	}
	if strings.TrimLeft(digits, "+-") == "" {
		return nil, errorf("invalid -size argument '%s'", s)
	}
	is, err := numberTest("-size", digits)
	return func(v *visit) bool { return is((v.fi.Size() + unit - 1) / unit) }, err
}

func permTest(s string) (test, error) {
	mode := strings.TrimLeft(s, "-/")
	m, err := tool.ParseMode(mode, 0, false, 0)
	if err != nil || len(s)-len(mode) > 1 {
		return nil, errorf("invalid mode '%s'", s)
	}
	want := tool.Bits(m)
	switch s[0] {
	case '-':
		return func(v *visit) bool { return tool.Bits(v.fi.Mode())&want == want }, nil
	case '/':
		return func(v *visit) bool { return want == 0 || tool.Bits(v.fi.Mode())&want != 0 }, nil
	}
	return func(v *visit) bool { return tool.Bits(v.fi.Mode()) == want }, nil
}

func (f *finder) printf(format string) (test, error) {
	if i := strings.IndexByte(format, '%'); i == len(format)-1 && i >= 0 {
		return nil, errorf("error: %% at end of format string")
	}
	text, _ := tool.Unescape(format, tool.FormatEscapes)
	for i := 0; i+1 < len(text); i++ {
		if text[i] != '%' {
			continue
		}
		if i++; strings.IndexByte("%pPfhsmMyldniUGugTtHk", text[i]) < 0 {
			return nil, errorf("the format %%%c of -printf is not available in the wasm shell", text[i])
		}
		if text[i] == 'T' && (i+1 == len(text) || strings.IndexByte("@YmdHMS+", text[i+1]) < 0) {
			return nil, errorf("this format %%T of -printf is not available in the wasm shell")
		}
	}
	return func(v *visit) bool {
		for i := 0; i < len(text); i++ {
			if text[i] != '%' || i+1 == len(text) {
				f.c.Out.WriteByte(text[i])
				continue
			}
			i++
			if text[i] == 'T' {
				i++
				f.c.Out.WriteString(f.timeField(v, text[i]))
				continue
			}
			f.c.Out.WriteString(f.field(v, text[i]))
		}
		return true
	}, nil
}

func (f *finder) timeField(v *visit, l byte) string {
	t := v.fi.ModTime().In(tool.Zone(f.c))
	switch l {
	case '@':
		return fmt.Sprintf("%d.%09d0", t.Unix(), t.Nanosecond())
	case '+':
		return tool.Strftime("%Y-%m-%d+%H:%M:%S.%N0", t)
	case 'S':
		return tool.Strftime("%S.%N0", t)
	}
	return tool.Strftime("%"+string(rune(l)), t)
}

func (f *finder) field(v *visit, l byte) string {
	id := identity(v.fi)
	switch l {
	case '%':
		return "%"
	case 'p':
		return v.path
	case 'P':
		return strings.TrimPrefix(strings.TrimPrefix(v.path, v.start), "/")
	case 'H':
		return v.start
	case 'f':
		if v.path == "/" {
			return "/"
		}
		return path.Base(v.path)
	case 'h':
		if i := strings.LastIndexByte(v.path, '/'); i >= 0 {
			return v.path[:i]
		}
		return "."
	case 's':
		return strconv.FormatInt(v.fi.Size(), 10)
	case 'm':
		return strconv.FormatUint(uint64(tool.Bits(v.fi.Mode())), 8)
	case 'M':
		return modeString(v.fi.Mode())
	case 'y':
		return strings.Replace(modeString(v.fi.Mode())[:1], "-", "f", 1)
	case 'l':
		to, _ := os.Readlink(f.c.Path(v.path))
		return to
	case 'd':
		return strconv.Itoa(v.depth)
	case 'n':
		return strconv.Itoa(id.links)
	case 'i':
		return strconv.FormatUint(id.ino, 10)
	case 'k':
		return strconv.FormatInt(blocks(v.fi)/2, 10)
	case 'u':
		return id.owner
	case 'g':
		return id.group
	case 'U':
		return strconv.Itoa(id.uid)
	case 'G':
		return strconv.Itoa(id.gid)
	}
	return tool.Strftime("%a %b %e %H:%M:%S.%N0 %Y", v.fi.ModTime().In(tool.Zone(f.c)))
}
