package regex

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

type op byte

const (
	opLit       op = iota // r
	opAny                 // any character
	opSet                 // one of set
	opCat                 // sub in turn
	opAlt                 // one of sub
	opGroup               // sub[0], captured as n
	opRep                 // sub[0], min to max times; max -1 is no end
	opBol                 // ^
	opEol                 // $
	opBegin               // of the text
	opEnd                 // of the text
	opWordEdge            // \b
	opNoEdge              // \B
	opWordBegin           // \<
	opWordEnd             // \>
	opBack                // back-reference n
)

type node struct {
	op       op
	r        rune
	n        int
	min, max int
	sub      []*node
	set      *set
}

// set is a bracket expression.
type set struct {
	not     bool
	ranges  [][2]rune
	classes []string // names as in [:alpha:], and word
}

type parser struct {
	src    string
	at     int
	ere    bool
	groups int
	open   []int // groups that are not closed yet
	closed [10]bool
	slow   bool // it needs the slow matcher
	depth  int
}

// The limits of what a pattern may be.
const (
	maxRepeat = 255 // RE_DUP_MAX is 32767, which is out of reach of most matchers, too
	maxDepth  = 200
	maxSource = 64 << 10
)

// Error is a fault of a pattern, in the words of the C library.
type Error string

// Error returns the words.
func (e Error) Error() string { return string(e) }

const (
	errParen     = Error(`Unmatched ( or \(`)
	errClose     = Error(`Unmatched ) or \)`)
	errBracket   = Error("Unmatched [, [^, [:, [., or [=")
	errBrace     = Error(`Invalid content of \{\}`)
	errOpenBrace = Error(`Unmatched { or \{`)
	errPreceding = Error("Invalid preceding regular expression")
	errBackslash = Error("Trailing backslash")
	errBack      = Error("Invalid back reference")
	errClass     = Error("Invalid character class name")
	errRange     = Error("Invalid range end")
	errBig       = Error("Regular expression too big")
)

func (p *parser) parse() (*node, error) {
	if len(p.src) > maxSource {
		return nil, errBig
	}
	n, err := p.alt()
	if err != nil {
		return nil, err
	}
	if p.at < len(p.src) {
		return nil, errClose
	}
	return n, nil
}

// take consumes what is written c in extended patterns and \c in basic ones.
func (p *parser) take(c byte) bool {
	if !p.sees(c) {
		return false
	}
	p.at++
	if !p.ere {
		p.at++
	}
	return true
}

func (p *parser) sees(c byte) bool {
	if p.ere {
		return p.at < len(p.src) && p.src[p.at] == c
	}
	return p.at+1 < len(p.src) && p.src[p.at] == '\\' && p.src[p.at+1] == c
}

func (p *parser) alt() (*node, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, errBig
	}
	defer func() { p.depth-- }()
	var subs []*node
	for {
		n, err := p.cat()
		if err != nil {
			return nil, err
		}
		subs = append(subs, n)
		if !p.take('|') {
			break
		}
	}
	if len(subs) == 1 {
		return subs[0], nil
	}
	return &node{op: opAlt, sub: subs}, nil
}

func (p *parser) cat() (*node, error) {
	cat := &node{op: opCat}
	start := true // nothing yet that could be repeated
	for p.at < len(p.src) && !p.sees('|') && !(p.sees(')') && (!p.ere || len(p.open) > 0)) {
		n, err := p.atom(start)
		if err != nil {
			return nil, err
		}
		anchor := n.op == opBol
		for !(anchor && !p.ere) {
			min, max, ok, err := p.repeat()
			if err != nil {
				return nil, err
			}
			if !ok {
				break
			}
			n = &node{op: opRep, min: min, max: max, sub: []*node{n}}
			if p.depth++; p.depth > maxDepth {
				return nil, errBig
			}
			defer func() { p.depth-- }()
		}
		cat.sub = append(cat.sub, n)
		start = anchor && !p.ere
	}
	return cat, nil
}

