package box

import (
	"bufio"
	"context"
	"io"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// joinField is one of the output: the key if file is 0.
type joinField struct{ file, field int }

// joiner joins the lines of two sorted files by a field of each.
type joiner struct {
	c        *tool.Call
	f        tool.Flags
	key      [2]int
	unpaired [2]bool
	paired   bool
	sep      string // between fields; empty for blanks
	empty    string
	out      []joinField
}

// joinInput is one of both files.
type joinInput struct {
	name   string
	r      *bufio.Reader
	number int
	fields []string
	end    bool
	last   string // the key before, to see whether they are sorted
	bad    bool
}

func joinTool(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "a:e:i1:2:j:o:t:v:z", Long: "ignore-case=i check-order nocheck-order header zero-terminated=z"})
	if !ok {
		return status
	}
	for _, o := range []string{"header", "z"} {
		if f.Has(o) {
			return c.Usage(1, "the options --header and -z are not available in the wasm shell")
		}
	}
	j := &joiner{c: c, f: f, paired: !f.Has("v")}
	for _, x := range f {
		switch n, err := strconv.Atoi(x.Value); x.Name {
		case "1", "2", "j":
			if err != nil || n < 1 {
				return c.Fail("invalid field number: '%s'", x.Value)
			}
			if x.Name != "2" {
				j.key[0] = n - 1
			}
			if x.Name != "1" {
				j.key[1] = n - 1
			}
		case "a", "v":
			if n != 1 && n != 2 {
				return c.Fail("invalid field number: '%s'", x.Value)
			}
			j.unpaired[n-1] = true
		case "e":
			j.empty = x.Value
		case "t":
			if j.sep = x.Value; x.Value == `\0` {
				j.sep = "\x00"
			}
			if x.Value == "" { // the whole line
				j.sep = "\n"
			}
			if len(j.sep) != 1 {
				return c.Fail("multi-character tab '%s'", x.Value)
			}
		case "o":
			for _, w := range strings.FieldsFunc(x.Value, func(r rune) bool { return r == ',' || r == ' ' }) {
				file, field, _ := strings.Cut(w, ".")
				n, err := strconv.Atoi(field)
				switch {
				case w == "0":
					j.out = append(j.out, joinField{})
				case w == "auto" || file != "1" && file != "2":
					return c.Fail("invalid file number in field spec: '%s'", w)
				case err != nil || n < 1:
					return c.Fail("invalid field number: '%s'", field)
				default:
					j.out = append(j.out, joinField{int(file[0] - '0'), n - 1})
				}
			}
		}
	}
	switch {
	case len(names) == 0:
		return c.Usage(1, "missing operand")
	case len(names) == 1:
		return c.Usage(1, "missing operand after '%s'", names[0])
	case len(names) > 2:
		return c.Usage(1, "extra operand '%s'", names[2])
	case names[0] == "-" && names[1] == "-":
		return c.Fail("both files cannot be standard input")
	}
	var in [2]*joinInput
	for i, n := range names {
		r, err := c.Input(n)
		if err != nil {
			return c.Fail("%s: %s", n, tool.Text(err))
		}
		defer r.Close()
		in[i] = &joinInput{name: n, r: bufio.NewReader(r)}
	}
	err := j.run(in[0], in[1])
	c.Out.Flush()
	if err != nil {
		return c.Fail("%v", err)
	}
	if in[0].bad || in[1].bad {
		return c.Fail("input is not in sorted order")
	}
	return 0
}

func (j *joiner) run(a, b *joinInput) error {
	both := [2]*joinInput{a, b}
	mixed := false // whether a line before the end of both had none like it, after which the order counts
	next := func(i int) error { return j.next(both[i], i, mixed) }
	for i := range both {
		if err := next(i); err != nil {
			return err
		}
	}
	for !a.end || !b.end {
		order := 0
		switch {
		case a.end:
			order = 1
		case b.end:
			order = -1
		default:
			order = strings.Compare(j.keyOf(a.fields, 0), j.keyOf(b.fields, 1))
		}
		if order != 0 {
			i := 0
			if order > 0 {
				i = 1
			}
			if j.unpaired[i] {
				var lines [2][]string
				lines[i] = both[i].fields
				j.show(lines)
			}
			rest := a.end || b.end
			if err := next(i); err != nil {
				return err
			}
			mixed = mixed || !rest
			continue
		}
		key := j.keyOf(a.fields, 0)
		var same [2][][]string
		for i, in := range both {
			for !in.end && j.keyOf(in.fields, i) == key {
				same[i] = append(same[i], in.fields)
				if err := next(i); err != nil {
					return err
				}
			}
		}
		if !j.paired {
			continue
		}
		for _, x := range same[0] {
			for _, y := range same[1] {
				j.show([2][]string{x, y})
			}
		}
	}
	return nil
}

// next reads a line.
func (j *joiner) next(in *joinInput, i int, mixed bool) error {
	line, err := in.r.ReadString('\n')
	if err != nil && err != io.EOF {
		return errorf("%s: %s", in.name, tool.Text(err))
	}
	if line == "" {
		in.end = true
		return nil
	}
	line = strings.TrimSuffix(line, "\n")
	if in.number++; j.sep != "" {
		in.fields = strings.Split(line, j.sep)
	} else {
		in.fields = strings.Fields(line)
	}
	key := j.keyOf(in.fields, i)
	check := j.f.Last("check-order", "nocheck-order")
	if in.number > 1 && key < in.last && !in.bad && (check == "check-order" || check == "" && mixed) {
		message := errorf("%s:%d: is not sorted: %s", in.name, in.number, line)
		if check != "" {
			return message
		}
		j.c.Out.Flush()
		j.c.Errorf("%v", message)
		in.bad = true
	}
	in.last = key
	return nil
}

func (j *joiner) keyOf(fields []string, i int) string {
	k := joinedField(fields, j.key[i])
	if j.f.Has("i") {
		k = strings.ToLower(k)
	}
	return k
}

func joinedField(fields []string, i int) string {
	if i < len(fields) {
		return fields[i]
	}
	return ""
}

// show writes a pair of lines, one of which may be missing.
func (j *joiner) show(lines [2][]string) {
	key := joinedField(lines[0], j.key[0])
	if lines[0] == nil {
		key = joinedField(lines[1], j.key[1])
	}
	var out []string
	add := func(s string) {
		if s == "" {
			s = j.empty
		}
		out = append(out, s)
	}
	if j.out != nil {
		for _, o := range j.out {
			if o.file == 0 {
				add(key)
			} else {
				add(joinedField(lines[o.file-1], o.field))
			}
		}
	} else {
		add(key)
		for i, fields := range lines {
			for k, s := range fields {
				if k != j.key[i] {
					add(s)
				}
			}
		}
	}
	sep := j.sep
	if sep == "" {
		sep = " "
	}
	j.c.Out.WriteString(strings.Join(out, sep) + "\n")
}
