// Package regex has the regular expressions of POSIX, basic and extended, with
// the extensions of GNU, for grep, sed, expr and find.
//
// They are translated to those of package regexp, which takes time linear in
// the input. Only what it does not have, back-references and the edges of words,
// is matched by trying, as everywhere.
package regex

import (
	"fmt"
	"regexp"
)

// Options say how a pattern is read.
type Options struct {
	Extended   bool
	IgnoreCase bool
	// Multiline lets ^ and $ match at the ends of each line.
	Multiline bool
	// Whole lets it match all of a text or nothing, and Word only what no letters,
	// digits or underscores touch.
	Whole, Word bool
	// Prefix lets it match only at the start of a text.
	Prefix bool
}

// Regexp is a compiled pattern. It is safe for concurrent use.
type Regexp struct {
	re     *regexp.Regexp // nil if slow does it
	slow   *slow
	groups int
	word   bool
}

// Compile reads a pattern. Errors have the words of the C library.
func Compile(pattern string, o Options) (*Regexp, error) {
	p := parser{src: pattern, ere: o.Extended}
	n, err := p.parse()
	if err != nil {
		return nil, err
	}
	if o.Whole {
		n = &node{op: opCat, sub: []*node{{op: opBegin}, n, {op: opEnd}}}
	}
	if o.Prefix {
		n = &node{op: opCat, sub: []*node{{op: opBegin}, n}}
	}
	r := &Regexp{groups: p.groups, word: o.Word}
	if p.slow {
		r.slow = &slow{root: n, ignoreCase: o.IgnoreCase, multiline: o.Multiline, groups: p.groups}
		return r, nil
	}
	flags := "(?s)"
	if o.IgnoreCase {
		flags = "(?si)"
	}
	e := emitter{multiline: o.Multiline}
	e.node(n)
	if r.re, err = regexp.Compile(flags + e.b.String()); err != nil {
		return nil, fmt.Errorf("regular expression too big, or not UTF-8: %w", err)
	}
	r.re.Longest()
	return r, nil
}

// Groups returns the number of groups.
func (r *Regexp) Groups() int { return r.groups }

// Match tells whether it matches anywhere in s.
func (r *Regexp) Match(s string) bool {
	if r.re != nil && !r.word {
		return r.re.MatchString(s)
	}
	return r.Find(s) != nil
}

// Find returns the first match, as begin and end of it and of each group, -1 where a group
// has no part in it; nil if there is none.
func (r *Regexp) Find(s string) []int {
	if r.re != nil && !r.word {
		return r.re.FindStringSubmatchIndex(s)
	}
	if all := r.All(s, 1); len(all) > 0 {
		return all[0]
	}
	return nil
}

// All returns at most n matches that do not overlap, all of them if n is negative. An empty
// match at the end of the one before does not count.
func (r *Regexp) All(s string, n int) [][]int {
	switch {
	case r.re != nil && !r.word:
		return r.re.FindAllStringSubmatchIndex(s, n)
	case r.re != nil:
		var words [][]int
		for _, m := range r.re.FindAllStringSubmatchIndex(s, -1) {
			if isolated(s, m) && len(words) != n {
				words = append(words, m)
			}
		}
		return words
	}
	var all [][]int
	for at, last := 0, -1; at <= len(s) && len(all) != n; {
		m := r.slow.find(s, at)
		if m == nil {
			break
		}
		if at = m[1]; m[1] == m[0] {
			at += runeLen(s, m[1])
		}
		if m[0] == m[1] && m[0] == last || r.word && !isolated(s, m) {
			continue
		}
		last = m[1]
		all = append(all, m)
	}
	return all
}

// isolated tells whether no part of a word touches a match.
func isolated(s string, m []int) bool {
	return !wordBefore(s, m[0]) && !wordAfter(s, m[1])
}
