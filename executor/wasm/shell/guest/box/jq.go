package box

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/itchyny/gojq"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

type jqRunner struct {
	c      *tool.Call
	f      tool.Flags
	code   *gojq.Code
	values []any
	write  jqWriter
	last   any
	some   bool
}

func jq(ctx context.Context, c *tool.Call) int {
	args, named, names, values, err := jqArguments(c)
	if err != nil {
		c.Errorf("%v", err)
		return 2
	}
	call := *c
	call.Args = args
	f, operands, status, ok := call.Parse(tool.Options{Short: "rjcCMsnRaeSf:hL:", Status: 2, Long: "raw-output=r join-output=j compact-output=c color-output=C " +
		"monochrome-output=M slurp=s null-input=n raw-input=R ascii-output=a exit-status=e sort-keys=S from-file:=f tab indent: raw-output0 seq stream"})
	if !ok {
		return status
	}
	if f.Has("C", "L", "seq", "stream", "h") {
		return call.Usage(2, "the options -C, -L, -h, --seq and --stream are not available in the wasm shell")
	}
	src, fromFile := f.Get("f")
	if fromFile {
		r, err := c.Input(src)
		var b []byte
		if err == nil {
			b, err = io.ReadAll(r)
			r.Close()
		}
		if err != nil {
			c.Errorf("error: Could not open %s: %s", src, tool.Text(err))
			return 2
		}
		src = string(b)
	} else {
		if len(operands) == 0 {
			return call.Usage(2, "a filter is missing")
		}
		src, operands = operands[0], operands[1:]
	}
	q, err := gojq.Parse(src)
	if err != nil {
		c.Errorf("error: %v", err)
		c.Errorf("1 compile error")
		return 3
	}
	x := &jqRunner{c: c, f: f}
	in := newJQInput(c, f, operands)
	names = append(names, "$__prog_args", "$ARGS")
	values = append(values, nil, map[string]any{"named": named, "positional": in.positional})
	x.code, err = gojq.Compile(q, gojq.WithVariables(names), gojq.WithInputIter(in), gojq.WithEnvironLoader(func() []string { return c.Env }))
	if err != nil {
		c.Errorf("error: %v", err)
		c.Errorf("1 compile error")
		return 3
	}
	x.values = values
	x.write = jqWriter{indent: "  ", ascii: f.Has("a")}
	switch n, given := f.Get("indent"); {
	case f.Has("c"):
		x.write.indent = ""
	case f.Has("tab"):
		x.write.indent = "\t"
	case given:
		k, err := strconv.Atoi(n)
		if err != nil || k < 0 || k > 7 {
			return call.Usage(2, "--indent takes a number from 0 to 7")
		}
		x.write.indent = strings.Repeat(" ", k)
	}
	return x.run(ctx, in)
}

// jqArguments takes out the options that have two values, and what follows --args and --jsonargs.
func jqArguments(c *tool.Call) (args []string, named map[string]any, names []string, values []any, err error) {
	args, named = c.Args[:1:1], map[string]any{}
	rest := c.Args[1:]
	set := func(name string, v any) {
		names, values = append(names, "$"+name), append(values, v)
		named[name] = v
	}
	for len(rest) > 0 {
		a := rest[0]
		switch a {
		case "--arg", "--argjson", "--slurpfile", "--rawfile":
			if len(rest) < 3 {
				return nil, nil, nil, nil, errorf("%s takes two parameters (e.g. %s name value)", a, a)
			}
			name, text := rest[1], rest[2]
			rest = rest[3:]
			switch a {
			case "--arg":
				set(name, text)
				continue
			case "--argjson":
				v, err := jqParse(text)
				if err != nil {
					return nil, nil, nil, nil, errorf("Invalid JSON text passed to --argjson")
				}
				set(name, v)
				continue
			}
			r, err := c.Input(text)
			if err != nil {
				return nil, nil, nil, nil, errorf("Bad JSON in --%s %s %s: Could not open %s: %s", strings.TrimLeft(a, "-"), name, text, text, tool.Text(err))
			}
			b, err := io.ReadAll(r)
			r.Close()
			if err != nil {
				return nil, nil, nil, nil, err
			}
			if a == "--rawfile" {
				set(name, string(b))
				continue
			}
			list := []any{}
			d := json.NewDecoder(strings.NewReader(string(b)))
			d.UseNumber()
			for {
				var v any
				if err := d.Decode(&v); err == io.EOF {
					break
				} else if err != nil {
					return nil, nil, nil, nil, errorf("Bad JSON in --slurpfile %s %s: %v", name, text, err)
				}
				list = append(list, jqNumbers(v))
			}
			set(name, list)
		default:
			args = append(args, a)
			rest = rest[1:]
		}
	}
	return args, named, names, values, nil
}

