package box

import (
	"regexp"
	"strings"
)

// The functions that a program has beyond its own, by names that none uses.
const (
	awkBegin  = "sandboxd_awk_begin"
	awkRead   = "sandboxd_awk_read"  // announces a command that is read from, and is its argument
	awkWrite  = "sandboxd_awk_write" // the same of one that is written to
	awkSystem = "sandboxd_awk_system"
)

// awkSource is a program that goawk reads as other awks read src: a backslash at the end of a line within a string joins it with
// the next, and a slash within brackets does not end an expression. What is run as a command is given to awkRead, awkWrite or
// awkSystem first, since goawk runs programs of the machine; and one that may write to a file begins with awkBegin.
//
// extra are those functions of GNU awk's that the program calls, and does not have itself. The first argument of gensub may be
// an expression, and becomes a string; its last is $0 where there is none.
func awkSource(src string) (changed string, extra []string) {
	s := &awkScanner{src: src, calls: map[string]bool{}, own: map[string]bool{}}
	s.own["gensub"] = ownGensub.MatchString(src)
	for s.at < len(src) {
		s.token()
	}
	s.endCommand()
	out := string(s.out)
	if strings.Contains(src, "/dev/") || strings.Contains(src, ">") {
		out = "BEGIN { " + awkBegin + "() } " + out
	}
	for name := range s.calls {
		if !s.own[name] {
			extra = append(extra, name)
		}
	}
	return out, extra
}

var ownGensub = regexp.MustCompile(`\bfunc(tion)?[ \t]+gensub\b`)

// awkParen is a parenthesis or bracket that is open.
type awkParen struct {
	start  int // of the operands before it
	commas int // within it, for the arguments of gensub; -1 for all else
}

type awkScanner struct {
	src     string
	at      int
	out     []byte
	operand bool // the last token may be divided
	start   int  // in out, of the operands that follow one another up to here
	open    []awkParen
	command int    // 1 and the number of open parentheses around a command that print writes to; 0 is none
	last    string // the word that was the last token
	calls   map[string]bool
	own     map[string]bool // names of calls that are something else, too
}

// take copies n bytes.
func (s *awkScanner) take(n int) {
	s.out = append(s.out, s.src[s.at:s.at+n]...)
	s.at += n
}

// operator takes n bytes behind which another expression begins.
func (s *awkScanner) operator(n int) {
	s.take(n)
	s.operand, s.start = false, len(s.out)
}

// endCommand ends the argument of a command that print writes to.
func (s *awkScanner) endCommand() {
	if s.command == len(s.open)+1 {
		s.out = append(s.out, ')')
		s.command = 0
	}
}

func (s *awkScanner) token() {
	rest := s.src[s.at:]
	if !awkWord(rest[0]) && rest[0] != ' ' && rest[0] != '\t' {
		defer func() { s.last = "" }()
	}
	switch c := rest[0]; {
	case c == ' ' || c == '\t' || c == '\r':
		s.take(1)
	case strings.HasPrefix(rest, "\\\n"):
		s.take(2)
	case c == '#':
		s.endCommand()
		line, _, _ := strings.Cut(rest, "\n")
		s.take(len(line))
	case c == '"':
		s.text()
	case c == '/' && !s.operand:
		s.expression()
	case awkWord(c):
		n := 1
		for n < len(rest) && (awkWord(rest[n]) || rest[n] == '.' && c >= '0' && c <= '9') {
			n++
		}
		s.word(rest[:n])
	case c == '(':
		p := awkParen{s.start, -1}
		if s.last == "gensub" && !s.own["gensub"] {
			p.commas = 0
		}
		s.open = append(s.open, p)
		s.operator(1)
	case c == ')' && len(s.open) > 0:
		s.endCommand()
		if s.open[len(s.open)-1].commas == 2 {
			s.out = append(s.out, ", $0"...)
		}
		s.close()
	case c == '[':
		s.open = append(s.open, awkParen{s.start, -1})
		s.operator(1)
	case c == ']' && len(s.open) > 0:
		s.close()
	case c == ',':
		if n := len(s.open); n > 0 && s.open[n-1].commas >= 0 {
			s.open[n-1].commas++
		}
		s.operator(1)
	case c == '$':
		s.take(1)
		s.operand = false
	case strings.HasPrefix(rest, "++") || strings.HasPrefix(rest, "--"):
		s.take(2)
	case c == ';' || c == '\n' || c == '}':
		s.endCommand()
		s.operator(1)
	case strings.HasPrefix(rest, "||"):
		s.operator(2)
	case c == '|' && !strings.HasPrefix(rest, "|&"):
		s.pipe()
	default:
		s.operator(1)
	}
}

