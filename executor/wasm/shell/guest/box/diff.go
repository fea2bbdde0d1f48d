package box

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

type differ struct {
	c                              *tool.Call
	unified                        int // lines of context; -1 is the old form
	brief, recursive, absent, same bool
	fold, blanks, allBlanks, text  bool
	labels                         []string
	options                        string // as they are shown between two files of a folder
	exclude                        []string
	functions                      bool // are shown with the hunks of the unified form
	status                         int
}

func diff(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "uU:qrNsibwBax:cyeTpdt", Status: 2, Long: "unified::=u brief=q recursive=r new-file=N report-identical-files=s " +
		"ignore-case=i ignore-space-change=b ignore-all-space=w ignore-blank-lines=B text=a label: exclude:=x strip-trailing-cr color:: normal show-c-function=p minimal=d speed-large-files"})
	if !ok {
		return status
	}
	if f.Has("c", "y", "e", "T", "t", "B", "strip-trailing-cr") {
		return c.Usage(2, "only the normal and the unified form (-u) are available in the wasm shell, and neither -B, -T, -t nor --strip-trailing-cr")
	}
	if f.Has("p") && !f.Has("u", "U") {
		return c.Usage(2, "the option -p is for the unified form (-u) in the wasm shell")
	}
	d := &differ{c: c, unified: -1, brief: f.Has("q"), recursive: f.Has("r"), absent: f.Has("N"), same: f.Has("s"), fold: f.Has("i"), text: f.Has("a"), functions: f.Has("p"), blanks: f.Has("b"), allBlanks: f.Has("w")}
	for _, x := range f {
		switch x.Name {
		case "u", "U":
			n := 3
			if x.Value != "" || x.Name == "U" {
				var err error
				if n, err = strconv.Atoi(x.Value); err != nil || n < 0 {
					return c.Usage(2, "invalid context length '%s'", x.Value)
				}
			}
			d.unified = max(d.unified, n)
		case "label":
			d.labels = append(d.labels, x.Value)
		case "x":
			d.exclude = append(d.exclude, x.Value)
		}
	}
	left := names
	for _, a := range c.Args[1:] {
		if len(left) > 0 && a == left[0] {
			left = left[1:]
		} else {
			d.options += " " + a
		}
	}
	if len(names) < 2 {
		last := "diff"
		if len(names) == 1 {
			last = names[0]
		}
		return c.Usage(2, "missing operand after '%s'", last)
	}
	if len(names) > 2 {
		return c.Usage(2, "extra operand '%s'", names[2])
	}
	d.pair(names[0], names[1])
	return d.status
}

func (d *differ) trouble(name string, err error) {
	d.c.Errorf("%s: %s", name, tool.Text(err))
	d.status = 2
}

func (d *differ) stat(name string) (fs.FileInfo, error) {
	if name == "-" {
		return nil, nil
	}
	return d.c.Stat(name)
}

// pair compares what was named.
func (d *differ) pair(a, b string) {
	fa, errA := d.stat(a)
	fb, errB := d.stat(b)
	if errA != nil && !d.absent {
		d.trouble(a, errA)
	}
	if errB != nil && !d.absent {
		d.trouble(b, errB)
	}
	if d.status == 2 {
		return
	}
	dirA, dirB := fa != nil && errA == nil && fa.IsDir(), fb != nil && errB == nil && fb.IsDir()
	switch {
	case dirA && dirB:
		d.dirs(a, b)
		return
	case dirA:
		a = strings.TrimSuffix(a, "/") + "/" + path.Base(b)
	case dirB:
		b = strings.TrimSuffix(b, "/") + "/" + path.Base(a)
	}
	d.files(a, b, "")
}

