package box

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// readAll are the lines of a file or of standard input.
func readAll(c *tool.Call, name string, end byte) ([]string, error) {
	r, err := c.Input(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var all []string
	err = lines(r, end, func(s string, _ bool) bool { all = append(all, s); return true })
	return all, err
}

func paste(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "d:sz", Long: "delimiters:=d serial=s zero-terminated=z"})
	if !ok {
		return status
	}
	if len(names) == 0 {
		names = []string{"-"}
	}
	d, given := f.Get("d")
	if !given {
		d = "\t"
	}
	d, _ = tool.Unescape(strings.ReplaceAll(d, `\0`, "\xff"), tool.FormatEscapes)
	delim := func(i int) string {
		if d == "" {
			return ""
		}
		return strings.ReplaceAll(string(d[i%len(d)]), "\u00ff", "")
	}
	// Standard input that is named several times gives its lines in turn.
	var stdin []string
	inputs := make([][]string, len(names))
	shares := 0
	for i, n := range names {
		if n == "-" {
			shares++
			continue
		}
		all, err := readAll(c, n, end(f)[0])
		if err != nil {
			return c.Fail("%s: %s", n, tool.Text(err))
		}
		inputs[i] = all
	}
	if shares > 0 {
		var err error
		if stdin, err = readAll(c, "-", end(f)[0]); err != nil {
			return c.Fail("-: %s", tool.Text(err))
		}
	}
	share := 0
	for i, n := range names {
		if n != "-" {
			continue
		}
		if f.Has("s") {
			inputs[i], stdin = stdin, nil
			continue
		}
		for j := share; j < len(stdin); j += shares {
			inputs[i] = append(inputs[i], stdin[j])
		}
		share++
	}
	if f.Has("s") {
		for _, in := range inputs {
			for i, s := range in {
				if i > 0 {
					c.Out.WriteString(delim(i - 1))
				}
				c.Out.WriteString(s)
			}
			c.Out.WriteString(end(f))
		}
		return 0
	}
	most := 0
	for _, in := range inputs {
		most = max(most, len(in))
	}
	for row := range most {
		for i, in := range inputs {
			if i > 0 {
				c.Out.WriteString(delim(i - 1))
			}
			if row < len(in) {
				c.Out.WriteString(in[row])
			}
		}
		c.Out.WriteString(end(f))
	}
	return 0
}

func comm(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "123z", Long: "output-delimiter: zero-terminated=z check-order nocheck-order"})
	if !ok {
		return status
	}
	if len(names) != 2 {
		return c.Usage(1, "two files are needed")
	}
	var in [2][]string
	for i, n := range names {
		var err error
		if in[i], err = readAll(c, n, end(f)[0]); err != nil {
			return c.Fail("%s: %s", n, tool.Text(err))
		}
		if !slices.IsSorted(in[i]) && !f.Has("nocheck-order") {
			c.Errorf("file %d is not in sorted order", i+1)
			status = 1
		}
	}
	sep := "\t"
	if s, given := f.Get("output-delimiter"); given {
		sep = s
	}
	put := func(column int, s string) {
		if f.Has(strconv.Itoa(column)) {
			return
		}
		for i := 1; i < column; i++ {
			if !f.Has(strconv.Itoa(i)) {
				c.Out.WriteString(sep)
			}
		}
		c.Out.WriteString(s + end(f))
	}
	a, b := in[0], in[1]
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			put(1, a[0])
			a = a[1:]
		case len(a) == 0 || b[0] < a[0]:
			put(2, b[0])
			b = b[1:]
		default:
			put(3, a[0])
			a, b = a[1:], b[1:]
		}
	}
	return status
}

func tac(_ context.Context, c *tool.Call) int {
	_, names, status, ok := c.Parse(tool.Options{})
	if !ok {
		return status
	}
	return c.Each(names, 1, func(_ string, r io.Reader) error {
		var all []string
		err := lines(r, '\n', func(s string, ended bool) bool { all = append(all, withEnd(s, ended, "\n")); return true })
		for _, s := range slices.Backward(all) {
			c.Out.WriteString(s)
		}
		return err
	})
}

func rev(_ context.Context, c *tool.Call) int {
	_, names, status, ok := c.Parse(tool.Options{})
	if !ok {
		return status
	}
	return c.Each(names, 1, func(_ string, r io.Reader) error {
		return lines(r, '\n', func(s string, ended bool) bool {
			runes := []rune(s)
			slices.Reverse(runes)
			c.Out.WriteString(withEnd(string(runes), ended, "\n"))
			return true
		})
	})
}

