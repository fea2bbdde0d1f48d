package box

import (
	"context"
	"fmt"
	"math"
	"math/big"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func yes(_ context.Context, c *tool.Call) int {
	words := c.Args[1:]
	if len(words) == 0 {
		words = []string{"y"}
	}
	line := strings.Join(words, " ") + "\n"
	block := strings.Repeat(line, max(1, 4096/len(line)))
	for {
		if _, err := c.Out.WriteString(block); err != nil {
			return 1
		}
	}
}

func basename(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "+as:z", Long: "multiple=a suffix:=s zero=z"})
	if !ok {
		return status
	}
	if len(names) == 0 {
		return c.Usage(1, "missing operand")
	}
	suffix, multiple := f.Get("s")
	if !multiple && !f.Has("a") {
		if len(names) > 2 {
			return c.Usage(1, "extra operand '%s'", names[2])
		}
		if len(names) == 2 {
			suffix, names = names[1], names[:1]
		}
	}
	for _, n := range names {
		b := n
		if n != "" {
			b = path.Base(n)
		}
		if b != suffix {
			b = strings.TrimSuffix(b, suffix)
		}
		c.Out.WriteString(b + end(f))
	}
	return 0
}

func dirname(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "z", Long: "zero=z"})
	if !ok {
		return status
	}
	if len(names) == 0 {
		return c.Usage(1, "missing operand")
	}
	for _, n := range names {
		c.Out.WriteString(dir(n) + end(f))
	}
	return 0
}

func dir(name string) string {
	if name == "" {
		return "."
	}
	if name = strings.TrimRight(name, "/"); name == "" {
		return "/"
	}
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "."
	}
	if d := strings.TrimRight(name[:i], "/"); d != "" {
		return d
	}
	return "/"
}

// end is what ends a line: a NUL with the option -z.
func end(f tool.Flags) string {
	if f.Has("z") {
		return "\x00"
	}
	return "\n"
}

// echo and printf are for those who do not call the shell's builtins.
func echo(ctx context.Context, c *tool.Call) int   { return shellBuiltin(ctx, c, "echo") }
func printf(ctx context.Context, c *tool.Call) int { return shellBuiltin(ctx, c, "printf") }

func shellBuiltin(ctx context.Context, c *tool.Call, name string) int {
	return c.Child(ctx, append([]string{"sh", "-c", name + ` "$@"`, c.Args[0]}, c.Args[1:]...))
}

func seq(_ context.Context, c *tool.Call) int {
	// A negative number is no option.
	for i := 1; i < len(c.Args); i++ {
		a := c.Args[i]
		if len(a) > 1 && a[0] == '-' && (isDigit(a[1]) || a[1] == '.') {
			c.Args = slices.Concat(c.Args[:i], []string{"--"}, c.Args[i:])
			break
		}
		if a == "-s" || a == "-f" {
			i++
		} else if a == "" || a[0] != '-' {
			break
		}
	}
	f, n, status, ok := c.Parse(tool.Options{Short: "+f:s:w", Long: "format:=f separator:=s equal-width=w"})
	if !ok {
		return status
	}
	if len(n) == 0 {
		return c.Usage(1, "missing operand")
	}
	if len(n) > 3 {
		return c.Usage(1, "extra operand '%s'", n[3])
	}
	first, step, last := new(big.Rat).SetInt64(1), new(big.Rat).SetInt64(1), new(big.Rat)
	places := 0
	for i, s := range n {
		v, ok := new(big.Rat).SetString(s)
		if !ok || len(s) > 64 || strings.ContainsAny(s, "/eE") {
			return c.Usage(1, "invalid floating point argument: '%s'", s)
		}
		if _, frac, _ := strings.Cut(s, "."); i < len(n)-1 || len(n) == 1 {
			places = max(places, len(frac))
		}
		switch {
		case i == len(n)-1:
			last = v
		case i == 0:
			first = v
		default:
			step = v
		}
	}
	if len(n) == 1 {
		places = 0
	}
	if step.Sign() == 0 {
		return c.Usage(1, "invalid Zero increment value: '%s'", n[1])
	}
	sep := "\n"
	if s, given := f.Get("s"); given {
		sep = s
	}
	format, formatted := f.Get("f")
	width := 0
	if f.Has("w") {
		width = max(len(first.FloatString(places)), len(last.FloatString(places)))
	}
	one := true
	for v := new(big.Rat).Set(first); v.Cmp(last)*step.Sign() <= 0; v.Add(v, step) {
		if !one {
			c.Out.WriteString(sep)
		}
		one = false
		s := v.FloatString(places)
		switch {
		case formatted:
			var b strings.Builder
			if status := tool.Printf(c, &b, format, []string{s}); status != 0 {
				return status
			}
			s = b.String()
		case width > len(s) && s[0] == '-':
			s = "-" + strings.Repeat("0", width-len(s)) + s[1:]
		case width > len(s):
			s = strings.Repeat("0", width-len(s)) + s
		}
		if _, err := c.Out.WriteString(s); err != nil {
			return 1
		}
	}
	if !one {
		c.Out.WriteByte('\n')
	}
	return 0
}

func sleep(ctx context.Context, c *tool.Call) int {
	_, args, status, ok := c.Parse(tool.Options{})
	if !ok {
		return status
	}
	if len(args) == 0 {
		return c.Usage(1, "missing operand")
	}
	var total time.Duration
	for _, a := range args {
		d, ok := interval(a)
		if !ok {
			return c.Usage(1, "invalid time interval '%s'", a)
		}
		total += d
	}
	if tool.Sleep(ctx, total) != nil {
		return 137
	}
	return 0
}

// interval reads a number of seconds, or of s, m, h or d.
func interval(s string) (time.Duration, bool) {
	unit := time.Second
	switch {
	case s == "infinity" || s == "inf":
		return math.MaxInt64, true
	case strings.HasSuffix(s, "s"):
		s = s[:len(s)-1]
	case strings.HasSuffix(s, "m"):
		unit, s = time.Minute, s[:len(s)-1]
	case strings.HasSuffix(s, "h"):
		unit, s = time.Hour, s[:len(s)-1]
	case strings.HasSuffix(s, "d"):
		unit, s = 24*time.Hour, s[:len(s)-1]
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || v < 0 || math.IsNaN(v) {
		return 0, false
	}
	if v *= float64(unit); v >= math.MaxInt64/2 {
		return math.MaxInt64 / 2, true
	}
	return time.Duration(v), true
}

// What uname says: the same on every system, since the guest sees none.
const (
	sysname, nodename, release, version, machine, opsys = "Linux", "sandboxd", "0.0.0", "#1 wasm", "wasm32", "wasi"
)

func uname(_ context.Context, c *tool.Call) int {
	f, rest, status, ok := c.Parse(tool.Options{Short: "asnrvmpio",
		Long: "all=a kernel-name=s nodename=n kernel-release=r kernel-version=v machine=m processor=p hardware-platform=i operating-system=o"})
	if !ok {
		return status
	}
	if len(rest) > 0 {
		return c.Usage(1, "extra operand '%s'", rest[0])
	}
	var words []string
	for _, w := range [][2]string{{"s", sysname}, {"n", nodename}, {"r", release}, {"v", version}, {"m", machine}, {"o", opsys}} {
		if f.Has(w[0]) || f.Has("a") || w[0] == "s" && len(f) == 0 {
			words = append(words, w[1])
		}
	}
	for _, u := range []string{"p", "i"} {
		if f.Has(u) {
			words = append(words, "unknown")
		}
	}
	fmt.Fprintln(c.Out, strings.Join(words, " "))
	return 0
}
