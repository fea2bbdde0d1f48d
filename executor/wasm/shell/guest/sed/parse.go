// Package sed is the stream editor with the commands of POSIX and GNU, but for e, which
// runs what it reads.
package sed

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/regex"
)

type addressKind byte

const (
	atLine     addressKind = iota
	atLast                 // $
	atRegex                // /re/
	atStep                 // first~step
	atZero                 // 0, before a regex
	atPlus                 // +n
	atMultiple             // ~n
)

type address struct {
	kind    addressKind
	n, step int
	re      *regex.Regexp // nil is the last one used
}

type command struct {
	a1, a2 *address
	not    bool
	name   byte
	text   string // of a, i, c; the file of r, R, w, W; the label of b, t, T, :
	number int    // of q, Q, l, L
	target int    // where b, t, T, { go to
	re     *regex.Regexp
	parts  []part // the replacement of s
	global bool
	nth    int
	print  bool
	file   string // of s///w
	table  map[rune]rune

	active bool // within a range
	end    int  // the last line of a range that is known by number
}

// part is a piece of a replacement: text, a group, or a change of case.
type part struct {
	text  string
	group int  // -1 for text
	to    byte // U, L, u, l, E; 0 is none
}

type parser struct {
	src      string
	at       int
	extended bool
	cmds     []*command
	open     []int
	labels   map[string]int
}

// The limits of a script.
const (
	maxScript   = 1 << 20
	maxCommands = 10000
)

// fault is an error at a place in the script.
type fault struct {
	at  int
	msg string
}

func (f fault) Error() string { return fmt.Sprintf("-e expression #1, char %d: %s", f.at, f.msg) }

func (p *parser) fault(format string, a ...any) error {
	return fault{p.at, fmt.Sprintf(format, a...)}
}

func parse(src string, extended bool) ([]*command, error) {
	if len(src) > maxScript {
		return nil, errors.New("script too long")
	}
	p := &parser{src: src, extended: extended, labels: map[string]int{}}
	for {
		p.skip(" \t\n;")
		if p.at == len(p.src) {
			break
		}
		if p.src[p.at] == '#' {
			p.line()
			continue
		}
		if err := p.command(); err != nil {
			return nil, err
		}
		if len(p.cmds) > maxCommands {
			return nil, p.fault("too many commands")
		}
	}
	if len(p.open) > 0 {
		return nil, fault{0, "unmatched `{'"}
	}
	for _, c := range p.cmds {
		if strings.IndexByte("btT", c.name) < 0 {
			continue
		}
		c.target = len(p.cmds)
		if c.text != "" {
			to, ok := p.labels[c.text]
			if !ok {
				return nil, fmt.Errorf("can't find label for jump to `%s'", c.text)
			}
			c.target = to
		}
	}
	return p.cmds, nil
}

func (p *parser) skip(set string) {
	for p.at < len(p.src) && strings.IndexByte(set, p.src[p.at]) >= 0 {
		p.at++
	}
}

func (p *parser) peek() byte {
	if p.at < len(p.src) {
		return p.src[p.at]
	}
	return 0
}

// line takes the rest of the line.
func (p *parser) line() string {
	s, _, _ := strings.Cut(p.src[p.at:], "\n")
	p.at += len(s)
	return s
}

// word takes what stands before a blank, a semicolon or the end of the line.
func (p *parser) word() string {
	s := p.src[p.at:]
	if i := strings.IndexAny(s, "; \t\n"); i >= 0 {
		s = s[:i]
	}
	p.at += len(s)
	return s
}

func (p *parser) number() (int, bool) {
	s := p.src[p.at:]
	s = s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
	n, err := strconv.Atoi(s)
	if err != nil || n > 1<<40 {
		return 0, false
	}
	p.at += len(s)
	return n, true
}

