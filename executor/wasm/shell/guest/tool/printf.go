package tool

import (
	"fmt"
	"io"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Escapes says which of the three dialects of backslash is meant.
type Escapes int

// The dialects differ in how an octal number is written, and whether \c ends all output.
const (
	FormatEscapes Escapes = iota // printf's format: \NNN
	EchoEscapes                  // echo -e: \0NNN, \c
	ArgEscapes                   // printf's %b: \NNN or \0NNN, \c
)

// Unescape replaces the backslash escapes of s. end is true if \c said that
// nothing more is to be written.
func Unescape(s string, e Escapes) (out string, end bool) {
	if strings.IndexByte(s, '\\') < 0 {
		return s, false
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		if k := strings.IndexByte(`abefnrtvE\`, s[i]); k >= 0 {
			b.WriteByte("\a\b\x1b\f\n\r\t\v\x1b\\"[k])
			continue
		}
		switch c := s[i]; {
		case c == 'c' && e != FormatEscapes:
			return b.String(), true
		case (c == '"' || c == '\'' || c == '?') && e == FormatEscapes:
			b.WriteByte(c)
		case c == '0' && e != FormatEscapes:
			n, used := number(s[i+1:], 8, 3)
			b.WriteByte(byte(n))
			i += used
		case c >= '0' && c <= '7' && e != EchoEscapes:
			n, used := number(s[i:], 8, 3)
			b.WriteByte(byte(n))
			i += used - 1
		case c == 'x' || c == 'u' || c == 'U':
			most := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
			n, used := number(s[i+1:], 16, most)
			switch {
			case used == 0:
				b.WriteString(s[i-1 : i+1])
			case c == 'x':
				b.WriteByte(byte(n))
			default:
				b.WriteRune(rune(n))
			}
			i += used
		default:
			b.WriteString(s[i-1 : i+1])
		}
	}
	return b.String(), false
}

// number reads up to most digits at the start of s.
func number(s string, base, most int) (n uint32, used int) {
	for used < len(s) && used < most {
		d, err := strconv.ParseUint(s[used:used+1], base, 8)
		if err != nil {
			break
		}
		n = n*uint32(base) + uint32(d)
		used++
	}
	return n, used
}

// Printf is the command printf: it writes format with args to w, again and again
// until all args are used, and returns the exit status.
func Printf(c *Call, w io.Writer, format string, args []string) int {
	p := printer{c: c, w: w, args: args}
	for {
		left := len(p.args)
		if !p.once(format) || len(p.args) == 0 || len(p.args) == left {
			return p.status
		}
	}
}

type printer struct {
	c      *Call
	w      io.Writer
	args   []string
	status int
}

// maxWidth bounds what one field may be padded to.
const maxWidth = 1 << 20

func (p *printer) bad(format string, a ...any) bool {
	p.status = p.c.Fail(format, a...)
	return false
}

func (p *printer) next() (string, bool) {
	if len(p.args) == 0 {
		return "", false
	}
	a := p.args[0]
	p.args = p.args[1:]
	return a, true
}

// once writes the format once. It returns false if nothing more is to be written.
func (p *printer) once(format string) bool {
	for format != "" {
		i := strings.IndexByte(format, '%')
		if i < 0 {
			i = len(format)
		}
		text, _ := Unescape(format[:i], FormatEscapes)
		io.WriteString(p.w, text)
		if format = format[i:]; format == "" {
			return true
		}
		if strings.HasPrefix(format, "%%") {
			io.WriteString(p.w, "%")
			format = format[2:]
			continue
		}
		if strings.HasPrefix(format, "%(") {
			if verb, rest, ok := strings.Cut(format[2:], ")T"); ok {
				if !p.time(verb) {
					return false
				}
				format = rest
				continue
			}
		}
		spec := "%"
		j := 1
		for j < len(format) && strings.IndexByte("-+ #0", format[j]) >= 0 {
			j++
		}
		spec += format[1:j]
		width, j, ok := p.amount(format, j)
		if !ok {
			return false
		}
		if width < 0 {
			spec, width = spec+"-", -width
		}
		precision := -1
		if j < len(format) && format[j] == '.' {
			if precision, j, ok = p.amount(format, j+1); !ok {
				return false
			}
		}
		for j < len(format) && strings.IndexByte("hlLjzt", format[j]) >= 0 {
			j++
		}
		if j == len(format) {
			return p.bad("`%s': missing format character", format)
		}
		if width > 0 {
			spec += strconv.Itoa(width)
		}
		if !p.verb(spec, precision, format[j]) {
			return false
		}
		format = format[j+1:]
	}
	return true
}

// time is %(FORMAT)T, of seconds since the epoch; none or -1 is now, and so is -2, the start of the shell.
func (p *printer) time(format string) bool {
	t := time.Now()
	if len(p.args) > 0 {
		if n := p.integer(); n >= 0 || n < -2 {
			t = time.Unix(n, 0)
		}
	}
	if format == "" {
		format = "%X"
	}
	io.WriteString(p.w, Strftime(format, t.In(Zone(p.c))))
	return true
}

// amount reads a width or a precision, which an argument may give.
func (p *printer) amount(format string, at int) (n, next int, ok bool) {
	if at < len(format) && format[at] == '*' {
		a, given := p.next()
		if !given {
			return 0, at + 1, true
		}
		n, err := strconv.Atoi(a)
		if err != nil || n > maxWidth || n < -maxWidth {
			return 0, 0, p.bad("%s: invalid number", a)
		}
		return n, at + 1, true
	}
	end := at
	for end < len(format) && format[end] >= '0' && format[end] <= '9' {
		end++
	}
	if end > at {
		var err error
		if n, err = strconv.Atoi(format[at:end]); err != nil || n > maxWidth {
			return 0, 0, p.bad("%s: field too wide", format[at:end])
		}
	}
	return n, end, true
}

func (p *printer) verb(spec string, precision int, verb byte) bool {
	dot := ""
	if precision >= 0 {
		dot = "." + strconv.Itoa(precision)
	}
	switch verb {
	case 's', 'b', 'q', 'c':
		a, _ := p.next()
		end := false
		switch verb {
		case 'b':
			a, end = Unescape(a, ArgEscapes)
		case 'q':
			a = ShellQuote(a)
		case 'c':
			if len(a) > 0 {
				a = a[:1]
			}
		}
		io.WriteString(p.w, pad(spec, a, precision))
		return !end
	case 'd', 'i':
		n := p.integer()
		p.int(spec, dot, "d", n < 0, uint64(n))
	case 'u':
		p.int(spec, dot, "d", false, uint64(p.integer()))
	case 'o', 'x', 'X':
		p.int(spec, dot, string(verb), false, uint64(p.integer()))
	case 'e', 'E', 'f', 'F', 'g', 'G':
		v := p.float()
		if dot == "" {
			dot = ".6"
		}
		s := ""
		if v.big != nil && verb != 'g' && verb != 'G' && !strings.Contains(spec, "#") {
			s = fmt.Sprintf(spec+dot+strings.ToLower(string(verb)), v.big)
			if verb == 'E' {
				s = strings.ToUpper(s)
			}
		} else {
			s = fmt.Sprintf(spec+dot+string(verb), v.float)
		}
		if math.IsInf(v.float, 0) || math.IsNaN(v.float) {
			s = pad(strings.ReplaceAll(spec, "0", ""), strings.ToLower(strings.TrimPrefix(fmt.Sprint(v.float), "+")), -1)
		}
		io.WriteString(p.w, s)
	default:
		return p.bad("`%c': invalid format character", verb)
	}
	return true
}

// int writes an integer as C does: a precision turns the flag 0 off, and gives
// the least number of digits.
func (p *printer) int(spec, dot, verb string, negative bool, n uint64) {
	width := strings.TrimLeft(spec, "%-+ #0")
	flags := spec[1 : len(spec)-len(width)]
	if dot != "" {
		flags = strings.ReplaceAll(flags, "0", "")
	}
	if verb == "d" {
		flags = strings.ReplaceAll(flags, "#", "")
	} else {
		flags = strings.NewReplacer("+", "", " ", "").Replace(flags)
		if n == 0 {
			flags = strings.ReplaceAll(flags, "#", "")
		}
	}
	format := "%" + flags + width + dot + verb
	if negative {
		fmt.Fprintf(p.w, format, int64(n))
		return
	}
	fmt.Fprintf(p.w, format, n)
}

// pad is %s for bytes: C counts them where Go counts runes.
func pad(spec, s string, precision int) string {
	if precision >= 0 && precision < len(s) {
		s = s[:precision]
	}
	w := strings.TrimLeft(spec, "%-+ #0")
	width, _ := strconv.Atoi(w)
	fill := strings.Repeat(" ", max(0, width-len(s)))
	if strings.Contains(spec[:len(spec)-len(w)], "-") {
		return s + fill
	}
	return fill + s
}

func (p *printer) integer() int64 {
	a, given := p.next()
	if !given || a == "" {
		return 0
	}
	if len(a) > 1 && (a[0] == '\'' || a[0] == '"') {
		r, _ := utf8.DecodeRuneInString(a[1:])
		return int64(r)
	}
	n, err := ParseInt(strings.TrimLeft(a, " \t\n"))
	if err != nil {
		p.bad("%s: invalid number", a)
	}
	return n
}

// ParseInt reads an integer as C's strtoimax with base 0: decimal, octal behind 0
// or hexadecimal behind 0x. Of what it cannot read it returns the beginning with an
// error; an unsigned number above the largest is taken as its bits.
func ParseInt(s string) (int64, error) {
	digits := strings.TrimLeft(s, "+-")
	if len(s)-len(digits) > 1 {
		return 0, strconv.ErrSyntax
	}
	base, rest := 10, digits
	switch {
	case len(digits) > 1 && digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'X'):
		base, rest = 16, digits[2:]
	case len(digits) > 1 && digits[0] == '0':
		base, rest = 8, digits[1:]
	}
	end := 0
	for end < len(rest) {
		if _, err := strconv.ParseUint(rest[end:end+1], base, 8); err != nil {
			break
		}
		end++
	}
	var n uint64
	var err error
	if end > 0 {
		n, err = strconv.ParseUint(rest[:end], base, 64)
	} else if digits != "0" {
		err = strconv.ErrSyntax
	}
	if err == nil && end != len(rest) {
		err = strconv.ErrSyntax
	}
	if strings.HasPrefix(s, "-") {
		return -int64(n), err
	}
	return int64(n), err
}

