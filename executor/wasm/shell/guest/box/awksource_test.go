package box

import (
	"strings"
	"testing"

	"github.com/benhoyt/goawk/parser"
)

func TestAwkSource(t *testing.T) {
	for src, want := range map[string]string{
		`{ print $1 / 2, "a#\"b" } # "x" \`:                                         `{ print $1 / 2, "a#\"b" } # "x" \`,
		"BEGIN { x = \"a\\\nb\" ; y = 1 \\\n + 2 }":                                 "BEGIN { x = \"ab\" ; y = 1 \\\n + 2 }",
		`/[/]/ || /[^]/]/ || /[[:alpha:]/]/ || /\[/ { }`:                            `/[\/]/ || /[^]\/]/ || /[[:alpha:]\/]/ || /\[/ { }`,
		`a[1]/b/c; d++/e[/f/]; (g)/h/[/]/`:                                          `a[1]/b/c; d++/e[/f/]; (g)/h/[/]/`,
		`{ "date" | getline d; if ((c x | getline) > 0) }`:                          `{sandboxd_awk_read( "date" )| getline d; if ((sandboxd_awk_read(c x )| getline) > 0) }`,
		`{ print a, b | "sort -k" n; x = y || z }`:                                  `{ print a, b | sandboxd_awk_write( "sort -k" n); x = y || z }`,
		"{ print | c[\"}\"] # all\n}":                                               "{ print | sandboxd_awk_write( c[\"}\"] )# all\n}",
		`{ x = gensub(/a"[/]\w/, f(1, 2), "g"); y = gensub("a", "b", 1, x[1, 2]) }`: `{ x = gensub("a\"[/]\\w", f(1, 2), "g", $0); y = gensub("a", "b", 1, x[1, 2]) }`,
		`function gensub(a, b, c) { } { gensub(/a/, b, c) }`:                        `function gensub(a, b, c) { } { gensub(/a/, b, c) }`,
		`{ r = system ("x" y) }`:                                                    `{ r = sandboxd_awk_system("x" y) }`,
	} {
		if got := strings.ReplaceAll(changed(src), "BEGIN { sandboxd_awk_begin() } ", ""); spaced(got) != spaced(want) {
			t.Errorf("%s\n%s, want\n%s", src, got, want)
		}
	}
}

func changed(src string) string {
	s, _ := awkSource(src)
	return s
}

// spaced is a program without the spaces that mean nothing in these.
func spaced(s string) string { return strings.ReplaceAll(s, " ", "") }

// FuzzAwkSource: what goawk reads as a program is one after the change, too.
func FuzzAwkSource(f *testing.F) {
	for _, s := range []string{
		`{ print $1 / 2 } /a[/]b/ { n++ }`, "BEGIN { x = \"a\\\nb\"; while ((\"cmd\" | getline l) > 0) print l | \"sort\" }", `{ system("x"); print > "/dev/stderr" } # x`,
		`function f(a) { return a / 2 } { print f($1) | c[1]; if (x) print "a" | "b" ; else print }`, `a[1]/b/c { d++/e }`,
		`function or(a) { return a } { and = or(1); print gensub(/a/, "b", "g"), systime() }`, `{ strftime = 1 }`, `$1 ~ /"/ { print | "a" "b" }`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		if _, err := parser.ParseProgram([]byte(src), nil); err != nil {
			awkSource(src)
			return
		}
		changed, extra := awkSource(src)
		if _, err := parser.ParseProgram([]byte(changed), &parser.ParserConfig{Funcs: (&awkHost{}).funcs(extra)}); err != nil {
			t.Errorf("%q becomes %q: %v", src, changed, err)
		}
	})
}
