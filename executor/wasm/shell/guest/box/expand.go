package box

import (
	"bufio"
	"context"
	"io"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func expand(_ context.Context, c *tool.Call) int {
	args := []string{c.Args[0]}
	for i, a := range c.Args[1:] {
		if a == "--" {
			args = append(args, c.Args[1+i:]...)
			break
		}
		if len(a) > 1 && a[0] == '-' && strings.Trim(a[1:], "0123456789,") == "" {
			a = "-t" + a[1:]
		}
		args = append(args, a)
	}
	c.Args = args
	f, names, status, ok := c.Parse(tool.Options{Short: "it:", Long: "initial=i tabs:=t"})
	if !ok {
		return status
	}
	var stops []int64
	for _, x := range f {
		if x.Name != "t" {
			continue
		}
		for _, w := range strings.FieldsFunc(x.Value, func(r rune) bool { return r == ',' || r == ' ' }) {
			n, ok := count(w)
			switch {
			case strings.ContainsAny(w, "/+"):
				return c.Usage(1, "a tab stop as in '%s' is not available in the wasm shell", w)
			case !ok:
				return c.Fail("tab size contains invalid character(s): '%s'", strings.TrimLeft(w, "0123456789"))
			case n == 0:
				return c.Fail("tab size cannot be 0")
			case len(stops) > 0 && n <= stops[len(stops)-1]:
				return c.Fail("tab sizes must be ascending")
			}
			stops = append(stops, n)
		}
	}
	if len(stops) == 0 {
		stops = []int64{8}
	}
	next := func(column int64) int64 {
		if len(stops) == 1 {
			return column + stops[0] - column%stops[0]
		}
		for _, s := range stops {
			if s > column {
				return s
			}
		}
		return column + 1
	}
	return c.Each(names, 1, func(_ string, r io.Reader) error {
		in := bufio.NewReader(r)
		column, begins := int64(0), true // whether there were blanks only
		for {
			b, err := in.ReadByte()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			switch {
			case b == '\n':
				column, begins = 0, true
			case b == '\t' && (begins || !f.Has("i")):
				to := next(column)
				for ; column < to; column++ {
					c.Out.WriteByte(' ')
				}
				continue
			case b == '\t':
				column = next(column)
			case b == '\b':
				column = max(column-1, 0)
				begins = false
			default:
				column++
				begins = begins && b == ' '
			}
			c.Out.WriteByte(b)
		}
	})
}
