package regex

import (
	"fmt"
	"testing"
	"unicode/utf8"
)

func TestFind(t *testing.T) {
	for _, c := range []struct {
		pattern  string
		extended bool
		text     string
		want     string // [begin end ...] or an error
	}{
		{`a*`, false, "baa", "[0 0]"},
		{`*a`, false, "x*a", "[1 3]"},
		{`a\{2\}`, false, "caaa", "[1 3]"},
		{`a{2}`, false, "a{2}", "[0 4]"},
		{`a{2}`, true, "caaa", "[1 3]"},
		{`a{,1}b`, true, "aab", "[1 3]"},
		{`\(a\)\(b*\)`, false, "xabb", "[1 4 1 2 2 4]"},
		{`(a)|b`, true, "b", "[0 1 -1 -1]"},
		{`a|ab`, true, "ab", "[0 2]"},
		{`a\|ab`, false, "ab", "[0 2]"},
		{`a+`, false, "a+", "[0 2]"},
		{`a\+`, false, "aa", "[0 2]"},
		{`x^y$z`, false, "x^y$z", "[0 5]"},
		{`\(^a\)`, false, "ab", "[0 1 0 1]"},
		{`[]a]`, false, "]", "[0 1]"},
		{`[^]a]`, false, "]b", "[1 2]"},
		{`[a\]`, false, `\`, "[0 1]"},
		{`[[:digit:]-]*`, false, "1-2x", "[0 3]"},
		{`[\n]`, false, "n\n", "[1 2]"},
		{`\(.\)\1`, false, "abcc", "[2 4 2 3]"},
		{`(a*)b\1`, true, "aabaa", "[0 5 0 2]"},
		{`\<b`, false, "ab b", "[3 4]"},
		{`b\>`, false, "ba b", "[3 4]"},
		{`\bfoo\b`, false, "xfoo foo", "[5 8]"},
		{`^$`, true, "", "[0 0]"},
		{`.`, true, "é", "[0 2]"},
		{`a.c`, true, "a\nc", "[0 3]"},
		{`\(a`, false, "", `Unmatched ( or \(`},
		{`a)`, true, "a)", "[0 2]"},
		{`a\)`, false, "", `Unmatched ) or \)`},
		{`[a`, true, "", "Unmatched [, [^, [:, [., or [="},
		{`[[:nope:]]`, true, "", "Invalid character class name"},
		{`[b-a]`, true, "", "Invalid range end"},
		{`a\{1`, false, "", `Unmatched { or \{`},
		{`\1`, false, "", "Invalid back reference"},
		{`a\`, false, "", "Trailing backslash"},
		{`+a`, true, "", "Invalid preceding regular expression"},
	} {
		re, err := Compile(c.pattern, Options{Extended: c.extended})
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprint(re.Find(c.text))
		}
		if got != c.want {
			t.Errorf("%q in %q: %s, want %s", c.pattern, c.text, got, c.want)
		}
	}
}

func TestAll(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		o             Options
		want          string
	}{
		{`b*`, "abc", Options{}, "[[0 0] [1 2] [3 3]]"},
		{`\<`, "ab cd", Options{}, "[[0 0] [3 3]]"},
		{`\(x\)*\1*y`, "yxxy", Options{}, "[[0 1 -1 -1] [1 4 2 3]]"},
		{`A`, "aA", Options{IgnoreCase: true}, "[[0 1] [1 2]]"},
		{`^.`, "a\nb", Options{Multiline: true}, "[[0 1] [2 3]]"},
		{`ab`, "ab abc", Options{Word: true}, "[[0 2]]"},
		{`a|ab`, "ab", Options{Extended: true, Whole: true}, "[[0 2]]"},
	} {
		re, err := Compile(c.pattern, c.o)
		if err != nil {
			t.Errorf("%q: %v", c.pattern, err)
			continue
		}
		if got := fmt.Sprint(re.All(c.text, -1)); got != c.want {
			t.Errorf("%q in %q: %s, want %s", c.pattern, c.text, got, c.want)
		}
	}
}

// FuzzMatchers: both matchers agree on whether there is a match and where it begins, and a
// match is in bounds.
func FuzzMatchers(f *testing.F) {
	for _, p := range []string{`a*b`, `\(a\|b\)*c`, `[[:alpha:]_]\{2,3\}`, `^x$`, `(a|b)+`, `[^]]`} {
		f.Add(p, "aab_c\nx", false)
		f.Add(p, "aab_c\nx", true)
	}
	f.Fuzz(func(t *testing.T, pattern, text string, extended bool) {
		if len(pattern) > 40 || len(text) > 12 || !utf8.ValidString(text) {
			return
		}
		re, err := Compile(pattern, Options{Extended: extended})
		if err != nil {
			return
		}
		all := re.All(text, -1)
		for _, m := range all {
			for i := 0; i < len(m); i += 2 {
				if m[i] > m[i+1] || m[i+1] > len(text) || i == 0 && m[i] < 0 {
					t.Fatalf("%q in %q: %v", pattern, text, m)
				}
			}
		}
		if re.re == nil {
			return
		}
		p := parser{src: pattern, ere: extended}
		root, err := p.parse()
		if err != nil {
			t.Fatal(err)
		}
		steps := 0
		if count(root, &steps); steps > 12 {
			return // trying could take forever
		}
		slow := (&slow{root: root, groups: p.groups}).find(text, 0)
		fast := re.Find(text)
		if (slow == nil) != (fast == nil) || slow != nil && slow[0] != fast[0] {
			t.Errorf("%q in %q: fast %v, slow %v", pattern, text, fast, slow)
		}
	})
}

func count(n *node, steps *int) {
	*steps++
	if n.op == opRep {
		*steps += 4 * n.min
	}
	for _, s := range n.sub {
		count(s, steps)
	}
}