func (p *parser) address(second bool) (*address, error) {
	switch c := p.peek(); {
	case c >= '0' && c <= '9':
		n, ok := p.number()
		if !ok {
			return nil, p.fault("invalid usage of line address 0")
		}
		if p.peek() == '~' && !second {
			p.at++
			step, _ := p.number()
			return &address{kind: atStep, n: n, step: step}, nil
		}
		if n == 0 && !second {
			return &address{kind: atZero}, nil
		}
		return &address{kind: atLine, n: n}, nil
	case c == '$':
		p.at++
		return &address{kind: atLast}, nil
	case second && (c == '+' || c == '~'):
		p.at++
		n, ok := p.number()
		if !ok {
			return nil, p.fault("expected newer version of sed")
		}
		if c == '+' {
			return &address{kind: atPlus, n: n}, nil
		}
		return &address{kind: atMultiple, n: n}, nil
	case c == '/' || c == '\\':
		p.at++
		delim := byte('/')
		if c == '\\' {
			if delim = p.peek(); delim == 0 || delim == '\n' || delim == '\\' {
				return nil, p.fault("unexpected `,'")
			}
			p.at++
		}
		pattern, ok := p.delimited(delim, true)
		if !ok {
			return nil, p.fault("unterminated address regex")
		}
		o := regex.Options{Extended: p.extended}
		for p.peek() == 'I' || p.peek() == 'M' {
			o.IgnoreCase = o.IgnoreCase || p.peek() == 'I'
			o.Multiline = o.Multiline || p.peek() == 'M'
			p.at++
		}
		re, err := p.compile(pattern, o)
		return &address{kind: atRegex, re: re}, err
	}
	return nil, nil
}

func (p *parser) compile(pattern string, o regex.Options) (*regex.Regexp, error) {
	if pattern == "" {
		return nil, nil
	}
	re, err := regex.Compile(decode(pattern), o)
	if err != nil {
		return nil, p.fault("%v", err)
	}
	return re, nil
}

// decode puts the characters that \dNNN, \oNNN and \xHH stand for in their place.
func decode(pattern string) string {
	var b strings.Builder
	for i := 0; i < len(pattern); i++ {
		if pattern[i] != '\\' || i+1 == len(pattern) {
			b.WriteByte(pattern[i])
			continue
		}
		i++
		if c, used := coded(pattern[i:]); used > 0 {
			b.WriteByte(c)
			i += used - 1
			continue
		}
		b.WriteString(pattern[i-1 : i+1])
	}
	return b.String()
}

// delimited takes what stands before the next delim that is not escaped, in a regex
// also not within brackets. An escaped delim loses its backslash.
func (p *parser) delimited(delim byte, isRegex bool) (string, bool) {
	var b strings.Builder
	bracket := -1 // where a bracket expression began in b
	for ; p.at < len(p.src); p.at++ {
		c := p.src[p.at]
		switch {
		case bracket >= 0:
			b.WriteByte(c)
			if c == '\n' {
				return "", false
			}
			inside := b.String()[bracket+1:]
			if c == ']' && inside != "]" && inside != "^]" && !inClass(inside) {
				bracket = -1
			}
		case c == delim:
			p.at++
			return b.String(), true
		case c == '\n' && isRegex:
			return "", false
		case c == '\\' && p.at+1 < len(p.src):
			p.at++
			switch next := p.src[p.at]; {
			case next == delim && !isRegex && delim == '&':
				b.WriteString(`\&`)
			case next == delim && delim != 'n':
				b.WriteByte(next)
			case next == '\n' && isRegex:
				b.WriteByte('\n')
			default:
				b.WriteByte(c)
				b.WriteByte(next)
			}
		default:
			b.WriteByte(c)
			if c == '[' && isRegex {
				bracket = b.Len() - 1
			}
		}
	}
	return "", false
}

// inClass tells whether a bracket expression, so far, ends within [:name:] or its like.
func inClass(inside string) bool {
	for _, k := range []string{":", ".", "="} {
		i := strings.LastIndex(inside, "["+k)
		if i >= 0 && strings.HasSuffix(inside, k+"]") && len(inside)-i >= 4 {
			// The ] just written closes the class.
			return strings.Count(inside[i:], k+"]") == 1
		}
	}
	return false
}

