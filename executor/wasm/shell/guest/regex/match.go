package regex

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// classes are the character classes, as Go's regexp and as a function have them.
var classes = map[string]*class{
	"alpha":  {`\pL`, unicode.IsLetter},
	"digit":  {`0-9`, func(r rune) bool { return r >= '0' && r <= '9' }},
	"alnum":  {`\pL0-9`, func(r rune) bool { return unicode.IsLetter(r) || r >= '0' && r <= '9' }},
	"upper":  {`\p{Lu}`, unicode.IsUpper},
	"lower":  {`\p{Ll}`, unicode.IsLower},
	"space":  {`\t-\r `, func(r rune) bool { return r == ' ' || r >= '\t' && r <= '\r' }},
	"blank":  {`\t `, func(r rune) bool { return r == ' ' || r == '\t' }},
	"punct":  {`!-/:-@\[-` + "`" + `{-~`, func(r rune) bool { return r > ' ' && r < 0x7f && !wordRune(r) || r == '_' }},
	"print":  {` -~\x{a0}-\x{10ffff}`, func(r rune) bool { return r >= ' ' && r != 0x7f && !(r >= 0x80 && r < 0xa0) }},
	"graph":  {`!-~\x{a1}-\x{10ffff}`, func(r rune) bool { return r > ' ' && r != 0x7f && !(r >= 0x80 && r <= 0xa0) }},
	"cntrl":  {`\x00-\x1f\x7f`, func(r rune) bool { return r < ' ' || r == 0x7f }},
	"xdigit": {`0-9A-Fa-f`, func(r rune) bool { return r >= '0' && r <= '9' || r|0x20 >= 'a' && r|0x20 <= 'f' }},
	"word":   {`\pL0-9_`, wordRune},
}

type class struct {
	re string
	is func(rune) bool
}

func wordRune(r rune) bool { return r == '_' || r >= '0' && r <= '9' || unicode.IsLetter(r) }

func wordBefore(s string, at int) bool {
	r, size := utf8.DecodeLastRuneInString(s[:at])
	return size > 0 && wordRune(r)
}

func wordAfter(s string, at int) bool {
	r, size := utf8.DecodeRuneInString(s[at:])
	return size > 0 && wordRune(r)
}

func runeLen(s string, at int) int {
	_, size := utf8.DecodeRuneInString(s[at:])
	return max(1, size)
}

// emitter writes a tree in the notation of package regexp.
type emitter struct {
	b         strings.Builder
	multiline bool
}

func (e *emitter) node(n *node) {
	switch n.op {
	case opLit:
		fmt.Fprintf(&e.b, `\x{%x}`, n.r)
	case opAny:
		e.b.WriteString(".")
	case opSet:
		e.set(n.set)
	case opCat:
		for _, s := range n.sub {
			e.node(s)
		}
	case opAlt:
		e.b.WriteString("(?:")
		for i, s := range n.sub {
			if i > 0 {
				e.b.WriteByte('|')
			}
			e.node(s)
		}
		e.b.WriteByte(')')
	case opGroup:
		e.b.WriteByte('(')
		e.node(n.sub[0])
		e.b.WriteByte(')')
	case opRep:
		e.b.WriteString("(?:")
		e.node(n.sub[0])
		switch {
		case n.max >= 0:
			fmt.Fprintf(&e.b, "){%d,%d}", n.min, n.max)
		case n.min == 0:
			e.b.WriteString(")*")
		default:
			fmt.Fprintf(&e.b, "){%d,}", n.min)
		}
	case opBol:
		e.anchor("^", `\A`)
	case opEol:
		e.anchor("$", `\z`)
	case opBegin:
		e.b.WriteString(`\A`)
	case opEnd:
		e.b.WriteString(`\z`)
	case opWordEdge:
		e.b.WriteString(`\b`)
	case opNoEdge:
		e.b.WriteString(`\B`)
	}
}

func (e *emitter) anchor(line, text string) {
	if e.multiline {
		e.b.WriteString("(?m:" + line + ")")
		return
	}
	e.b.WriteString(text)
}

func (e *emitter) set(s *set) {
	e.b.WriteByte('[')
	if s.not {
		e.b.WriteByte('^')
	}
	for _, c := range s.classes {
		e.b.WriteString(classes[c].re)
	}
	for _, r := range s.ranges {
		fmt.Fprintf(&e.b, `\x{%x}-\x{%x}`, r[0], r[1])
	}
	e.b.WriteByte(']')
}

func (s *set) has(r rune, ignoreCase bool) bool {
	in := s.one(r)
	if !in && ignoreCase {
		in = s.one(unicode.ToLower(r)) || s.one(unicode.ToUpper(r))
	}
	return in != s.not
}

