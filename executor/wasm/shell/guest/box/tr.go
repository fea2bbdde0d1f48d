package box

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

var classes = map[string]func(byte) bool{
	"alpha":  isLetter,
	"digit":  isDigit,
	"alnum":  func(b byte) bool { return isLetter(b) || isDigit(b) },
	"upper":  func(b byte) bool { return b >= 'A' && b <= 'Z' },
	"lower":  func(b byte) bool { return b >= 'a' && b <= 'z' },
	"space":  func(b byte) bool { return b == ' ' || b >= '\t' && b <= '\r' },
	"blank":  func(b byte) bool { return b == ' ' || b == '\t' },
	"punct":  func(b byte) bool { return b > ' ' && b < 0x7f && !isLetter(b) && !isDigit(b) },
	"print":  func(b byte) bool { return b >= ' ' && b < 0x7f },
	"graph":  func(b byte) bool { return b > ' ' && b < 0x7f },
	"cntrl":  func(b byte) bool { return b < ' ' || b == 0x7f },
	"xdigit": func(b byte) bool { return isDigit(b) || b|0x20 >= 'a' && b|0x20 <= 'f' },
}

// trSet expands one set of tr. fill is where in it a [c*] stands that takes what the
// first set has more, or -1.
func trSet(s string, second bool) (set []byte, fill int, err error) {
	fill = -1
	for i := 0; i < len(s); {
		if name, _, ok := strings.Cut(s[i:], ":]"); ok && strings.HasPrefix(name, "[:") {
			is := classes[name[2:]]
			if is == nil {
				return nil, 0, fmt.Errorf("invalid character class '%s'", name[2:])
			}
			for b := range 256 {
				if is(byte(b)) {
					set = append(set, byte(b))
				}
			}
			i += len(name) + 2
			continue
		}
		if len(s) >= i+5 && s[i:i+2] == "[=" && s[i+3:i+5] == "=]" {
			set = append(set, s[i+2])
			i += 5
			continue
		}
		if s[i] == '[' && second {
			b, used := trByte(s[i+1:])
			if rest := s[i+1+used:]; used > 0 && strings.HasPrefix(rest, "*") {
				if count, _, ok := strings.Cut(rest[1:], "]"); ok {
					n, err := tool.ParseInt(count)
					switch {
					case count == "" || err == nil && n == 0:
						fill = len(set)
						set = append(set, b)
					case err != nil || n < 0 || n > 256:
						return nil, 0, fmt.Errorf("invalid repeat count '%s' in [c*n] construct", count)
					default:
						set = append(set, strings.Repeat(string([]byte{b}), int(n))...)
					}
					i += 1 + used + 1 + len(count) + 1
					continue
				}
			}
		}
		lo, used := trByte(s[i:])
		i += used
		if i+1 < len(s) && s[i] == '-' {
			hi, used := trByte(s[i+1:])
			if hi < lo {
				return nil, 0, fmt.Errorf("range-endpoints of '%c-%c' are in reverse collating sequence order", lo, hi)
			}
			for b := int(lo); b <= int(hi); b++ {
				set = append(set, byte(b))
			}
			i += 1 + used
			continue
		}
		set = append(set, lo)
	}
	return set, fill, nil
}

// trByte reads one byte, which may be escaped.
func trByte(s string) (b byte, used int) {
	if s == "" {
		return 0, 0
	}
	if s[0] != '\\' || len(s) == 1 {
		return s[0], 1
	}
	if k := strings.IndexByte(`abfnrtv\`, s[1]); k >= 0 {
		return "\a\b\f\n\r\t\v\\"[k], 2
	}
	n, end := 0, 1
	for end < len(s) && end < 4 && s[end] >= '0' && s[end] <= '7' && n*8+int(s[end]-'0') < 256 {
		n = n*8 + int(s[end]-'0')
		end++
	}
	if end > 1 {
		return byte(n), end
	}
	return s[1], 2
}

func tr(_ context.Context, c *tool.Call) int {
	f, sets, status, ok := c.Parse(tool.Options{Short: "+cCdst", Long: "complement=c delete=d squeeze-repeats=s truncate-set1=t"})
	if !ok {
		return status
	}
	del, squeeze := f.Has("d"), f.Has("s")
	switch {
	case len(sets) == 0:
		return c.Usage(1, "missing operand")
	case len(sets) == 1 && !del && !squeeze || len(sets) == 1 && del && squeeze:
		return c.Usage(1, "missing operand after '%s'", sets[0])
	case len(sets) > 2:
		return c.Usage(1, "extra operand '%s'", sets[2])
	case len(sets) == 2 && del && !squeeze:
		return c.Usage(1, "extra operand '%s'", sets[1])
	}
	one, _, err := trSet(sets[0], false)
	if err != nil {
		return c.Fail("%v", err)
	}
	var in [256]bool
	for _, b := range one {
		in[b] = true
	}
	if f.Has("c", "C") {
		one = one[:0:0]
		for b := range 256 {
			if in[b] = !in[b]; in[b] {
				one = append(one, byte(b))
			}
		}
	}
	var to [256]byte
	for b := range 256 {
		to[b] = byte(b)
	}
	squeezed := in
	if len(sets) == 2 {
		two, fill, err := trSet(sets[1], true)
		if err != nil {
			return c.Fail("%v", err)
		}
		squeezed = [256]bool{}
		for _, b := range two {
			squeezed[b] = true
		}
		if !del {
			switch {
			case len(two) == 0 && len(one) > 0:
				return c.Fail("when not truncating set1, string2 must be non-empty")
			case fill >= 0 && len(two) < len(one):
				more := strings.Repeat(string(two[fill:fill+1]), len(one)-len(two))
				two = slices.Concat(two[:fill], []byte(more), two[fill:])
			case f.Has("t"):
				one = one[:min(len(one), len(two))]
			}
			for i, b := range one {
				to[b] = two[min(i, len(two)-1)]
			}
		}
	}
	buf := make([]byte, 32<<10)
	last := -1
	for {
		n, err := c.Stdin.Read(buf)
		for _, b := range buf[:n] {
			if del && in[b] {
				continue
			}
			if !del {
				b = to[b]
			}
			if squeeze && squeezed[b] && last == int(b) {
				continue
			}
			last = int(b)
			c.Out.WriteByte(b)
		}
		if err == io.EOF {
			return 0
		}
		if err != nil {
			return c.Fail("read error: %s", tool.Text(err))
		}
	}
}
