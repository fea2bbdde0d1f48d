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

func uniq(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "cdDuif:s:w:z",
		Long: "count=c repeated=d all-repeated=D unique=u ignore-case=i skip-fields:=f skip-chars:=s check-chars:=w zero-terminated=z"})
	if !ok {
		return status
	}
	n := map[string]int{"w": -1}
	for _, l := range []string{"f", "s", "w"} {
		if v, given := f.Get(l); given {
			k, err := strconv.Atoi(v)
			if err != nil || k < 0 {
				return c.Usage(1, "invalid number of %s: '%s'", map[string]string{"f": "fields to skip", "s": "bytes to skip", "w": "bytes to compare"}[l], v)
			}
			n[l] = k
		}
	}
	key := func(s string) string {
		for range n["f"] {
			s = strings.TrimLeft(s, " \t")
			i := strings.IndexAny(s, " \t")
			if i < 0 {
				i = len(s)
			}
			s = s[i:]
		}
		s = s[min(len(s), n["s"]):]
		if n["w"] >= 0 {
			s = s[:min(len(s), n["w"])]
		}
		if f.Has("i") {
			s = strings.ToLower(s)
		}
		return s
	}
	out := c.Out
	if len(names) > 2 {
		return c.Usage(1, "extra operand '%s'", names[2])
	}
	if len(names) == 2 {
		w, err := c.Create(names[1], false)
		if err != nil {
			return c.Fail("%s: %s", names[1], tool.Text(err))
		}
		defer w.Close()
		out = bufio.NewWriter(w)
		names = names[:1]
	}
	var first string
	repeats := 0
	show := func() {
		switch {
		case repeats == 0 || f.Has("D"), f.Has("d") && repeats < 2, f.Has("u") && repeats > 1:
			return
		case f.Has("c"):
			fmt.Fprintf(out, "%7d ", repeats)
		}
		out.WriteString(first + end(f))
	}
	status = c.Each(names, 1, func(_ string, r io.Reader) error {
		return lines(r, end(f)[0], func(s string, _ bool) bool {
			if repeats > 0 && key(s) == key(first) {
				if repeats++; f.Has("D") {
					if repeats == 2 {
						out.WriteString(first + end(f))
					}
					out.WriteString(s + end(f))
				}
				return true
			}
			show()
			first, repeats = s, 1
			return true
		})
	})
	show()
	if err := out.Flush(); err != nil && out != c.Out {
		return c.Fail("write error: %s", tool.Text(err))
	}
	return status
}