func (d *differ) dirs(a, b string) {
	names := map[string]int{}
	for i, dir := range []string{a, b} {
		list, err := os.ReadDir(d.c.Path(dir))
		if err != nil {
			d.trouble(dir, err)
			return
		}
		for _, e := range list {
			if !anyMatch(d.exclude, e.Name()) {
				names[e.Name()] |= i + 1
			}
		}
	}
	var sorted []string
	for n := range names {
		sorted = append(sorted, n)
	}
	slices.Sort(sorted)
	for _, n := range sorted {
		na, nb := strings.TrimSuffix(a, "/")+"/"+n, strings.TrimSuffix(b, "/")+"/"+n
		if names[n] != 3 && !d.absent {
			where := a
			if names[n] == 2 {
				where = b
			}
			fmt.Fprintf(d.c.Out, "Only in %s: %s\n", strings.TrimSuffix(where, "/"), n)
			d.status = max(d.status, 1)
			continue
		}
		d.entry(na, nb)
	}
}

// entry compares what has one name in both folders.
func (d *differ) entry(a, b string) {
	fa, errA := d.c.Stat(a)
	fb, errB := d.c.Stat(b)
	dirA, dirB := errA == nil && fa.IsDir(), errB == nil && fb.IsDir()
	switch {
	case dirA && dirB && d.recursive:
		d.dirs(a, b)
	case dirA && dirB:
		fmt.Fprintf(d.c.Out, "Common subdirectories: %s and %s\n", a, b)
	case (dirA || dirB) && errA == nil && errB == nil:
		fmt.Fprintf(d.c.Out, "File %s is a %s while file %s is a %s\n", a, typeName(fa), b, typeName(fb))
		d.status = max(d.status, 1)
	case dirA || dirB:
		d.oneDir(a, b, dirA)
	default:
		d.files(a, b, "diff"+d.options+" "+a+" "+b+"\n")
	}
}

// oneDir compares a folder with none, for -N.
func (d *differ) oneDir(a, b string, first bool) {
	dir := b
	if first {
		dir = a
	}
	list, err := os.ReadDir(d.c.Path(dir))
	if err != nil {
		d.trouble(dir, err)
		return
	}
	for _, e := range list {
		d.entry(a+"/"+e.Name(), b+"/"+e.Name())
	}
}