func jqParse(s string) (any, error) {
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("more than one value")
	}
	return jqNumbers(v), nil
}

// jqNumbers turns numbers into the types that gojq computes with.
func jqNumbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := strconv.Atoi(v.String()); err == nil {
			return n
		}
		if !strings.ContainsAny(v.String(), ".eE") {
			if b, ok := new(big.Int).SetString(v.String(), 10); ok {
				return b
			}
		}
		f, err := v.Float64()
		if err != nil {
			f = math.Copysign(math.MaxFloat64, f)
		}
		return f
	case []any:
		for i := range v {
			v[i] = jqNumbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = jqNumbers(v[k])
		}
	}
	return v
}

// jqInput reads the inputs one after the other. It is gojq's iterator for `input`.
type jqInput struct {
	c          *tool.Call
	raw        bool
	names      []string
	r          io.ReadCloser
	d          *json.Decoder
	lines      []string
	positional []any
	failed     bool
}

func newJQInput(c *tool.Call, f tool.Flags, names []string) *jqInput {
	if len(names) == 0 {
		names = []string{"-"}
	}
	return &jqInput{c: c, raw: f.Has("R"), names: names, positional: []any{}}
}

// Next returns the next value, or an error as a value.
func (in *jqInput) Next() (any, bool) {
	for {
		if in.r == nil {
			if len(in.names) == 0 {
				return nil, false
			}
			name := in.names[0]
			in.names = in.names[1:]
			r, err := in.c.Input(name)
			if err != nil {
				in.c.Errorf("error: Could not open %s: %s", name, tool.Text(err))
				in.failed = true
				continue
			}
			in.r = r
			if in.raw {
				err := lines(r, '\n', func(s string, _ bool) bool { in.lines = append(in.lines, s); return true })
				if err != nil {
					return err, true
				}
			} else {
				in.d = json.NewDecoder(r)
				in.d.UseNumber()
			}
		}
		if in.raw {
			if len(in.lines) > 0 {
				s := in.lines[0]
				in.lines = in.lines[1:]
				return s, true
			}
		} else {
			var v any
			err := in.d.Decode(&v)
			if err == nil {
				return jqNumbers(v), true
			}
			if err != io.EOF {
				in.r.Close()
				in.r, in.names = nil, nil
				in.failed = true
				return fmt.Errorf("parse error: %w", err), true
			}
		}
		in.r.Close()
		in.r = nil
	}
}

func (x *jqRunner) run(ctx context.Context, in *jqInput) int {
	status := 0
	switch {
	case x.f.Has("n"):
		status = x.filter(ctx, nil)
	case x.f.Has("s") && in.raw:
		var b strings.Builder
		for _, n := range in.names {
			r, err := x.c.Input(n)
			if err != nil {
				x.c.Errorf("error: Could not open %s: %s", n, tool.Text(err))
				return 2
			}
			io.Copy(&b, r)
			r.Close()
		}
		in.names = nil
		status = x.filter(ctx, b.String())
	case x.f.Has("s"):
		all := []any{}
		for {
			v, ok := in.Next()
			if !ok {
				break
			}
			if err, bad := v.(error); bad {
				x.c.Errorf("%v", err)
				return 2
			}
			all = append(all, v)
		}
		status = x.filter(ctx, all)
	default:
		for {
			v, ok := in.Next()
			if !ok {
				break
			}
			if err, bad := v.(error); bad {
				x.c.Errorf("%v", err)
				return 2
			}
			status = max(status, x.filter(ctx, v))
		}
	}
	switch {
	case status != 0:
		return status
	case in.failed:
		return 2
	case x.f.Has("e") && !x.some:
		return 4
	case x.f.Has("e") && (x.last == nil || x.last == false):
		return 1
	}
	return 0
}