func (s *set) one(r rune) bool {
	for _, x := range s.ranges {
		if r >= x[0] && r <= x[1] {
			return true
		}
	}
	for _, c := range s.classes {
		if classes[c].is(r) {
			return true
		}
	}
	return false
}

// slow matches by trying, the longest repetition first.
type slow struct {
	root       *node
	ignoreCase bool
	multiline  bool
	groups     int
}

// find returns the first match that begins at or behind from.
func (m *slow) find(s string, from int) []int {
	t := try{slow: m, s: s, cap: make([]int, 2*m.groups+2)}
	for at := from; at <= len(s); at += runeLen(s, at) {
		for i := range t.cap {
			t.cap[i] = -1
		}
		end := -1
		if t.node(m.root, at, func(to int) bool { end = to; return true }) {
			t.cap[0], t.cap[1] = at, end
			return t.cap
		}
	}
	return nil
}

type try struct {
	*slow
	s   string
	cap []int
}

// node matches n at a place and then what comes behind, which it is given as k.
func (t *try) node(n *node, at int, k func(int) bool) bool {
	switch n.op {
	case opLit, opAny, opSet:
		r, size := utf8.DecodeRuneInString(t.s[at:])
		return size > 0 && t.matches(n, r) && k(at+size)
	case opCat:
		return t.cat(n.sub, at, k)
	case opAlt:
		for _, sub := range n.sub {
			if t.node(sub, at, k) {
				return true
			}
		}
		return false
	case opGroup:
		b, e := t.cap[2*n.n], t.cap[2*n.n+1]
		if t.node(n.sub[0], at, func(to int) bool {
			ob, oe := t.cap[2*n.n], t.cap[2*n.n+1]
			t.cap[2*n.n], t.cap[2*n.n+1] = at, to
			if k(to) {
				return true
			}
			t.cap[2*n.n], t.cap[2*n.n+1] = ob, oe
			return false
		}) {
			return true
		}
		t.cap[2*n.n], t.cap[2*n.n+1] = b, e
		return false
	case opRep:
		return t.rep(n, 0, at, k)
	case opBack:
		b, e := t.cap[2*n.n], t.cap[2*n.n+1]
		if b < 0 {
			return false
		}
		part := t.s[b:e]
		rest := t.s[at:]
		if len(rest) < len(part) || rest[:len(part)] != part && !(t.ignoreCase && strings.EqualFold(rest[:len(part)], part)) {
			return false
		}
		return k(at + len(part))
	}
	return t.holds(n.op, at) && k(at)
}

func (t *try) cat(sub []*node, at int, k func(int) bool) bool {
	if len(sub) == 0 {
		return k(at)
	}
	return t.node(sub[0], at, func(to int) bool { return t.cat(sub[1:], to, k) })
}

func (t *try) rep(n *node, done, at int, k func(int) bool) bool {
	if simple := n.sub[0]; simple.op <= opSet {
		return t.repSimple(n, simple, at, k)
	}
	if n.max < 0 || done < n.max {
		if t.node(n.sub[0], at, func(to int) bool {
			if to == at && done >= n.min {
				return false // an empty turn would go on forever
			}
			return t.rep(n, done+1, to, k)
		}) {
			return true
		}
	}
	return done >= n.min && k(at)
}

// repSimple repeats what is one character without a call for each.
func (t *try) repSimple(n, one *node, at int, k func(int) bool) bool {
	ends := []int{at}
	for to := at; (n.max < 0 || len(ends) <= n.max) && to < len(t.s); {
		r, size := utf8.DecodeRuneInString(t.s[to:])
		if !t.matches(one, r) {
			break
		}
		to += size
		ends = append(ends, to)
	}
	for i := len(ends) - 1; i >= n.min; i-- {
		if k(ends[i]) {
			return true
		}
	}
	return false
}

func (t *try) matches(n *node, r rune) bool {
	switch n.op {
	case opLit:
		return r == n.r || t.ignoreCase && unicode.ToLower(r) == unicode.ToLower(n.r)
	case opSet:
		return n.set.has(r, t.ignoreCase)
	}
	return true
}

// holds tells whether a condition is true between two characters.
func (t *try) holds(o op, at int) bool {
	before, after := wordBefore(t.s, at), wordAfter(t.s, at)
	switch o {
	case opBol:
		return at == 0 || t.multiline && t.s[at-1] == '\n'
	case opEol:
		return at == len(t.s) || t.multiline && t.s[at] == '\n'
	case opBegin:
		return at == 0
	case opEnd:
		return at == len(t.s)
	case opWordEdge:
		return before != after
	case opNoEdge:
		return before == after
	case opWordBegin:
		return !before && after
	default: // opWordEnd
		return before && !after
	}
}