// close takes what closes the last parenthesis or bracket.
func (s *awkScanner) close() {
	s.take(1)
	n := len(s.open) - 1
	s.operand, s.start, s.open = true, s.open[n].start, s.open[:n]
}

func awkWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// word takes a name, a keyword or a number.
func (s *awkScanner) word(w string) {
	if awkExtras[w] != nil {
		// What is no call, or is that of a function of the program's, makes it a name of its own.
		if s.last != "function" && s.last != "func" && strings.HasPrefix(s.src[s.at+len(w):], "(") {
			s.calls[w] = true
		} else {
			s.own[w] = true
		}
	}
	s.last = w
	switch w {
	case "system":
		if strings.HasPrefix(strings.TrimLeft(s.src[s.at+len(w):], " \t"), "(") {
			s.at += len(w)
			s.out = append(s.out, awkSystem...)
			s.at += len(s.src[s.at:]) - len(strings.TrimLeft(s.src[s.at:], " \t"))
			s.operand = true
			return
		}
		fallthrough
	default:
		s.take(len(w))
		s.operand = true
	case "in", "print", "printf", "return", "exit", "if", "while", "for", "do", "else", "delete", "case", "getline", "next", "BEGIN", "END":
		s.operator(len(w))
	}
}

// text takes a string.
func (s *awkScanner) text() {
	s.take(1)
	for s.at < len(s.src) {
		rest := s.src[s.at:]
		switch {
		case strings.HasPrefix(rest, "\\\n"):
			s.at += 2
		case strings.HasPrefix(rest, "\\\r\n"):
			s.at += 3
		case rest[0] == '\\' && len(rest) > 1:
			s.take(2)
		case rest[0] == '\n':
			return // it is an error
		case rest[0] == '"':
			s.take(1)
			s.operand = true
			return
		default:
			s.take(1)
		}
	}
}

// expression takes a regular expression.
func (s *awkScanner) expression() {
	end, bracket := -1, 0 // bracket is where one began, and 1
	out := []byte{'/'}
	line, _, _ := strings.Cut(s.src[s.at:], "\n")
	for i := 1; i < len(line) && end < 0; i++ {
		c := line[i]
		switch {
		case c == '\\' && i+1 < len(line):
			out = append(out, c)
			i++
			if c = line[i]; bracket == 0 && (c == '<' || c == '>' || c == 'y') {
				c = 'b' // the beginning or end of a word
			}
		case bracket > 0 && c == '[' && i+1 < len(line) && line[i+1] == ':':
			if n := strings.Index(line[i:], ":]"); n > 0 {
				out = append(out, line[i:i+n+1]...)
				i += n + 1
				c = ']'
			}
		case bracket > 0 && c == ']':
			if in := line[bracket:i]; in != "" && in != "^" {
				bracket = 0
			}
		case bracket > 0 && c == '/':
			out = append(out, '\\')
		case bracket == 0 && c == '[':
			bracket = i + 1
		case c == '/':
			end = i
		}
		out = append(out, c)
	}
	if end < 0 { // it is none, or an error
		s.operator(1)
		return
	}
	if n := len(s.open); n > 0 && s.open[n-1].commas == 0 && strings.HasSuffix(strings.TrimRight(string(s.out), " \t"), "(") {
		out = []byte(`"` + strings.NewReplacer(`\/`, `/`, `\`, `\\`, `"`, `\"`).Replace(string(out[1:len(out)-1])) + `"`)
	}
	s.out = append(s.out, out...)
	s.at += end + 1
	s.operand = true
}

// pipe takes a bar between a command and getline, or between print and a command.
func (s *awkScanner) pipe() {
	to := strings.TrimLeft(s.src[s.at+1:], " \t")
	if after, ok := strings.CutPrefix(to, "getline"); ok && (after == "" || !awkWord(after[0])) {
		operands := string(s.out[s.start:])
		s.out = append(s.out[:s.start], awkRead+"("+operands+") "...)
		s.operator(1)
		return
	}
	s.operator(1)
	s.out = append(s.out, " "+awkWrite+"("...)
	s.start = len(s.out)
	s.command = len(s.open) + 1
}
