package box

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func cat(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "nbsEeTtvAu",
		Long: "number=n number-nonblank=b squeeze-blank=s show-ends=E show-tabs=T show-nonprinting=v show-all=A"})
	if !ok {
		return status
	}
	if len(f) == 0 || len(f) == 1 && f.Has("u") {
		return c.Each(names, 1, func(_ string, r io.Reader) error {
			if c.IsOutput(r) {
				return errOutput
			}
			_, err := io.Copy(c.Out, r)
			return err
		})
	}
	k := catter{
		out: c.Out, number: f.Has("n") && !f.Has("b"), nonblank: f.Has("b"), squeeze: f.Has("s"),
		ends: f.Has("E", "e", "A"), tabs: f.Has("T", "t", "A"), visible: f.Has("v", "e", "t", "A"),
	}
	return c.Each(names, 1, func(_ string, r io.Reader) error {
		if c.IsOutput(r) {
			return errOutput
		}
		return lines(r, '\n', k.line)
	})
}

const errOutput = errString("input file is output file")

type catter struct {
	out                                            *bufio.Writer
	number, nonblank, squeeze, ends, tabs, visible bool
	n, blanks                                      int
}

func (k *catter) line(s string, ended bool) bool {
	if s != "" {
		k.blanks = 0
	} else if k.blanks++; k.squeeze && k.blanks > 1 {
		return true
	}
	if k.number || k.nonblank && s != "" {
		k.n++
		fmt.Fprintf(k.out, "%6d\t", k.n)
	}
	for i := 0; i < len(s); i++ {
		b := s[i]
		switch {
		case b == '\t' && k.tabs:
			k.out.WriteString("^I")
		case b == '\t' || !k.visible:
			k.out.WriteByte(b)
		default:
			k.out.WriteString(visible(b))
		}
	}
	if ended && k.ends {
		k.out.WriteByte('$')
	}
	if ended {
		k.out.WriteByte('\n')
	}
	return true
}

func visible(b byte) string {
	switch {
	case b >= 0x80:
		return "M-" + visible(b&0x7f)
	case b == 0x7f:
		return "^?"
	case b < ' ':
		return "^" + string(rune(b+'@'))
	}
	return string(rune(b))
}

// count reads the N of head and tail, with the units of GNU.
func count(s string) (n int64, ok bool) {
	if strings.HasSuffix(s, "c") || strings.HasSuffix(s, "w") {
		return 0, false
	}
	return parseSize(s)
}

// obsolete turns the options -NUM of head and tail into -n NUM.
func obsolete(args []string, plus bool) []string {
	if len(args) < 2 || len(args[1]) < 2 || args[1][0] != '-' && !(plus && args[1][0] == '+') {
		return args
	}
	digits := args[1][1:]
	if strings.Trim(digits, "0123456789") != "" {
		return args
	}
	if args[1][0] == '+' {
		digits = args[1]
	}
	return append([]string{args[0], "-n", digits}, args[2:]...)
}

func head(_ context.Context, c *tool.Call) int {
	c.Args = obsolete(c.Args, false)
	f, names, status, ok := c.Parse(tool.Options{Short: "n:c:qvz", Long: "lines:=n bytes:=c quiet=q silent=q verbose=v zero-terminated=z"})
	if !ok {
		return status
	}
	unit, n := "lines", int64(10)
	butLast := false
	if k := f.Last("n", "c"); k != "" {
		s, _ := f.Get(k)
		if k == "c" {
			unit = "bytes"
		}
		var digits string
		if digits, butLast = strings.CutPrefix(s, "-"); true {
			if n, ok = count(digits); !ok {
				return c.Fail("invalid number of %s: '%s'", unit, s)
			}
		}
	}
	show := titles(c, f, names)
	return c.Each(names, 1, func(name string, r io.Reader) error {
		show(name)
		switch {
		case unit == "bytes" && !butLast:
			_, err := io.CopyN(c.Out, r, n)
			if err == io.EOF {
				err = nil
			}
			return err
		case unit == "bytes":
			b, err := io.ReadAll(r)
			c.Out.Write(b[:max(0, int64(len(b))-n)])
			return err
		case butLast:
			var kept []string
			return lines(r, end(f)[0], func(s string, ended bool) bool {
				kept = append(kept, withEnd(s, ended, end(f)))
				if int64(len(kept)) > n {
					c.Out.WriteString(kept[0])
					kept = kept[1:]
				}
				return true
			})
		case n == 0:
			return nil
		}
		left := n
		return lines(r, end(f)[0], func(s string, ended bool) bool {
			c.Out.WriteString(withEnd(s, ended, end(f)))
			left--
			return left > 0
		})
	})
}

func withEnd(s string, ended bool, end string) string {
	if ended {
		return s + end
	}
	return s
}

// titles returns what writes ==> NAME <== before each of several files.
func titles(c *tool.Call, f tool.Flags, names []string) func(string) {
	first := true
	return func(name string) {
		if last := f.Last("q", "v"); last == "q" || last == "" && len(names) < 2 {
			return
		}
		if !first {
			c.Out.WriteByte('\n')
		}
		first = false
		if name == "-" {
			name = "standard input"
		}
		fmt.Fprintf(c.Out, "==> %s <==\n", name)
	}
}

