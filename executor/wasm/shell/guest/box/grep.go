package box

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/regex"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// grepper is one call of grep.
type grepper struct {
	c                                                                       *tool.Call
	match                                                                   func(string) bool
	spans                                                                   func(string) [][]int
	invert, count, quiet, number, only, list, listNot, names, noErrors, nul bool
	most, before, after                                                     int
	include, exclude, excludeDir                                            []string
	recursive                                                               bool
	found, failed                                                           bool
	offset, text, skipBinary                                                bool
	label                                                                   string        // of standard input
	in                                                                      *bufio.Reader // of one file after the other
}

func egrep(ctx context.Context, c *tool.Call) int { return grepAs(ctx, c, "-E") }
func fgrep(ctx context.Context, c *tool.Call) int { return grepAs(ctx, c, "-F") }

func grepAs(ctx context.Context, c *tool.Call, flag string) int {
	c.Args = append([]string{c.Args[0], flag}, c.Args[1:]...)
	return grep(ctx, c)
}

func grep(_ context.Context, c *tool.Call) int {
	f, args, status, ok := c.Parse(tool.Options{Short: "EFGPe:f:ivwxchHlLm:noqsrRA:B:C:zabyZI", Status: 2, Long: "extended-regexp=E fixed-strings=F " +
		"basic-regexp=G perl-regexp=P regexp:=e file:=f ignore-case=i invert-match=v word-regexp=w line-regexp=x count=c no-filename=h with-filename=H " +
		"files-with-matches=l files-without-match=L max-count:=m line-number=n only-matching=o quiet=q silent=q no-messages=s recursive=r " +
		"dereference-recursive=R after-context:=A before-context:=B context:=C null-data=z text=a binary-files: label: line-buffered byte-offset=b include: exclude: exclude-dir: color:: colour:: null=Z"})
	if !ok {
		return status
	}
	g := &grepper{c: c, invert: f.Has("v"), count: f.Has("c"), quiet: f.Has("q"), number: f.Has("n"), only: f.Has("o"), list: f.Has("l"), listNot: f.Has("L"),
		noErrors: f.Has("s"), nul: f.Has("Z"), most: -1, recursive: f.Has("r", "R"), text: f.Has("a"), offset: f.Has("b"), skipBinary: f.Has("I"), label: "(standard input)"}
	for _, x := range f {
		switch x.Name {
		case "m", "A", "B", "C":
			n, err := strconv.Atoi(x.Value)
			if err != nil || n < 0 && x.Name != "m" {
				c.Errorf("%s: invalid %s", x.Value, map[bool]string{true: "max count", false: "context length argument"}[x.Name == "m"])
				return 2
			}
			switch x.Name {
			case "m":
				g.most = n
			case "A":
				g.after = n
			case "B":
				g.before = n
			default:
				g.before, g.after = n, n
			}
		case "label":
			g.label = x.Value
		case "binary-files":
			g.text, g.skipBinary = x.Value == "text", x.Value == "without-match"
			if !g.text && !g.skipBinary && x.Value != "binary" {
				return c.Usage(2, "unknown binary-files type")
			}
		case "include":
			g.include = append(g.include, x.Value)
		case "exclude":
			g.exclude = append(g.exclude, x.Value)
		case "exclude-dir":
			g.excludeDir = append(g.excludeDir, x.Value)
		}
	}
	var patterns []string
	given := false
	for _, x := range f {
		switch x.Name {
		case "e":
			patterns, given = append(patterns, strings.Split(x.Value, "\n")...), true
		case "f":
			r, err := c.Input(x.Value)
			if err != nil {
				c.Errorf("%s: %s", x.Value, tool.Text(err))
				return 2
			}
			err = lines(r, '\n', func(s string, _ bool) bool { patterns = append(patterns, s); return true })
			r.Close()
			if err != nil {
				c.Errorf("%s: %s", x.Value, tool.Text(err))
				return 2
			}
			given = true
		}
	}
	if !given {
		if len(args) == 0 {
			fmt.Fprintf(c.Stderr, "Usage: grep [OPTION]... PATTERNS [FILE]...\nTry 'grep --help' for more information.\n")
			return 2
		}
		patterns, args = strings.Split(args[0], "\n"), args[1:]
	}
	if err := g.compile(patterns, f); err != nil {
		c.Errorf("%v", err)
		return 2
	}
	if len(args) == 0 {
		args = []string{"-"}
		if g.recursive {
			args = []string{""}
		}
	}
	g.names = f.Last("h", "H") == "H" || f.Last("h", "H") == "" && (len(args) > 1 || g.recursive)
	for _, a := range args {
		g.arg(a, end(f)[0])
		if g.quiet && g.found {
			return 0
		}
	}
	switch {
	case g.failed:
		return 2
	case g.found:
		return 0
	}
	return 1
}

