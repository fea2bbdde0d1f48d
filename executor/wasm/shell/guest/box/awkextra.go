package box

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// awkExtras are functions of GNU awk's that a program has where it calls them.
var awkExtras = map[string]any{
	"and":      func(a, b float64) float64 { return float64(int64(a) & int64(b)) },
	"or":       func(a, b float64) float64 { return float64(int64(a) | int64(b)) },
	"xor":      func(a, b float64) float64 { return float64(int64(a) ^ int64(b)) },
	"lshift":   func(a, n float64) float64 { return float64(int64(a) << (uint64(n) & 63)) },
	"rshift":   func(a, n float64) float64 { return float64(int64(a) >> (uint64(n) & 63)) },
	"systime":  func() float64 { return float64(time.Now().Unix()) },
	"strftime": awkStrftime,
	"strtonum": awkStrtonum,
	"gensub":   awkGensub,
}

// awkStrftime has the parameters format, time and whether it is in UTC, of which each may be missing. There is no other zone here.
func awkStrftime(args ...string) (string, error) {
	format, at := "%a %b %e %H:%M:%S %Z %Y", time.Now()
	if len(args) > 0 {
		format = args[0]
	}
	if len(args) > 1 {
		n, err := strconv.ParseFloat(args[1], 64)
		if err != nil {
			return "", fmt.Errorf("strftime: %q is no time", args[1])
		}
		at = time.Unix(int64(n), 0)
	}
	return tool.Strftime(format, at.UTC()), nil
}

// awkStrtonum reads a number in C's notation, up to where it is none.
func awkStrtonum(s string) float64 {
	s = strings.TrimLeft(s, " \t\n")
	if digits := leading(s, "-+0123456789abcdefABCDEFxX"); strings.HasPrefix(strings.TrimLeft(digits, "-+"), "0") && !strings.HasPrefix(s[len(digits):], ".") {
		for ; digits != ""; digits = digits[:len(digits)-1] {
			if n, err := strconv.ParseInt(digits, 0, 64); err == nil {
				return float64(n)
			}
		}
	}
	for digits := leading(s, "-+0123456789.eE"); digits != ""; digits = digits[:len(digits)-1] {
		if n, err := strconv.ParseFloat(digits, 64); err == nil {
			return n
		}
	}
	return 0
}

// leading is what of s consists of set.
func leading(s, set string) string { return s[:len(s)-len(strings.TrimLeft(s, set))] }

// awkGensub replaces the matches of an expression in s, all or the one of that number.
func awkGensub(expr, to, how, s string) (string, error) {
	re, err := regexp.Compile("(?s:" + expr + ")")
	if err != nil {
		return "", fmt.Errorf("gensub: %w", err)
	}
	nth := 0
	if !strings.HasPrefix(how, "g") && !strings.HasPrefix(how, "G") {
		nth = max(1, int(awkStrtonum(how)))
	}
	var b strings.Builder
	at := 0
	for i, m := range re.FindAllStringSubmatchIndex(s, -1) {
		if nth > 0 && i+1 != nth {
			continue
		}
		b.WriteString(s[at:m[0]])
		for k := 0; k < len(to); k++ {
			group := -1
			switch {
			case to[k] == '&':
				group = 0
			case to[k] == '\\' && k+1 < len(to):
				k++
				if to[k] >= '0' && to[k] <= '9' {
					group = int(to[k] - '0')
				} else if to[k] != '&' && to[k] != '\\' {
					b.WriteByte('\\')
				}
			}
			switch {
			case group < 0:
				b.WriteByte(to[k])
			case 2*group+1 < len(m) && m[2*group] >= 0:
				b.WriteString(s[m[2*group]:m[2*group+1]])
			}
		}
		at = m[1]
	}
	return b.String() + s[at:], nil
}