func (p *parser) command() error {
	c := &command{}
	var err error
	if c.a1, err = p.address(false); err != nil {
		return err
	}
	if c.a1 != nil {
		p.skip(" \t")
		if p.peek() == ',' {
			p.at++
			p.skip(" \t")
			if c.a2, err = p.address(true); err != nil {
				return err
			}
			if c.a2 == nil {
				return p.fault("unexpected `,'")
			}
		}
		if c.a1.kind == atZero && (c.a2 == nil || c.a2.kind != atRegex) {
			return p.fault("invalid usage of line address 0")
		}
	}
	for p.skip(" \t"); p.peek() == '!'; p.skip(" \t") {
		c.not = true
		p.at++
	}
	if c.name = p.peek(); c.name == 0 {
		return p.fault("missing command")
	}
	p.at++
	if c.name == '}' {
		if len(p.open) == 0 {
			return p.fault("unexpected `}'")
		}
		if c.a1 != nil {
			return p.fault("} doesn't want any addresses")
		}
		p.cmds[p.open[len(p.open)-1]].target = len(p.cmds)
		p.open = p.open[:len(p.open)-1]
		return p.ended()
	}
	if c.name == ':' {
		if c.a1 != nil {
			return p.fault(": doesn't want any addresses")
		}
		p.skip(" \t")
		label := strings.TrimRight(p.word(), " \t")
		if label == "" {
			return p.fault("\":\" lacks a label")
		}
		p.labels[label] = len(p.cmds)
		return nil
	}
	p.cmds = append(p.cmds, c)
	return p.arguments(c)
}

func (p *parser) arguments(c *command) error {
	switch c.name {
	case '{':
		p.open = append(p.open, len(p.cmds)-1)
		return nil
	case '=', 'd', 'D', 'g', 'G', 'h', 'H', 'n', 'N', 'p', 'P', 'x', 'z', 'F':
	case 'a', 'i', 'c':
		return p.text(c)
	case 'b', 't', 'T':
		p.skip(" \t")
		c.text = strings.TrimSuffix(p.word(), "}")
		if strings.HasSuffix(p.src[:p.at], "}") {
			p.at--
		}
	case 'r', 'R', 'w', 'W':
		p.skip(" \t")
		if c.text = p.line(); c.text == "" {
			return p.fault("missing filename in r/R/w/W commands")
		}
	case 'q', 'Q':
		if c.a2 != nil {
			return p.fault("command only uses one address")
		}
		fallthrough
	case 'l', 'L':
		p.skip(" \t")
		c.number = -1
		if n, ok := p.number(); ok {
			c.number = n
		}
	case 's':
		return p.substitute(c)
	case 'y':
		return p.transliterate(c)
	case 'e', 'v':
		return p.fault("the command `%c' is not available in the wasm shell", c.name)
	default:
		return p.fault("unknown command: `%c'", c.name)
	}
	return p.ended()
}

// ended sees that nothing but the next command follows.
func (p *parser) ended() error {
	p.skip(" \t")
	switch p.peek() {
	case 0, '\n', ';', '}', '#':
		return nil
	}
	p.at++
	return p.fault("extra characters after command")
}

// text is what a, i and c write: on the same line, or on the next after a backslash.
func (p *parser) text(c *command) error {
	p.skip(" \t")
	if p.at == len(p.src) {
		return p.fault("expected \\ after `a', `c' or `i'")
	}
	if p.peek() == '\\' {
		rest := strings.TrimLeft(p.src[p.at+1:], " \t")
		if strings.HasPrefix(rest, "\n") {
			p.at = len(p.src) - len(rest) + 1
		} else if rest == "" {
			p.at = len(p.src)
			return nil // without text, a ends a last line that has no end
		} else {
			p.at++
		}
	} else if p.peek() == '\n' {
		return p.fault("expected \\ after `a', `c' or `i'")
	}
	var b strings.Builder
	for ; p.at < len(p.src) && p.src[p.at] != '\n'; p.at++ {
		if p.src[p.at] == '\\' && p.at+1 < len(p.src) {
			p.at++
			if r, ok := control(p.src[p.at]); ok {
				b.WriteByte(r)
				continue
			}
		}
		b.WriteByte(p.src[p.at])
	}
	c.text = b.String() + "\n"
	return nil
}

// control is the character that a backslash and a letter stand for.
func control(c byte) (byte, bool) {
	if i := strings.IndexByte("afnrtv", c); i >= 0 {
		return "\a\f\n\r\t\v"[i], true
	}
	return 0, false
}

func (p *parser) substitute(c *command) error {
	delim := p.peek()
	if delim == 0 || delim == '\n' || delim == '\\' {
		return p.fault("unterminated `s' command")
	}
	p.at++
	pattern, ok := p.delimited(delim, true)
	if !ok {
		p.at = len(p.src)
		return p.fault("unterminated `s' command")
	}
	replacement, ok := p.delimited(delim, false)
	if !ok {
		p.at = len(p.src)
		return p.fault("unterminated `s' command")
	}
	o := regex.Options{Extended: p.extended}
	if err := p.substituteFlags(c, &o); err != nil {
		return err
	}
	var err error
	if c.re, err = p.compile(pattern, o); err != nil {
		return err
	}
	groups := 9
	if c.re != nil {
		groups = c.re.Groups()
	}
	c.parts, err = p.replacement(replacement, groups)
	return err
}