// repeat reads one of * + ? {m,n}.
func (p *parser) repeat() (min, max int, ok bool, err error) {
	switch {
	case p.at < len(p.src) && p.src[p.at] == '*':
		p.at++
		return 0, -1, true, nil
	case p.take('+'):
		return 1, -1, true, nil
	case p.take('?'):
		return 0, 1, true, nil
	case !p.sees('{'):
		return 0, 0, false, nil
	}
	from := p.at
	p.take('{')
	end := strings.IndexByte(p.src[p.at:], '}')
	if end < 0 {
		if p.ere {
			p.at = from
			return 0, 0, false, nil
		}
		return 0, 0, false, errOpenBrace
	}
	body := p.src[p.at : p.at+end]
	p.at += end + 1
	if !p.ere {
		var cut bool
		if body, cut = strings.CutSuffix(body, `\`); !cut {
			return 0, 0, false, errBrace
		}
	}
	lo, hi, two := strings.Cut(body, ",")
	if lo != "" {
		if min, err = strconv.Atoi(lo); err != nil {
			if p.ere {
				p.at = from
				return 0, 0, false, nil
			}
			return 0, 0, false, errBrace
		}
	} else if !two {
		return 0, 0, false, errBrace
	}
	switch {
	case !two:
		max = min
	case hi == "":
		max = -1
	default:
		if max, err = strconv.Atoi(hi); err != nil {
			return 0, 0, false, errBrace
		}
	}
	if min < 0 || max >= 0 && min > max {
		return 0, 0, false, errBrace
	}
	if min > maxRepeat || max > maxRepeat {
		return 0, 0, false, errBig
	}
	return min, max, true, nil
}

func (p *parser) atom(start bool) (*node, error) {
	if p.take('(') {
		return p.group()
	}
	c := p.src[p.at]
	switch {
	case c == '\\':
		return p.escape()
	case c == '[':
		return p.bracket()
	case c == '.':
		p.at++
		return &node{op: opAny}, nil
	case c == '^' && (p.ere || start):
		p.at++
		return &node{op: opBol}, nil
	case c == '$' && (p.ere || p.at+1 == len(p.src) || strings.HasPrefix(p.src[p.at+1:], `\)`) || strings.HasPrefix(p.src[p.at+1:], `\|`)):
		p.at++
		return &node{op: opEol}, nil
	case p.ere && start && (c == '+' || c == '?'):
		return nil, errPreceding
	}
	r, size := utf8.DecodeRuneInString(p.src[p.at:])
	if r == utf8.RuneError && size == 1 {
		return nil, errors.New("the pattern is not UTF-8")
	}
	p.at += size
	return &node{op: opLit, r: r}, nil
}

func (p *parser) group() (*node, error) {
	p.groups++
	n := &node{op: opGroup, n: p.groups}
	p.open = append(p.open, p.groups)
	sub, err := p.alt()
	if err != nil {
		return nil, err
	}
	if !p.take(')') {
		return nil, errParen
	}
	p.open = p.open[:len(p.open)-1]
	if n.n < len(p.closed) {
		p.closed[n.n] = true
	}
	n.sub = []*node{sub}
	return n, nil
}

func (p *parser) escape() (*node, error) {
	if p.at+1 == len(p.src) {
		return nil, errBackslash
	}
	r, size := utf8.DecodeRuneInString(p.src[p.at+1:])
	p.at += 1 + size
	switch r {
	case 'n':
		return &node{op: opLit, r: '\n'}, nil
	case 't':
		return &node{op: opLit, r: '\t'}, nil
	case 'f':
		return &node{op: opLit, r: '\f'}, nil
	case 'v':
		return &node{op: opLit, r: '\v'}, nil
	case 'a':
		return &node{op: opLit, r: '\a'}, nil
	case 'r':
		return &node{op: opLit, r: '\r'}, nil
	case 'w', 'W':
		return &node{op: opSet, set: &set{not: r == 'W', classes: []string{"word"}}}, nil
	case 's', 'S':
		return &node{op: opSet, set: &set{not: r == 'S', classes: []string{"space"}}}, nil
	case 'b':
		return &node{op: opWordEdge}, nil
	case 'B':
		return &node{op: opNoEdge}, nil
	case '<':
		p.slow = true
		return &node{op: opWordBegin}, nil
	case '>':
		p.slow = true
		return &node{op: opWordEnd}, nil
	case '`':
		return &node{op: opBegin}, nil
	case '\'':
		return &node{op: opEnd}, nil
	}
	if r >= '1' && r <= '9' {
		n := int(r - '0')
		if !p.closed[n] {
			return nil, errBack
		}
		p.slow = true
		return &node{op: opBack, n: n}, nil
	}
	return &node{op: opLit, r: r}, nil
}

func (p *parser) bracket() (*node, error) {
	p.at++
	s := &set{}
	if strings.HasPrefix(p.src[p.at:], "^") {
		s.not = true
		p.at++
	}
	for first := true; ; first = false {
		rest := p.src[p.at:]
		switch {
		case rest == "":
			return nil, errBracket
		case rest[0] == ']' && !first:
			p.at++
			return &node{op: opSet, set: s}, nil
		case strings.HasPrefix(rest, "[:"):
			name, _, ok := strings.Cut(rest[2:], ":]")
			if !ok {
				return nil, errBracket
			}
			if classes[name] == nil {
				return nil, errClass
			}
			s.classes = append(s.classes, name)
			p.at += 2 + len(name) + 2
			continue
		}
		lo, err := p.member()
		if err != nil {
			return nil, err
		}
		hi := lo
		if rest := p.src[p.at:]; len(rest) > 1 && rest[0] == '-' && rest[1] != ']' {
			p.at++
			if hi, err = p.member(); err != nil {
				return nil, err
			}
			if hi < lo {
				return nil, errRange
			}
		}
		s.ranges = append(s.ranges, [2]rune{lo, hi})
	}
}

// member reads one character of a bracket expression. A backslash is one, but in
// \n and \t, which GNU's sed understands there.
func (p *parser) member() (rune, error) {
	rest := p.src[p.at:]
	for _, k := range []string{".", "="} {
		if strings.HasPrefix(rest, "["+k) {
			name, _, ok := strings.Cut(rest[2:], k+"]")
			r, size := utf8.DecodeRuneInString(name)
			if !ok || size == 0 || size != len(name) {
				return 0, errBracket
			}
			p.at += 2 + len(name) + 2
			return r, nil
		}
	}
	if len(rest) > 1 && rest[0] == '\\' {
		switch rest[1] {
		case 'n':
			p.at += 2
			return '\n', nil
		case 't':
			p.at += 2
			return '\t', nil
		}
	}
	r, size := utf8.DecodeRuneInString(rest)
	if size == 0 {
		return 0, errBracket
	}
	p.at += size
	return r, nil
}
