package box

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func xargs(ctx context.Context, c *tool.Call) int {
	f, cmd, status, ok := c.Parse(tool.Options{Short: "+0rn:L:I:i::P:d:a:s:tE:x", Long: "null=0 no-run-if-empty=r max-args:=n max-lines::=L replace::=i " +
		"max-procs:=P delimiter:=d arg-file:=a max-chars:=s verbose=t exit=x"})
	if !ok {
		return status
	}
	if f.Has("s") {
		return c.Usage(1, "the option -s is not available in the wasm shell")
	}
	if len(cmd) == 0 {
		cmd = []string{"echo"}
	}
	most, perLine := 0, false
	for _, l := range []string{"n", "L"} {
		if v, given := f.Get(l); given {
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 {
				return c.Fail("invalid number \"%s\" for -%s option", v, l)
			}
			most, perLine = n, l == "L"
		}
	}
	in := c.Stdin
	if name, given := f.Get("a"); given {
		r, err := c.Input(name)
		if err != nil {
			return c.Fail("Cannot open input file '%s': %s", name, tool.Text(err))
		}
		defer r.Close()
		in = r
	}
	replace, replacing := f.Get("I")
	if v, given := f.Get("i"); given {
		if replace, replacing = v, true; v == "" {
			replace = "{}"
		}
	}
	b, err := io.ReadAll(in)
	if err != nil {
		return c.Fail("read error: %s", tool.Text(err))
	}
	items, err := xargsItems(string(b), f, replacing, perLine)
	if err != nil {
		c.Errorf("%v", err)
		status = 1
	}
	x := &xrunner{ctx: ctx, c: c, verbose: f.Has("t"), status: status}
	switch {
	case replacing:
		for _, it := range items {
			args := make([]string, len(cmd))
			for i, a := range cmd {
				args[i] = strings.ReplaceAll(a, replace, it)
			}
			if !x.run(args) {
				break
			}
		}
	case len(items) == 0:
		if !f.Has("r") && err == nil {
			x.run(cmd)
		}
	default:
		for len(items) > 0 {
			n, size := 0, 0
			for n < len(items) && (most == 0 || n < most) && (n == 0 || size+len(items[n])+1 <= maxArgs) {
				size += len(items[n]) + 1
				n++
			}
			args := items[:n]
			if perLine {
				args = strings.Split(strings.Join(args, "\n"), "\n")
				args = splitLines(args)
			}
			if !x.run(slices.Concat(cmd, args)) {
				break
			}
			items = items[n:]
		}
	}
	return x.status
}

type xrunner struct {
	ctx     context.Context
	c       *tool.Call
	verbose bool
	status  int
}

// run runs one command, and tells whether the next may be. Commands run one after the
// other whatever -P says.
func (x *xrunner) run(args []string) bool {
	if x.verbose {
		fmt.Fprintln(x.c.Stderr, strings.Join(args, " "))
	}
	switch code := x.c.Exec(x.ctx, x.c.Command(args, strings.NewReader(""))); {
	case code == 255:
		x.c.Errorf("%s: exited with status 255; aborting", args[0])
		x.status = 124
		return false
	case code == tool.StatusCannotExec || code == tool.StatusNotFound:
		x.status = code
		return false
	case code != 0:
		x.status = 123
	}
	return true
}

// xargsItems splits the input: at blanks and newlines but for what is quoted, or at one
// delimiter.
func xargsItems(s string, f tool.Flags, replacing, perLine bool) ([]string, error) {
	switch f.Last("0", "d") {
	case "0":
		return splitAt(s, "\x00"), nil
	case "d":
		d, _ := f.Get("d")
		d, _ = tool.Unescape(d, tool.FormatEscapes)
		if len(d) != 1 {
			return nil, fmt.Errorf("the delimiter must be one character")
		}
		return splitAt(s, d), nil
	}
	if replacing || perLine {
		var items []string
		for _, l := range splitAt(s, "\n") {
			if l = strings.TrimLeft(l, " \t"); l == "" {
				continue
			}
			if replacing {
				words, err := shellWords(l, "\n")
				if err != nil {
					return items, err
				}
				l = strings.Join(words, "")
			}
			items = append(items, l)
		}
		return items, nil
	}
	items, err := shellWords(s, " \t\n")
	if e, given := f.Get("E"); given {
		if i := slices.Index(items, e); i >= 0 {
			items = items[:i]
		}
	}
	return items, err
}

func splitAt(s, delim string) []string {
	s = strings.TrimSuffix(s, delim)
	if s == "" {
		return nil
	}
	return strings.Split(s, delim)
}

func splitLines(lines []string) []string {
	var out []string
	for _, l := range lines {
		words, err := shellWords(l, " \t")
		if err != nil {
			words = strings.Fields(l)
		}
		out = append(out, words...)
	}
	return out
}

// shellWords splits at separators that no quote or backslash protects.
func shellWords(s, separators string) ([]string, error) {
	var words []string
	var b strings.Builder
	in := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case strings.IndexByte(separators, c) >= 0:
			if in {
				words = append(words, b.String())
				b.Reset()
				in = false
			}
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
			in = true
		case c == '\'' || c == '"':
			end := strings.IndexByte(s[i+1:], c)
			if end < 0 || strings.Contains(s[i+1:i+1+end], "\n") {
				return words, fmt.Errorf("unmatched %s quote; by default quotes are special to xargs unless you use the -0 option",
					map[byte]string{'\'': "single", '"': "double"}[c])
			}
			b.WriteString(s[i+1 : i+1+end])
			i += end + 1
			in = true
		default:
			b.WriteByte(c)
			in = true
		}
	}
	if in {
		words = append(words, b.String())
	}
	return words, nil
}