func (p *parser) substituteFlags(c *command, o *regex.Options) error {
	for {
		switch f := p.peek(); {
		case f == 'g':
			if c.global {
				p.at++
				return p.fault("multiple `g' options to `s' command")
			}
			c.global = true
		case f == 'p':
			if c.print {
				p.at++
				return p.fault("multiple `p' options to `s' command")
			}
			c.print = true
		case f == 'i' || f == 'I':
			o.IgnoreCase = true
		case f == 'm' || f == 'M':
			o.Multiline = true
		case f >= '0' && f <= '9':
			n, ok := p.number()
			if !ok || n == 0 {
				return p.fault("number option to `s' command may not be zero")
			}
			if c.nth > 0 {
				return p.fault("multiple number options to `s' command")
			}
			c.nth = n
			continue
		case f == 'w':
			p.at++
			p.skip(" \t")
			if c.file = p.line(); c.file == "" {
				return p.fault("missing filename in r/R/w/W commands")
			}
			return nil
		case f == 'e':
			return p.fault("the option `e' of `s' is not available in the wasm shell")
		case f == 0 || f == '\n' || f == ';' || f == '}' || f == '#' || f == ' ' || f == '\t':
			return p.ended()
		default:
			p.at++
			return p.fault("unknown option to `s'")
		}
		p.at++
	}
}

func (p *parser) replacement(s string, groups int) ([]part, error) {
	var parts []part
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			parts = append(parts, part{text: text.String(), group: -1})
			text.Reset()
		}
	}
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '&':
			flush()
			parts = append(parts, part{group: 0})
		case s[i] != '\\' || i+1 == len(s):
			text.WriteByte(s[i])
		default:
			i++
			switch c := s[i]; {
			case c >= '0' && c <= '9':
				if int(c-'0') > groups {
					return nil, p.fault("invalid reference \\%c on `s' command's RHS", c)
				}
				flush()
				parts = append(parts, part{group: int(c - '0')})
			case strings.IndexByte("ULulE", c) >= 0:
				flush()
				parts = append(parts, part{group: -1, to: c})
			case c == 'c' || c == 'd' || c == 'o' || c == 'x':
				n, used := coded(s[i:])
				if used == 0 {
					text.WriteByte(c)
					break
				}
				text.WriteByte(n)
				i += used - 1
			default:
				if r, ok := control(c); ok {
					c = r
				}
				text.WriteByte(c)
			}
		}
	}
	flush()
	return parts, nil
}

// coded is a byte by its number: dNNN, oNNN, xHH.
func coded(s string) (b byte, used int) {
	base, most := map[byte]int{'d': 10, 'o': 8, 'x': 16}[s[0]], 3
	if base == 0 {
		return 0, 0
	}
	if base == 16 {
		most = 2
	}
	for used = min(len(s), 1+most); used > 1; used-- {
		if n, err := strconv.ParseUint(s[1:used], base, 8); err == nil {
			return byte(n), used
		}
	}
	return 0, 0
}

func (p *parser) transliterate(c *command) error {
	delim := p.peek()
	p.at++
	from, ok := p.delimited(delim, false)
	to, ok2 := "", false
	if ok {
		to, ok2 = p.delimited(delim, false)
	}
	if !ok2 {
		p.at = len(p.src)
		return p.fault("unterminated `y' command")
	}
	a, b := unescapeY(from), unescapeY(to)
	if len(a) != len(b) {
		return p.fault("strings for `y' command are different lengths")
	}
	c.table = map[rune]rune{}
	for i, r := range a {
		if _, twice := c.table[r]; !twice {
			c.table[r] = b[i]
		}
	}
	return p.ended()
}

func unescapeY(s string) []rune {
	var out []rune
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		if r == '\\' && len(s) > 1 {
			if c, ok := control(s[1]); ok {
				r, size = rune(c), 2
			} else if s[1] == '\\' {
				size = 2
			}
		}
		out = append(out, r)
		s = s[size:]
	}
	return out
}