func nl(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "b:w:s:v:n:", Long: "body-numbering:=b number-width:=w number-separator:=s starting-line-number:=v number-format:=n"})
	if !ok {
		return status
	}
	style, width, sep, n, format := "t", 6, "\t", 1, "rn"
	for _, x := range f {
		var err error
		switch x.Name {
		case "b":
			style = x.Value
		case "w":
			width, err = strconv.Atoi(x.Value)
		case "s":
			sep = x.Value
		case "v":
			n, err = strconv.Atoi(x.Value)
		case "n":
			format = x.Value
		}
		if err != nil || width < 1 || width > 1000 || style != "a" && style != "t" && style != "n" || format != "ln" && format != "rn" && format != "rz" {
			return c.Usage(1, "invalid value '%s' of -%s", x.Value, x.Name)
		}
	}
	verb := map[string]string{"ln": "%-*d%s", "rn": "%*d%s", "rz": "%0*d%s"}[format]
	return c.Each(names, 1, func(_ string, r io.Reader) error {
		return lines(r, '\n', func(s string, _ bool) bool {
			if style == "a" || style == "t" && s != "" {
				fmt.Fprintf(c.Out, verb, width, n, sep)
				n++
			} else {
				c.Out.WriteString(strings.Repeat(" ", width+len(sep)))
			}
			c.Out.WriteString(s + "\n")
			return true
		})
	})
}

func base64Tool(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "diw:", Long: "decode=d ignore-garbage=i wrap:=w"})
	if !ok {
		return status
	}
	if f.Has("i") {
		return c.Usage(1, "the option -i is not available in the wasm shell")
	}
	wrap := 76
	if w, given := f.Get("w"); given {
		var err error
		if wrap, err = strconv.Atoi(w); err != nil || wrap < 0 {
			return c.Fail("invalid wrap size: '%s'", w)
		}
	}
	if len(names) > 1 {
		return c.Usage(1, "extra operand '%s'", names[1])
	}
	if f.Has("d") {
		bad := c.Each(names, 1, func(_ string, r io.Reader) error {
			_, err := io.Copy(c.Out, base64.NewDecoder(base64.StdEncoding, r))
			if _, corrupt := errors.AsType[base64.CorruptInputError](err); corrupt || errors.Is(err, io.ErrUnexpectedEOF) {
				c.Errorf("invalid input")
				status = 1
				return nil
			}
			return err
		})
		return max(bad, status)
	}
	return c.Each(names, 1, func(_ string, r io.Reader) error {
		w := &wrapper{w: c.Out, width: wrap}
		e := base64.NewEncoder(base64.StdEncoding, w)
		_, err := io.Copy(e, r)
		if err = errors.Join(err, e.Close()); w.column > 0 && wrap > 0 {
			c.Out.WriteByte('\n')
		}
		return err
	})
}

// wrapper breaks what is written into lines.
type wrapper struct {
	w             io.Writer
	width, column int
}

func (w *wrapper) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := len(rest)
		if w.width > 0 {
			n = min(n, w.width-w.column)
		}
		if _, err := w.w.Write(rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
		if w.column += n; w.column == w.width && w.width > 0 {
			io.WriteString(w.w, "\n")
			w.column = 0
		}
	}
	return len(p), nil
}

// id is root, as all files are root's.
func id(_ context.Context, c *tool.Call) int {
	f, rest, status, ok := c.Parse(tool.Options{Short: "ugGnr", Long: "user=u group=g groups=G name=n real=r"})
	if !ok {
		return status
	}
	if len(rest) > 0 && rest[0] != "root" && rest[0] != "0" {
		return c.Fail("'%s': no such user", rest[0])
	}
	switch {
	case !f.Has("u", "g", "G"):
		c.Out.WriteString("uid=0(root) gid=0(root) groups=0(root)\n")
	case f.Has("n"):
		c.Out.WriteString("root\n")
	default:
		c.Out.WriteString("0\n")
	}
	return 0
}

func nproc(_ context.Context, c *tool.Call) int {
	if _, _, status, ok := c.Parse(tool.Options{Long: "all ignore:"}); !ok {
		return status
	}
	c.Out.WriteString("1\n")
	return 0
}