func tail(_ context.Context, c *tool.Call) int {
	c.Args = obsolete(c.Args, true)
	f, names, status, ok := c.Parse(tool.Options{Short: "n:c:qvz", Long: "lines:=n bytes:=c quiet=q silent=q verbose=v zero-terminated=z"})
	if !ok {
		return status
	}
	unit, n, from := "lines", int64(10), false
	if k := f.Last("n", "c"); k != "" {
		s, _ := f.Get(k)
		if k == "c" {
			unit = "bytes"
		}
		digits := strings.TrimPrefix(s, "-")
		digits, from = strings.CutPrefix(digits, "+")
		if n, ok = count(digits); !ok {
			return c.Fail("invalid number of %s: '%s'", unit, s)
		}
	}
	show := titles(c, f, names)
	return c.Each(names, 1, func(name string, r io.Reader) error {
		show(name)
		switch {
		case from && unit == "bytes":
			if _, err := io.CopyN(io.Discard, r, max(0, n-1)); err != nil && err != io.EOF {
				return err
			}
			_, err := io.Copy(c.Out, r)
			return err
		case from:
			at := int64(0)
			return lines(r, end(f)[0], func(s string, ended bool) bool {
				if at++; at >= n {
					c.Out.WriteString(withEnd(s, ended, end(f)))
				}
				return true
			})
		case unit == "bytes":
			b, err := io.ReadAll(r)
			c.Out.Write(b[max(0, int64(len(b))-n):])
			return err
		}
		var kept []string
		err := lines(r, end(f)[0], func(s string, ended bool) bool {
			if kept = append(kept, withEnd(s, ended, end(f))); int64(len(kept)) > n {
				kept = kept[1:]
			}
			return true
		})
		for _, s := range kept {
			c.Out.WriteString(s)
		}
		return err
	})
}

func tee(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "ai", Long: "append=a ignore-interrupts=i"})
	if !ok {
		return status
	}
	to := []io.Writer{c.Stdout}
	for _, n := range names {
		w, err := c.Create(n, f.Has("a"))
		if err != nil {
			status = c.Fail("%s: %s", n, tool.Text(err))
			continue
		}
		defer w.Close()
		to = append(to, &teed{c, n, w, &status, false})
	}
	if _, err := io.Copy(io.MultiWriter(to...), c.Stdin); err != nil {
		return c.Fail("%s", tool.Text(err))
	}
	return status
}

// teed is a file of tee. One that cannot be written to is left out from then on.
type teed struct {
	c      *tool.Call
	name   string
	w      io.Writer
	status *int
	failed bool
}

func (t *teed) Write(b []byte) (int, error) {
	if t.failed {
		return len(b), nil
	}
	if _, err := t.w.Write(b); err != nil {
		t.failed = true
		*t.status = t.c.Fail("%s: %s", t.name, tool.Text(err))
	}
	return len(b), nil
}

func wc(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "clmwL", Long: "bytes=c chars=m lines=l words=w max-line-length=L"})
	if !ok {
		return status
	}
	if len(f) == 0 {
		f = tool.Flags{{Name: "l"}, {Name: "w"}, {Name: "c"}}
	}
	var all []counts
	var titles []string
	var total counts
	buf := make([]byte, 32<<10)
	status = c.Each(names, 1, func(name string, r io.Reader) error {
		k, err := countAll(r, buf, f.Has("w", "m", "L"))
		if err != nil {
			return err
		}
		all, titles = append(all, k), append(titles, name)
		total.add(k)
		return nil
	})
	if len(names) > 1 {
		all, titles = append(all, total), append(titles, "total")
	}
	width := 1
	if len(f) > 1 || len(names) > 1 {
		width = len(strconv.FormatInt(total.bytes, 10))
		if len(names) == 0 {
			width = 7
		}
		for _, n := range names {
			if fi, err := c.Stat(n); n == "-" || err == nil && !fi.Mode().IsRegular() {
				width = 7
			}
		}
	}
	for i, k := range all {
		var cols []string
		for _, col := range []struct {
			letter string
			n      int64
		}{{"l", k.lines}, {"w", k.words}, {"m", k.chars}, {"c", k.bytes}, {"L", k.longest}} {
			if f.Has(col.letter) {
				cols = append(cols, fmt.Sprintf("%*d", width, col.n))
			}
		}
		if len(names) > 0 {
			cols = append(cols, titles[i])
		}
		fmt.Fprintln(c.Out, strings.Join(cols, " "))
	}
	return status
}

type counts struct{ lines, words, chars, bytes, longest int64 }

func (k *counts) add(o counts) {
	k.lines += o.lines
	k.words += o.words
	k.chars += o.chars
	k.bytes += o.bytes
	k.longest = max(k.longest, o.longest)
}

// countAll reads by way of buf, and counts bytes and lines, and where text is set the rest, for which it must look at each character.
func countAll(r io.Reader, buf []byte, text bool) (k counts, err error) {
	inWord := false
	column := int64(0)
	var rest []byte
	for {
		n, err := r.Read(buf)
		k.bytes += int64(n)
		if !text {
			k.lines += int64(bytes.Count(buf[:n], []byte{'\n'}))
			n = 0
		}
		b := append(rest, buf[:n]...)
		for len(b) > 0 && (utf8.FullRune(b) || err != nil) {
			ch, size := utf8.DecodeRune(b)
			b = b[size:]
			if ch != utf8.RuneError || size > 1 {
				k.chars++
			}
			switch {
			case ch == '\n':
				k.lines++
				k.longest, column = max(k.longest, column), 0
			case ch == '\t':
				column += 8 - column%8
			case unicode.IsPrint(ch):
				column++
			}
			space := unicode.IsSpace(ch)
			if !space && !inWord {
				k.words++
			}
			inWord = !space
		}
		rest = bytes.Clone(b)
		if err == io.EOF {
			k.longest = max(k.longest, column)
			return k, nil
		}
		if err != nil {
			return k, err
		}
	}
}