// real is a number as printf has it: with a mantissa of 64 bits, if it is a plain one.
type real struct {
	float float64
	big   *big.Float
}

func (p *printer) float() real {
	a, given := p.next()
	if !given {
		return real{}
	}
	if len(a) > 1 && (a[0] == '\'' || a[0] == '"') {
		r, _ := utf8.DecodeRuneInString(a[1:])
		return real{float: float64(r)}
	}
	a = strings.TrimSpace(a)
	v, err := strconv.ParseFloat(a, 64)
	if err != nil {
		n, err := ParseInt(a)
		if err != nil {
			p.bad("%s: invalid number", a)
		}
		return real{float: float64(n)}
	}
	if math.Abs(v) > 1e300 || v == 0 || math.Abs(v) < 1e-300 || v != v {
		return real{float: v}
	}
	exact, _, err := big.ParseFloat(a, 0, 64, big.ToNearestEven)
	if err != nil {
		exact = nil
	}
	return real{v, exact}
}

// ShellQuote quotes as printf's %q: with backslashes, or as $'…' if there is what
// cannot be printed.
func ShellQuote(s string) string {
	if s == "" {
		return "''"
	}
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == 0x7f || s[i] >= 0x80 && !utf8.ValidString(s) {
			return dollarQuote(s)
		}
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if strings.IndexByte(" !\"$&'()*,;<>?[\\]^`{|}", s[i]) >= 0 || i == 0 && (s[i] == '#' || s[i] == '~') {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func dollarQuote(s string) string {
	var b strings.Builder
	b.WriteString("$'")
	for i := 0; i < len(s); i++ {
		switch k := strings.IndexByte("\a\b\x1b\f\n\r\t\v\\'", s[i]); {
		case k >= 0:
			b.WriteString(`\` + `abEfnrtv\'`[k:k+1])
		case s[i] < ' ' || s[i] >= 0x7f:
			fmt.Fprintf(&b, `\%03o`, s[i])
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String() + "'"
}