func (g *grepper) compile(patterns []string, f tool.Flags) error {
	kind := f.Last("E", "F", "G", "P")
	if kind == "P" {
		return g.compilePerl(patterns, f)
	}
	o := regex.Options{Extended: kind == "E", IgnoreCase: f.Has("i", "y"), Whole: f.Has("x"), Word: f.Has("w") && !f.Has("x")}
	if kind == "F" && !o.IgnoreCase && !o.Whole && !o.Word {
		g.match = func(s string) bool {
			for _, p := range patterns {
				if strings.Contains(s, p) {
					return true
				}
			}
			return false
		}
	}
	var all []*regex.Regexp
	for _, p := range patterns {
		if kind == "F" {
			p = literal(p)
		}
		re, err := regex.Compile(p, o)
		if err != nil {
			return err
		}
		all = append(all, re)
	}
	if g.match == nil {
		g.match = func(s string) bool {
			for _, re := range all {
				if re.Match(s) {
					return true
				}
			}
			return false
		}
	}
	g.spans = func(s string) [][]int { return spans(all, s) }
	return nil
}

// compilePerl compiles an expression of Perl's, of which Go knows most, and this function \K, behind which what is shown begins. Both
// find the same of several matches that begin at one place.
func (g *grepper) compilePerl(patterns []string, f tool.Flags) error {
	if len(patterns) != 1 {
		return errString("the -P option only supports a single pattern")
	}
	p := patterns[0]
	if before, after, ok := strings.Cut(p, `\K`); ok {
		// Two expressions that are whole, since a bar would part this one elsewhere.
		for _, part := range []string{before, after} {
			if _, err := syntax.Parse(part, syntax.Perl); err != nil || strings.Contains(part, "|") && !strings.Contains(part, "(") {
				return errString(`in the wasm shell \K must stand outside of parentheses and alternatives`)
			}
		}
		p = before + "(?P<shown>" + after + ")"
	}
	if f.Has("w") {
		p = `\b(?:` + p + `)\b`
	}
	if f.Has("x") {
		p = "^(?:" + p + ")$"
	}
	if f.Has("i", "y") {
		p = "(?i)" + p
	}
	re, err := regexp.Compile(p)
	if err != nil {
		return fmt.Errorf("the wasm shell has not all Perl regular expressions: %w", err)
	}
	shown := max(0, re.SubexpIndex("shown"))
	g.match = re.MatchString
	g.spans = func(s string) (all [][]int) {
		for _, m := range re.FindAllStringSubmatchIndex(s, -1) {
			if m = m[2*shown : 2*shown+2]; m[1] > m[0] {
				all = append(all, m)
			}
		}
		return all
	}
	return nil
}