// filter writes all that the program makes of v.
func (x *jqRunner) filter(ctx context.Context, v any) int {
	out := x.code.RunWithContext(ctx, v, x.values...)
	for {
		v, ok := out.Next()
		if !ok {
			return 0
		}
		if err, bad := v.(error); bad {
			if halt, stop := err.(*gojq.HaltError); stop {
				return x.halt(halt)
			}
			x.c.Errorf("error (at <unknown>): %s", strings.TrimPrefix(err.Error(), "error: "))
			return 5
		}
		x.last, x.some = v, true
		s, text := v.(string)
		switch raw := x.f.Has("r", "j", "raw-output0"); {
		case raw && text:
			x.c.Out.WriteString(s)
		default:
			x.write.value(x.c.Out, v, 0)
		}
		switch {
		case x.f.Has("raw-output0"):
			x.c.Out.WriteByte(0)
		case !x.f.Has("j"):
			x.c.Out.WriteByte('\n')
		}
	}
}

func (x *jqRunner) halt(h *gojq.HaltError) int {
	if v := h.Value(); v != nil {
		x.c.Out.Flush()
		if s, ok := v.(string); ok {
			io.WriteString(x.c.Stderr, s)
		} else {
			w := jqWriter{}
			w.value(x.c.Out, v, 0)
		}
	}
	return h.ExitCode()
}

// jqWriter writes JSON as jq does.
type jqWriter struct {
	indent string
	ascii  bool
}

type stringWriter interface {
	io.Writer
	io.StringWriter
	io.ByteWriter
}

func (w *jqWriter) line(out stringWriter, depth int) {
	if w.indent == "" {
		return
	}
	out.WriteByte('\n')
	for range depth {
		out.WriteString(w.indent)
	}
}

func (w *jqWriter) value(out stringWriter, v any, depth int) {
	switch v := v.(type) {
	case nil:
		out.WriteString("null")
	case bool:
		out.WriteString(strconv.FormatBool(v))
	case int:
		out.WriteString(strconv.Itoa(v))
	case *big.Int:
		out.WriteString(v.String())
	case float64:
		out.WriteString(jqFloat(v))
	case string:
		w.string(out, v)
	case []any:
		if len(v) == 0 {
			out.WriteString("[]")
			return
		}
		out.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				out.WriteByte(',')
			}
			w.line(out, depth+1)
			w.value(out, e, depth+1)
		}
		w.line(out, depth)
		out.WriteByte(']')
	case map[string]any:
		if len(v) == 0 {
			out.WriteString("{}")
			return
		}
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		out.WriteByte('{')
		for i, k := range keys {
			if i > 0 {
				out.WriteByte(',')
			}
			w.line(out, depth+1)
			w.string(out, k)
			out.WriteByte(':')
			if w.indent != "" {
				out.WriteByte(' ')
			}
			w.value(out, v[k], depth+1)
		}
		w.line(out, depth)
		out.WriteByte('}')
	default:
		fmt.Fprintf(out, "%v", v)
	}
}

func jqFloat(v float64) string {
	switch {
	case math.IsNaN(v):
		return "null"
	case math.IsInf(v, 0):
		v = math.Copysign(math.MaxFloat64, v)
	}
	if v == math.Trunc(v) && math.Abs(v) < 1e17 {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	s := strconv.FormatFloat(v, 'g', 17, 64)
	if short := strconv.FormatFloat(v, 'g', -1, 64); len(short) < len(s) {
		s = short
	}
	return s
}

func (w *jqWriter) string(out stringWriter, s string) {
	out.WriteByte('"')
	for i, r := range s {
		switch {
		case r == '"' || r == '\\':
			out.WriteByte('\\')
			out.WriteByte(byte(r))
		case r < ' ' && strings.IndexByte("\b\f\n\r\t", byte(r)) >= 0:
			out.WriteByte('\\')
			out.WriteByte("bfnrt"[strings.IndexByte("\b\f\n\r\t", byte(r))])
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(out, `\u%04x`, r)
		case r >= 0x80 && w.ascii:
			if r > 0xffff {
				r -= 0x10000
				fmt.Fprintf(out, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
			} else {
				fmt.Fprintf(out, `\u%04x`, r)
			}
		case r == utf8.RuneError:
			out.WriteString("\ufffd")
		default:
			_, size := utf8.DecodeRuneInString(s[i:])
			out.WriteString(s[i : i+size])
		}
	}
	out.WriteByte('"')
}
