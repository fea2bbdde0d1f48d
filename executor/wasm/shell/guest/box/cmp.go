package box

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func cmpTool(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "slbi:n:", Long: "quiet=s silent=s verbose=l print-bytes=b ignore-initial:=i bytes:=n", Status: 2})
	if !ok {
		return status
	}
	if f.Has("b") {
		return c.Usage(2, "the option -b is not available in the wasm shell")
	}
	switch len(names) {
	case 0:
		return c.Usage(2, "missing operand after 'cmp'")
	case 1:
		names = append(names, "-")
	case 2, 3, 4:
	default:
		return c.Usage(2, "extra operand '%s'", names[4])
	}
	var skip [2]int64
	skips, _ := f.Get("i")
	if one, other, both := strings.Cut(skips, ":"); both {
		names = append(names[:2], one, other)
	} else if skips != "" {
		names = append(names[:2], one, one)
	}
	for i, n := range names[2:] {
		var err error
		if skip[i], err = strconv.ParseInt(n, 10, 64); err != nil || skip[i] < 0 {
			return c.Usage(2, "invalid --ignore-initial value '%s'", n)
		}
	}
	names = names[:2]
	limit := int64(-1)
	if n, given := f.Get("n"); given {
		v, err := strconv.ParseInt(n, 10, 64)
		if err != nil || v < 0 {
			return c.Usage(2, "invalid --bytes value '%s'", n)
		}
		limit = v
	}
	var in [2]*bufio.Reader
	for i, n := range names {
		r, err := c.Input(n)
		if err != nil {
			if !f.Has("s") {
				c.Errorf("%s: %s", n, tool.Text(err))
			}
			return 2
		}
		defer r.Close()
		in[i] = bufio.NewReader(r)
		if _, err := io.CopyN(io.Discard, in[i], skip[i]); err != nil && err != io.EOF {
			c.Errorf("%s: %s", n, tool.Text(err))
			return 2
		}
	}
	line, differ, last := int64(1), 0, byte('\n')
	for at := int64(1); limit < 0 || at <= limit; at++ {
		a, errA := in[0].ReadByte()
		b, errB := in[1].ReadByte()
		if errA != nil || errB != nil {
			if errA == io.EOF && errB == io.EOF {
				return differ
			}
			short := names[0]
			if errA == nil {
				short = names[1]
			}
			if f.Has("s") {
				return 1
			}
			switch {
			case at == 1:
				c.Errorf("EOF on %s which is empty", short)
			case f.Has("l"):
				c.Errorf("EOF on %s after byte %d", short, at-1)
			case last == '\n':
				c.Errorf("EOF on %s after byte %d, line %d", short, at-1, line-1)
			default:
				c.Errorf("EOF on %s after byte %d, in line %d", short, at-1, line)
			}
			return 1
		}
		if a != b {
			if f.Has("s") {
				return 1
			}
			if !f.Has("l") {
				fmt.Fprintf(c.Out, "%s %s differ: byte %d, line %d\n", names[0], names[1], at, line)
				return 1
			}
			fmt.Fprintf(c.Out, "%d %3o %3o\n", at, a, b)
			differ = 1
		}
		if last = a; a == '\n' {
			line++
		}
	}
	return differ
}