// literal is a basic expression that matches only s.
func literal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.IndexByte(`\.[]*^$`, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// spans are what grep -o shows: from the left, the longest of all patterns.
func spans(all []*regex.Regexp, s string) [][]int {
	var found [][][]int
	for _, re := range all {
		found = append(found, re.All(s, -1))
	}
	var out [][]int
	for at := 0; ; {
		var best []int
		for _, list := range found {
			for _, m := range list {
				if m[0] >= at && m[1] > m[0] && (best == nil || m[0] < best[0] || m[0] == best[0] && m[1] > best[1]) {
					best = m
				}
			}
		}
		if best == nil {
			return out
		}
		out = append(out, best)
		at = best[1]
	}
}

func (g *grepper) fail(name string, err error) {
	g.failed = true
	if !g.noErrors {
		g.c.Errorf("%s: %s", name, tool.Text(err))
	}
}

func (g *grepper) arg(name string, nl byte) {
	if name == "" && g.recursive {
		g.dir("", nl)
		return
	}
	if name != "-" {
		fi, err := g.c.Stat(name)
		if err != nil {
			g.fail(name, err)
			return
		}
		if fi.IsDir() {
			if !g.recursive {
				g.c.Errorf("%s: Is a directory", name)
				return
			}
			g.dir(name, nl)
			return
		}
	}
	g.file(name, nl)
}

func (g *grepper) dir(name string, nl byte) {
	full := g.c.Path(name)
	if name == "" {
		full = g.c.Dir // what is found there is shown without a folder
	}
	entries, err := os.ReadDir(full)
	if err != nil {
		g.fail(name, err)
		return
	}
	for _, e := range entries {
		sub := e.Name()
		if name != "" {
			sub = strings.TrimSuffix(name, "/") + "/" + sub
		}
		switch {
		case e.IsDir():
			if !anyMatch(g.excludeDir, e.Name()) {
				g.dir(sub, nl)
			}
		case e.Type()&fs.ModeSymlink != 0, len(g.include) > 0 && !anyMatch(g.include, e.Name()), anyMatch(g.exclude, e.Name()):
		default:
			g.file(sub, nl)
		}
		if g.quiet && g.found {
			return
		}
	}
}

func anyMatch(globs []string, name string) bool {
	for _, p := range globs {
		if ok, _ := path.Match(p, name); ok {
			return true
		}
	}
	return false
}

// file searches one file and writes what it finds.
func (g *grepper) file(name string, nl byte) {
	r, err := g.c.Input(name)
	if err != nil {
		g.fail(name, err)
		return
	}
	defer r.Close()
	shown := name
	if name == "-" {
		shown = g.label
	}
	if g.in == nil {
		g.in = bufio.NewReaderSize(r, 32<<10)
	} else {
		g.in.Reset(r)
	}
	head, _ := g.in.Peek(32 << 10)
	binary := !g.text && nl != 0 && bytes.IndexByte(head, 0) >= 0
	n := 0
	if !binary || !g.skipBinary {
		n, err = g.search(g.in, shown, nl, binary)
	}
	if err != nil {
		g.fail(name, err)
		return
	}
	if n > 0 != g.listNot {
		g.found = true
	}
	sep := "\n"
	if g.nul {
		sep = "\x00"
	}
	switch {
	case g.quiet:
	case g.list && n > 0, g.listNot && n == 0:
		g.c.Out.WriteString(shown + sep)
	case g.list, g.listNot:
	case g.count:
		if g.names {
			g.c.Out.WriteString(shown + map[bool]string{true: "\x00", false: ":"}[g.nul])
		}
		fmt.Fprintf(g.c.Out, "%d\n", n)
	}
}

func (g *grepper) search(r io.Reader, shown string, nl byte, binary bool) (n int, err error) {
	if g.most == 0 {
		return 0, nil
	}
	silent := g.quiet || g.list || g.listNot || g.count
	var held []string
	line, owed, last := 0, 0, 0
	at := 0
	err = lines(r, nl, func(s string, ended bool) bool {
		line++
		start := at
		at += len(s) + 1
		if g.match(s) == g.invert {
			if owed > 0 && !silent && !g.only {
				g.put(shown, '-', line, start, s, nl)
				owed, last = owed-1, line
			} else if g.before > 0 {
				if held = append(held, s); len(held) > g.before {
					held = held[1:]
				}
			}
			return true
		}
		n++
		if g.quiet || g.list || g.listNot {
			return false
		}
		if binary && !silent {
			g.c.Out.Flush()
			g.c.Errorf("%s: binary file matches", shown)
			return false
		}
		if !silent {
			if (g.before > 0 || g.after > 0) && !g.only {
				if last > 0 && line-len(held) > last+1 {
					g.c.Out.WriteString("--\n")
				}
				for i, h := range held {
					g.put(shown, '-', line-len(held)+i, 0, h, nl)
				}
				held = nil
			}
			if g.only {
				if !g.invert {
					for _, m := range g.spans(s) {
						g.put(shown, ':', line, start+m[0], s[m[0]:m[1]], nl)
					}
				}
			} else {
				g.put(shown, ':', line, start, s, nl)
			}
			owed, last = g.after, line
		}
		return n != g.most
	})
	return n, err
}

func (g *grepper) put(shown string, sep byte, line, offset int, s string, nl byte) {
	if g.names {
		g.c.Out.WriteString(shown)
		if g.nul {
			g.c.Out.WriteByte(0)
		} else {
			g.c.Out.WriteByte(sep)
		}
	}
	if g.number {
		fmt.Fprintf(g.c.Out, "%d%c", line, sep)
	}
	if g.offset {
		fmt.Fprintf(g.c.Out, "%d%c", offset, sep)
	}
	g.c.Out.WriteString(s)
	g.c.Out.WriteByte(nl)
}
