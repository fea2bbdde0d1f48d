package box

import (
	"context"
	"io"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// ranges are those of cut: from and to, both counted from 1 and included.
type ranges [][2]int

const endless = 1 << 40

func parseRanges(s string) (ranges, bool) {
	var all ranges
	for _, p := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' }) {
		lo, hi, two := strings.Cut(p, "-")
		from, to := 1, endless
		var err error
		if lo != "" {
			if from, err = strconv.Atoi(lo); err != nil || from < 1 {
				return nil, false
			}
		}
		switch {
		case !two:
			to = from
		case hi != "":
			if to, err = strconv.Atoi(hi); err != nil || to < from {
				return nil, false
			}
		case lo == "":
			return nil, false
		}
		all = append(all, [2]int{from, to})
	}
	return all, len(all) > 0
}

func (r ranges) has(n int) bool {
	for _, x := range r {
		if n >= x[0] && n <= x[1] {
			return true
		}
	}
	return false
}

func cut(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "b:c:d:f:nsz",
		Long: "bytes:=b characters:=c delimiter:=d fields:=f only-delimited=s complement output-delimiter: zero-terminated=z"})
	if !ok {
		return status
	}
	kind := f.Last("b", "c", "f")
	if kind == "" {
		return c.Usage(1, "you must specify a list of bytes, characters, or fields")
	}
	list, _ := f.Get(kind)
	which, ok := parseRanges(list)
	if !ok {
		return c.Usage(1, "invalid field value '%s'", list)
	}
	delim, given := f.Get("d")
	if !given {
		delim = "\t"
	}
	if len(delim) > 1 {
		return c.Usage(1, "the delimiter must be a single character")
	}
	if kind != "f" && (given || f.Has("s")) {
		return c.Usage(1, "an input delimiter may be specified only when operating on fields")
	}
	out, outGiven := f.Get("output-delimiter")
	if !outGiven && kind == "f" {
		out = delim
	}
	keep := func(n int) bool { return which.has(n) != f.Has("complement") }
	return c.Each(names, 1, func(_ string, r io.Reader) error {
		return lines(r, end(f)[0], func(s string, _ bool) bool {
			if kind != "f" {
				last := -1
				for i := range len(s) {
					if !keep(i + 1) {
						continue
					}
					if outGiven && last >= 0 && last != i-1 {
						c.Out.WriteString(out)
					}
					c.Out.WriteByte(s[i])
					last = i
				}
				c.Out.WriteString(end(f))
				return true
			}
			if delim != "" && !strings.Contains(s, delim) {
				if !f.Has("s") {
					c.Out.WriteString(s + end(f))
				}
				return true
			}
			var kept []string
			for i, p := range strings.Split(s, delim) {
				if keep(i + 1) {
					kept = append(kept, p)
				}
			}
			c.Out.WriteString(strings.Join(kept, out) + end(f))
			return true
		})
	})
}