func (d *differ) read(name string) ([]string, error) {
	if _, err := d.stat(name); err != nil && d.absent {
		return nil, nil
	}
	r, err := d.c.Input(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return slices.Collect(strings.Lines(string(b))), nil
}

func (d *differ) key(s string) string {
	switch {
	case d.allBlanks:
		s = strings.Map(func(r rune) rune {
			if r == ' ' || r >= '\t' && r <= '\r' {
				return -1
			}
			return r
		}, s)
	case d.blanks:
		s = strings.Join(strings.Fields(" "+s), " ")
		// A blank at the beginning is one wherever there are some.
	}
	if d.fold {
		s = strings.ToLower(s)
	}
	return s
}

func (d *differ) files(a, b, header string) {
	la, err := d.read(a)
	if err != nil {
		d.trouble(a, err)
		return
	}
	lb, err := d.read(b)
	if err != nil {
		d.trouble(b, err)
		return
	}
	equal := slices.Equal(la, lb)
	binary := !equal && !d.text && (hasNUL(la) || hasNUL(lb))
	var edits []edit
	if !equal && !binary {
		ka, kb := d.keys(la), d.keys(lb)
		edits = difference(ka, kb)
		equal = len(edits) == 0
	}
	if equal {
		if d.same {
			fmt.Fprintf(d.c.Out, "Files %s and %s are identical\n", a, b)
		}
		return
	}
	d.status = max(d.status, 1)
	if d.brief {
		fmt.Fprintf(d.c.Out, "Files %s and %s differ\n", a, b)
		return
	}
	if binary {
		fmt.Fprintf(d.c.Out, "Binary files %s and %s differ\n", a, b)
		return
	}
	d.c.Out.WriteString(header)
	if d.unified < 0 {
		d.normal(la, lb, edits)
		return
	}
	d.title("---", 0, a)
	d.title("+++", 1, b)
	d.unify(la, lb, edits)
}

func (d *differ) keys(lines []string) []string {
	if !d.fold && !d.blanks && !d.allBlanks {
		return lines
	}
	keys := make([]string, len(lines))
	for i, l := range lines {
		keys[i] = d.key(l)
	}
	return keys
}

func hasNUL(lines []string) bool {
	return slices.ContainsFunc(lines, func(s string) bool { return strings.IndexByte(s, 0) >= 0 })
}

func (d *differ) title(mark string, i int, name string) {
	if i < len(d.labels) {
		fmt.Fprintf(d.c.Out, "%s %s\n", mark, d.labels[i])
		return
	}
	when := "1970-01-01 00:00:00.000000000 +0000"
	if fi, err := d.stat(name); err == nil && fi != nil {
		when = tool.Strftime("%Y-%m-%d %H:%M:%S.%N %z", fi.ModTime().In(tool.Zone(d.c)))
	}
	fmt.Fprintf(d.c.Out, "%s %s\t%s\n", mark, name, when)
}

func (d *differ) line(mark, s string) {
	d.c.Out.WriteString(mark + s)
	if !strings.HasSuffix(s, "\n") {
		d.c.Out.WriteString("\n\\ No newline at end of file\n")
	}
}

// span is a range of lines as the normal form has it.
func span(from, to int) string {
	if to-from > 1 {
		return fmt.Sprintf("%d,%d", from+1, to)
	}
	return strconv.Itoa(to)
}

func (d *differ) normal(a, b []string, edits []edit) {
	for _, e := range edits {
		switch {
		case e.a0 == e.a1:
			fmt.Fprintf(d.c.Out, "%da%s\n", e.a0, span(e.b0, e.b1))
		case e.b0 == e.b1:
			fmt.Fprintf(d.c.Out, "%sd%d\n", span(e.a0, e.a1), e.b0)
		default:
			fmt.Fprintf(d.c.Out, "%sc%s\n", span(e.a0, e.a1), span(e.b0, e.b1))
		}
		for _, s := range a[e.a0:e.a1] {
			d.line("< ", s)
		}
		if e.a0 < e.a1 && e.b0 < e.b1 {
			d.c.Out.WriteString("---\n")
		}
		for _, s := range b[e.b0:e.b1] {
			d.line("> ", s)
		}
	}
}

// function is the last line that begins as a function of C does, as it is shown with a hunk that comes after it.
func (d *differ) function(above []string) string {
	for _, s := range slices.Backward(above) {
		if d.functions && s != "" && (s[0] == '_' || s[0] == '$' || s[0]|0x20 >= 'a' && s[0]|0x20 <= 'z') {
			s = strings.TrimRight(s, "\n")
			return " " + strings.TrimRight(s[:min(len(s), 40)], " \t\r\v\f")
		}
	}
	return ""
}

func (d *differ) unify(a, b []string, edits []edit) {
	for len(edits) > 0 {
		n := 1
		for n < len(edits) && edits[n].a0-edits[n-1].a1 <= 2*d.unified {
			n++
		}
		first, last := edits[0], edits[n-1]
		before := min(d.unified, first.a0)
		after := min(d.unified, len(a)-last.a1)
		fmt.Fprintf(d.c.Out, "@@ -%s +%s @@%s\n", hunk(first.a0-before, last.a1+after), hunk(first.b0-before, last.b1+after), d.function(a[:first.a0-before]))
		at := first.a0 - before
		for _, e := range edits[:n] {
			for ; at < e.a0; at++ {
				d.line(" ", a[at])
			}
			for ; at < e.a1; at++ {
				d.line("-", a[at])
			}
			for _, s := range b[e.b0:e.b1] {
				d.line("+", s)
			}
		}
		for ; at < last.a1+after; at++ {
			d.line(" ", a[at])
		}
		edits = edits[n:]
	}
}

func hunk(from, to int) string {
	switch to - from {
	case 0:
		return fmt.Sprintf("%d,0", from)
	case 1:
		return strconv.Itoa(from + 1)
	}
	return fmt.Sprintf("%d,%d", from+1, to-from)
}
