package box

import (
	"context"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/regex"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// exprParser evaluates while it reads.
type exprParser struct {
	words []string
	depth int
}

// exprError is a fault of the expression, which has the exit status 2.
type exprError string

func (e exprError) Error() string { return string(e) }

// maxExprBits bounds the numbers, which have no bound otherwise.
const maxExprBits = 1 << 16

func expr(_ context.Context, c *tool.Call) int {
	words := c.Args[1:]
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	if len(words) == 0 {
		return c.Usage(2, "missing operand")
	}
	p := &exprParser{words: words}
	v, err := p.or()
	if err == nil && len(p.words) > 0 {
		err = exprError("syntax error: unexpected argument '" + p.words[0] + "'")
	}
	if err != nil {
		c.Errorf("%v", err)
		return 2
	}
	c.Out.WriteString(v + "\n")
	if null(v) {
		return 1
	}
	return 0
}

func null(v string) bool {
	v = strings.TrimPrefix(v, "-")
	return strings.Trim(v, "0") == ""
}

func (p *exprParser) is(ops ...string) string {
	if len(p.words) == 0 {
		return ""
	}
	for _, o := range ops {
		if p.words[0] == o {
			p.words = p.words[1:]
			return o
		}
	}
	return ""
}

func (p *exprParser) or() (string, error) {
	v, err := p.and()
	for err == nil && p.is("|") != "" {
		var w string
		if w, err = p.and(); null(v) {
			if v = w; null(v) {
				v = "0"
			}
		}
	}
	return v, err
}

func (p *exprParser) and() (string, error) {
	v, err := p.compare()
	for err == nil && p.is("&") != "" {
		var w string
		if w, err = p.compare(); null(v) || null(w) {
			v = "0"
		}
	}
	return v, err
}

func (p *exprParser) compare() (string, error) {
	v, err := p.sum()
	for err == nil {
		op := p.is("<", "<=", "=", "==", "!=", ">=", ">")
		if op == "" {
			break
		}
		var w string
		if w, err = p.sum(); err != nil {
			break
		}
		n := strings.Compare(v, w)
		if a, ok := integer(v); ok {
			if b, ok := integer(w); ok {
				n = a.Cmp(b)
			}
		}
		v = "0"
		if op == "<" && n < 0 || op == "<=" && n <= 0 || (op == "=" || op == "==") && n == 0 || op == "!=" && n != 0 || op == ">=" && n >= 0 || op == ">" && n > 0 {
			v = "1"
		}
	}
	return v, err
}

func integer(s string) (*big.Int, bool) {
	if len(s) > maxExprBits/4 || strings.HasPrefix(s, "+") || strings.Contains(s, "_") {
		return nil, false
	}
	return new(big.Int).SetString(s, 10)
}

func (p *exprParser) sum() (string, error) {
	v, err := p.product()
	for err == nil {
		op := p.is("+", "-")
		if op == "" {
			break
		}
		var w string
		if w, err = p.product(); err == nil {
			v, err = calculate(v, op, w)
		}
	}
	return v, err
}

func (p *exprParser) product() (string, error) {
	v, err := p.match()
	for err == nil {
		op := p.is("*", "/", "%")
		if op == "" {
			break
		}
		var w string
		if w, err = p.match(); err == nil {
			v, err = calculate(v, op, w)
		}
	}
	return v, err
}

func calculate(v, op, w string) (string, error) {
	a, ok := integer(v)
	b, ok2 := integer(w)
	if !ok || !ok2 {
		return "", exprError("non-integer argument")
	}
	if b.Sign() == 0 && (op == "/" || op == "%") {
		return "", exprError("division by zero")
	}
	switch op {
	case "+":
		a.Add(a, b)
	case "-":
		a.Sub(a, b)
	case "*":
		a.Mul(a, b)
	case "/":
		a.Quo(a, b)
	default:
		a.Rem(a, b)
	}
	if a.BitLen() > maxExprBits {
		return "", exprError("number too large")
	}
	return a.String(), nil
}

func (p *exprParser) match() (string, error) {
	v, err := p.primary()
	for err == nil && p.is(":") != "" {
		var w string
		if w, err = p.primary(); err == nil {
			v, err = matchStart(v, w)
		}
	}
	return v, err
}

func matchStart(s, pattern string) (string, error) {
	// At the start of s only: a match that begins further on may hide one that
	// does not, so the pattern itself is anchored, around its alternatives.
	re, err := regex.Compile(pattern, regex.Options{Prefix: true})
	if err != nil {
		return "", exprError(err.Error())
	}
	m := re.Find(s)
	hasGroup := strings.Contains(pattern, `\(`)
	switch {
	case (m == nil || m[0] != 0) && hasGroup:
		return "", nil
	case m == nil || m[0] != 0:
		return "0", nil
	case hasGroup && m[2] < 0:
		return "", nil
	case hasGroup:
		return s[m[2]:m[3]], nil
	}
	return strconv.Itoa(utf8.RuneCountInString(s[:m[1]])), nil
}

func (p *exprParser) primary() (string, error) {
	if len(p.words) == 0 {
		return "", exprError("syntax error: missing argument")
	}
	if p.depth++; p.depth > 1000 {
		return "", exprError("syntax error: too deep")
	}
	defer func() { p.depth-- }()
	word := p.words[0]
	p.words = p.words[1:]
	arg := func() (string, error) { return p.primary() }
	switch {
	case word == "+" && len(p.words) > 0:
		word = p.words[0]
		p.words = p.words[1:]
		return word, nil
	case word == "(":
		v, err := p.or()
		if err == nil && p.is(")") == "" {
			err = exprError("syntax error: expecting ')' after '" + v + "'")
		}
		return v, err
	case word == "length" && len(p.words) > 0:
		v, err := arg()
		return strconv.Itoa(utf8.RuneCountInString(v)), err
	case word == "match" && len(p.words) > 1:
		v, err := arg()
		if err != nil {
			return "", err
		}
		w, err := arg()
		if err != nil {
			return "", err
		}
		return matchStart(v, w)
	case word == "index" && len(p.words) > 1:
		v, err := arg()
		if err != nil {
			return "", err
		}
		chars, err := arg()
		if i := strings.IndexAny(v, chars); i >= 0 && err == nil {
			return strconv.Itoa(utf8.RuneCountInString(v[:i]) + 1), nil
		}
		return "0", err
	case word == "substr" && len(p.words) > 2:
		v, err := arg()
		if err != nil {
			return "", err
		}
		from, err := arg()
		if err != nil {
			return "", err
		}
		n, err := arg()
		if err != nil {
			return "", err
		}
		return substr(v, from, n), nil
	}
	return word, nil
}

func substr(s, from, n string) string {
	i, err := strconv.Atoi(from)
	k, err2 := strconv.Atoi(n)
	r := []rune(s)
	if err != nil || err2 != nil || i < 1 || k < 1 || i > len(r) {
		return ""
	}
	return string(r[i-1 : min(len(r), i-1+k)])
}
