package sed

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/regex"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// Run is the tool sed.
func Run(ctx context.Context, c *tool.Call) int {
	f, args, status, ok := c.Parse(tool.Options{Short: "ne:f:Ersi::l:zu", Long: "quiet=n silent=n expression:=e file:=f regexp-extended=E " +
		"in-place::=i separate=s line-length:=l null-data=z unbuffered=u posix follow-symlinks"})
	if !ok {
		return status
	}
	var script []string
	for _, x := range f {
		switch x.Name {
		case "e":
			script = append(script, x.Value)
		case "f":
			r, err := c.Input(x.Value)
			var b []byte
			if err == nil {
				b, err = io.ReadAll(io.LimitReader(r, maxScript+1))
				r.Close()
			}
			if err != nil {
				return c.Fail("couldn't open file %s: %s", x.Value, tool.Text(err))
			}
			script = append(script, strings.TrimSuffix(string(b), "\n"))
		}
	}
	if script == nil {
		if len(args) == 0 {
			fmt.Fprintln(c.Stderr, "Usage: sed [OPTION]... {script-only-if-no-other-script} [input-file]...")
			return 1
		}
		script, args = args[:1], args[1:]
	}
	src := strings.Join(script, "\n")
	cmds, err := parse(src, f.Has("E", "r"))
	if err != nil {
		return c.Fail("%v", err)
	}
	s := &stream{ctx: ctx, c: c, cmds: cmds, quiet: f.Has("n") || strings.HasPrefix(src, "#n\n") || src == "#n", nl: '\n',
		separate: f.Has("s", "i"), inPlace: f.Has("i"), follow: f.Has("follow-symlinks"), unbuffered: f.Has("u"), files: map[string]*output{}, readers: map[string]*bufio.Reader{}, wrap: 70}
	s.suffix, _ = f.Get("i")
	if f.Has("z") {
		s.nl = 0
	}
	if l, given := f.Get("l"); given {
		if s.wrap, err = strconv.Atoi(l); err != nil || s.wrap < 0 {
			return c.Fail("invalid line length: %s", l)
		}
	}
	if len(args) == 0 {
		args = []string{"-"}
	}
	s.names = args
	return s.run()
}

// Replacement is what commands s do with a name.
func Replacement(commands string) (func(string) (string, error), error) {
	cmds, err := parse(commands, false)
	if err != nil {
		return nil, err
	}
	for _, c := range cmds {
		if c.name != 's' || c.a1 != nil || c.print || c.file != "" {
			return nil, errors.New("only commands s with the flags g, i and a number are available here in the wasm shell")
		}
	}
	return func(name string) (string, error) {
		s := &stream{space: name}
		for _, c := range cmds {
			if err := s.substitute(c); err != nil {
				return name, err
			}
		}
		return s.space, nil
	}, nil
}

// output is a file, or standard output, that may lack the newline of its last line.
type output struct {
	w       *bufio.Writer
	close   io.Closer
	missing bool
}

type stream struct {
	ctx                                  context.Context
	c                                    *tool.Call
	cmds                                 []*command
	quiet, separate, inPlace, unbuffered bool
	follow                               bool // what is edited in place is what a link leads to
	suffix                               string
	nl                                   byte
	wrap                                 int

	names  []string // still to be read
	name   string   // being read
	in     *bufio.Reader
	inFile io.Closer
	out    *output
	stdout *output
	temp   string // what becomes name when it has been read, with -i

	line     int
	space    string
	ended    bool // the line in space had its end
	hold     string
	holdOpen bool // what is in hold had no end
	queue    []func() error
	replaced bool // since the last line was read or t asked
	last     *regex.Regexp
	files    map[string]*output
	readers  map[string]*bufio.Reader
	status   int
}

// errQuit ends the run, after autoprint has been done where it must be.
var errQuit = errors.New("quit")

func (s *stream) run() int {
	s.stdout = &output{w: s.c.Out}
	s.out = s.stdout
	for _, c := range s.cmds {
		for _, name := range []string{c.file, c.text} {
			if name == "" || name == c.text && c.name != 'w' && c.name != 'W' {
				continue
			}
			if err := s.openOutput(name); err != nil {
				s.c.Errorf("couldn't open file %s: %s", name, tool.Text(err))
				return 4
			}
		}
		c.active = c.a1 != nil && c.a1.kind == atZero
	}
	err := s.loop()
	if e := s.closeFile(); err == nil || errors.Is(err, errQuit) {
		err = errors.Join(e)
	}
	for _, o := range s.files {
		if o.close != nil {
			if e := errors.Join(o.w.Flush(), o.close.Close()); err == nil {
				err = e
			}
		}
	}
	if err != nil {
		s.c.Errorf("%s", tool.Text(err))
		return 4
	}
	return s.status
}

func (s *stream) openOutput(name string) error {
	if s.files[name] != nil {
		return nil
	}
	if name == "/dev/stdout" {
		s.files[name] = s.stdout
		return nil
	}
	f, err := s.c.Create(name, false)
	if err != nil {
		return err
	}
	s.files[name] = &output{w: bufio.NewWriter(f), close: f}
	return nil
}

func (s *stream) loop() error {
	again := false
	for {
		if !again {
			if ok, err := s.read(); err != nil || !ok {
				return err
			}
		}
		var err error
		again, err = s.cycle()
		if err != nil {
			return err
		}
	}
}

// cycle runs the script once. again says that the next begins without a new line.
func (s *stream) cycle() (again bool, err error) {
	again, deleted, err := s.script()
	if err != nil && !errors.Is(err, errQuit) {
		return false, err
	}
	if !deleted && !s.quiet {
		if e := s.print(s.out, s.space, s.ended); e != nil {
			return false, e
		}
	}
	if e := s.flushQueue(); e != nil {
		return false, e
	}
	if s.unbuffered {
		s.out.w.Flush()
	}
	return again, err
}

func (s *stream) flushQueue() error {
	for _, f := range s.queue {
		if err := f(); err != nil {
			return err
		}
	}
	s.queue = nil
	return nil
}

func (s *stream) print(o *output, text string, ended bool) error {
	if o.missing {
		o.w.WriteByte(s.nl)
	}
	o.w.WriteString(text)
	if o.missing = !ended; ended {
		return o.w.WriteByte(s.nl)
	}
	return nil
}

func (s *stream) write(o *output, text string) error {
	if o.missing {
		o.w.WriteByte(s.nl)
		o.missing = false
	}
	_, err := o.w.WriteString(text)
	return err
}

// read takes the next line into the pattern space.
func (s *stream) read() (bool, error) {
	line, ended, ok, err := s.next()
	if !ok || err != nil {
		return false, err
	}
	s.space, s.ended = line, ended
	s.line++
	s.replaced = false
	return true, nil
}

func (s *stream) next() (line string, ended, ok bool, err error) {
	if ok, err := s.ready(true); !ok || err != nil {
		return "", false, false, err
	}
	line, err = s.in.ReadString(s.nl)
	if err != nil && err != io.EOF {
		return "", false, false, fmt.Errorf("couldn't read %s: %w", s.name, err)
	}
	cut := strings.TrimSuffix(line, string(rune(s.nl)))
	return cut, len(cut) < len(line), true, nil
}

// ready makes s.in have a line, from the next file if need be and wanted.
func (s *stream) ready(goOn bool) (bool, error) {
	for {
		if s.in != nil {
			if _, err := s.in.Peek(1); err == nil {
				return true, nil
			}
			if !goOn {
				return false, nil
			}
			if err := s.closeFile(); err != nil {
				return false, err
			}
		}
		if len(s.names) == 0 {
			return false, nil
		}
		name := s.names[0]
		s.names = s.names[1:]
		if err := s.openFile(name); err != nil {
			return false, err
		}
	}
}

func (s *stream) openFile(name string) error {
	if s.inPlace && name != "-" {
		for range 40 {
			to, err := os.Readlink(s.c.Path(name))
			if err != nil || !s.follow {
				break // it is no link
			}
			name = tool.Abs(path.Dir(s.c.Path(name)), to)
		}
		fi, err := s.c.Stat(name)
		if err == nil && !fi.Mode().IsRegular() {
			s.c.Errorf("couldn't edit %s: not a regular file", name)
			s.status = 4
			return nil
		}
	}
	r, err := s.c.Input(name)
	if err != nil {
		text := tool.Text(err)
		if errors.Is(err, syscall.EISDIR) {
			s.c.Errorf("couldn't edit %s: not a regular file", name)
		} else {
			s.c.Errorf("can't read %s: %s", name, text)
		}
		s.status = 2
		return nil
	}
	if s.separate {
		s.line = 0
	}
	s.name, s.inFile, s.in = name, r, bufio.NewReaderSize(r, 32<<10)
	if !s.inPlace || name == "-" {
		return nil
	}
	full := s.c.Path(name)
	for i := 0; ; i++ {
		s.temp = path.Join(path.Dir(full), fmt.Sprintf(".sed%d.%s", i, path.Base(full)))
		f, err := os.OpenFile(s.temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, fs.ErrExist) && i < 1000 {
			continue
		}
		if err != nil {
			s.temp = ""
			return fmt.Errorf("couldn't open temporary file for %s: %w", name, err)
		}
		s.out = &output{w: bufio.NewWriter(f), close: f}
		return nil
	}
}

// closeFile ends what is being read; with -i its new content takes its place.
func (s *stream) closeFile() error {
	if s.in == nil {
		return nil
	}
	defer func() { s.in, s.inFile = nil, nil }()
	if s.temp == "" {
		return s.inFile.Close()
	}
	// What q left unread stays in the file.
	_, err := io.Copy(s.out.w, s.in)
	err = errors.Join(err, s.out.w.Flush(), s.out.close.Close(), s.inFile.Close())
	full := s.c.Path(s.name)
	if fi, e := tool.Stat(full); e == nil && err == nil {
		err = tool.Chmod(s.temp, fi.Mode())
	}
	if err == nil && s.suffix != "" {
		backup := full + s.suffix
		if strings.Contains(s.suffix, "*") {
			backup = tool.Abs(path.Dir(full), strings.ReplaceAll(s.suffix, "*", path.Base(full)))
		}
		err = os.Rename(full, backup)
	}
	if err == nil {
		err = os.Rename(s.temp, full)
	}
	if err != nil {
		os.Remove(s.temp)
	}
	s.temp, s.out = "", s.stdout
	return err
}

func (s *stream) isLast() bool {
	ok, err := s.ready(false)
	if ok || err != nil {
		return false
	}
	if s.separate {
		return true
	}
	// The next file that has a line takes the place of the one that has none.
	for len(s.names) > 0 {
		ok, err := s.ready(true)
		return !ok && err == nil
	}
	return true
}

// lastKnown is the regex that an empty one stands for.
func (s *stream) known(re *regex.Regexp) (*regex.Regexp, error) {
	if re != nil {
		s.last = re
	}
	if s.last == nil {
		return nil, errors.New("no previous regular expression")
	}
	return s.last, nil
}

func (s *stream) matches(a *address) (bool, error) {
	switch a.kind {
	case atLine:
		return s.line == a.n, nil
	case atLast:
		return s.isLast(), nil
	case atStep:
		if a.step <= 0 {
			return s.line == a.n, nil
		}
		return s.line >= a.n && (s.line-a.n)%a.step == 0, nil
	case atRegex:
		re, err := s.known(a.re)
		return err == nil && re.Match(s.space), err
	}
	return false, nil
}

func (s *stream) selected(c *command) (bool, error) {
	if c.a1 == nil {
		return true, nil
	}
	if c.a2 == nil {
		return s.matches(c.a1)
	}
	if c.active {
		switch c.a2.kind {
		case atLine, atPlus, atMultiple:
			c.active = s.line < c.end
			return s.line <= c.end || s.reopens(c), nil
		}
		end, err := s.matches(c.a2)
		c.active = !end
		return true, err
	}
	ok, err := s.matches(c.a1)
	if !ok || err != nil {
		return false, err
	}
	c.end = s.line
	switch c.a2.kind {
	case atLine:
		c.end = c.a2.n
	case atPlus:
		c.end = s.line + c.a2.n
	case atMultiple:
		if c.a2.n > 0 {
			c.end = (s.line + c.a2.n - 1) / c.a2.n * c.a2.n
		}
	case atLast:
		c.active = !s.isLast()
		return true, nil
	default:
		c.active = true
		return true, nil
	}
	c.active = c.end > s.line
	return true, nil
}

// reopens tells whether a line behind the end of a range, which n or N jumped over,
// begins it anew.
func (s *stream) reopens(c *command) bool {
	ok, err := s.matches(c.a1)
	return ok && err == nil && c.a1.kind != atLine
}

// script runs the commands on the pattern space.
func (s *stream) script() (again, deleted bool, err error) {
	for i := 0; i < len(s.cmds); i++ {
		c := s.cmds[i]
		ok, err := s.selected(c)
		if err != nil {
			return false, false, err
		}
		if ok == c.not {
			if c.name == '{' {
				i = c.target - 1
			}
			continue
		}
		switch c.name {
		case '{':
		case 'b':
			// A loop of jumps reads nothing that would fail.
			if err := s.ctx.Err(); err != nil {
				return false, false, err
			}
			i = c.target - 1
		case 't':
			if err := s.ctx.Err(); err != nil {
				return false, false, err
			}
			if s.replaced {
				s.replaced = false
				i = c.target - 1
			}
		case 'T':
			if !s.replaced {
				i = c.target - 1
			}
			s.replaced = false
		case 'd':
			return false, true, nil
		case 'D':
			_, rest, more := strings.Cut(s.space, "\n")
			if err := s.ctx.Err(); err != nil {
				return false, false, err
			}
			if !more {
				return false, true, nil
			}
			s.space = rest
			return true, true, nil
		case 'c':
			if c.a2 == nil || c.not || !c.active {
				err = s.write(s.out, c.text)
			}
			return false, true, err
		case 'q', 'Q':
			s.status = max(s.status, c.number)
			if c.number >= 0 {
				s.status = c.number
			}
			return false, c.name == 'Q', errQuit
		case 'n':
			if ok, err := s.more(); !ok {
				return false, true, err
			}
		case 'N':
			last := s.isLast() && len(s.names) == 0
			if last {
				return false, false, errQuit
			}
			if err := s.flushQueue(); err != nil {
				return false, false, err
			}
			old := s.space
			replaced := s.replaced
			ok, err := s.read()
			if err != nil {
				return false, false, err
			}
			if !ok {
				return false, false, errQuit
			}
			s.replaced = replaced
			s.space = old + string(rune(s.nl)) + s.space
		default:
			if err := s.simple(c); err != nil {
				return false, false, err
			}
		}
	}
	return false, false, nil
}

// more is n: the pattern space is printed, and the next line read.
func (s *stream) more() (bool, error) {
	last := s.isLast() && (s.separate && len(s.names) == 0 || !s.separate)
	if last {
		// GNU's sed prints once more, and ends without the rest of the script.
		if !s.quiet {
			if err := s.print(s.out, s.space, s.ended); err != nil {
				return false, err
			}
		}
		return false, errQuit
	}
	if !s.quiet {
		if err := s.print(s.out, s.space, s.ended); err != nil {
			return false, err
		}
	}
	if err := s.flushQueue(); err != nil {
		return false, err
	}
	replaced := s.replaced
	ok, err := s.read()
	s.replaced = replaced
	if !ok && err == nil {
		err = errQuit
	}
	return ok, err
}

// simple runs a command that does not change what runs next.
func (s *stream) simple(c *command) error {
	switch c.name {
	case '=':
		return s.write(s.out, strconv.Itoa(s.line)+"\n")
	case 'F':
		return s.write(s.out, s.name+"\n")
	case 'p':
		return s.print(s.out, s.space, s.ended)
	case 'P':
		line, _, more := strings.Cut(s.space, string(rune(s.nl)))
		return s.print(s.out, line, more || s.ended)
	case 'g':
		s.space, s.ended = s.hold, !s.holdOpen
	case 'G':
		s.ended = !s.holdOpen
		return s.grow(&s.space, s.hold)
	case 'h':
		s.hold, s.holdOpen = s.space, !s.ended
	case 'H':
		s.holdOpen = !s.ended
		return s.grow(&s.hold, s.space)
	case 'x':
		s.space, s.hold = s.hold, s.space
		s.ended, s.holdOpen = !s.holdOpen, !s.ended
	case 'z':
		s.space = ""
	case 'i':
		return s.write(s.out, c.text)
	case 'a':
		s.queue = append(s.queue, func() error { return s.write(s.out, c.text) })
	case 'r':
		s.queue = append(s.queue, func() error { return s.copyFile(c.text) })
	case 'R':
		return s.queueLine(c.text)
	case 'w':
		return s.print(s.files[c.text], s.space, s.ended)
	case 'W':
		line, _, more := strings.Cut(s.space, "\n")
		return s.print(s.files[c.text], line, more || s.ended)
	case 'l':
		wrap := s.wrap
		if c.number >= 0 {
			wrap = c.number
		}
		return s.write(s.out, unambiguous(s.space, wrap))
	case 'y':
		s.space = strings.Map(func(r rune) rune {
			if to, ok := c.table[r]; ok {
				return to
			}
			return r
		}, s.space)
	case 's':
		return s.substitute(c)
	}
	return nil
}

// maxSpace bounds the pattern space and the hold space.
const maxSpace = 256 << 20

func (s *stream) grow(to *string, more string) error {
	if len(*to)+len(more) > maxSpace {
		return errors.New("pattern space too large")
	}
	*to += "\n" + more
	return nil
}

func (s *stream) copyFile(name string) error {
	r, err := s.c.Open(name)
	if err != nil {
		return nil // as POSIX has it: a file that cannot be read is an empty one
	}
	defer r.Close()
	if s.out.missing {
		s.out.w.WriteByte(s.nl)
		s.out.missing = false
	}
	_, err = io.Copy(s.out.w, r)
	return err
}

func (s *stream) queueLine(name string) error {
	r := s.readers[name]
	if r == nil {
		f, err := s.c.Open(name)
		if err != nil {
			return nil
		}
		r = bufio.NewReader(f)
		s.readers[name] = r
	}
	line, err := r.ReadString('\n')
	if line == "" && err != nil {
		return nil
	}
	s.queue = append(s.queue, func() error { return s.print(s.out, strings.TrimSuffix(line, "\n"), true) })
	return nil
}

func (s *stream) substitute(c *command) error {
	re, err := s.known(c.re)
	if err != nil {
		return err
	}
	most := -1
	if !c.global {
		most = max(1, c.nth)
	}
	all := re.All(s.space, most)
	if len(all) < max(1, c.nth) {
		return nil
	}
	if all = all[max(1, c.nth)-1:]; !c.global {
		all = all[:1]
	}
	var b strings.Builder
	at := 0
	for _, m := range all {
		b.WriteString(s.space[at:m[0]])
		expand(&b, c.parts, s.space, m)
		at = m[1]
		if b.Len() > maxSpace {
			return errors.New("pattern space too large")
		}
	}
	b.WriteString(s.space[at:])
	s.space = b.String()
	s.replaced = true
	if c.print {
		if err := s.print(s.out, s.space, s.ended); err != nil {
			return err
		}
	}
	if c.file != "" {
		return s.print(s.files[c.file], s.space, s.ended)
	}
	return nil
}

func expand(b *strings.Builder, parts []part, src string, m []int) {
	var mode, once byte
	for _, p := range parts {
		if p.to != 0 {
			switch p.to {
			case 'u', 'l':
				once = p.to
			default:
				mode, once = p.to, 0
			}
			continue
		}
		text := p.text
		if p.group >= 0 {
			if text = ""; 2*p.group+1 < len(m) && m[2*p.group] >= 0 {
				text = src[m[2*p.group]:m[2*p.group+1]]
			}
		}
		switch mode {
		case 'U':
			text = strings.ToUpper(text)
		case 'L':
			text = strings.ToLower(text)
		}
		if once != 0 && text != "" {
			r, size := utf8.DecodeRuneInString(text)
			if once == 'u' {
				r = unicode.ToUpper(r)
			} else {
				r = unicode.ToLower(r)
			}
			text = string(r) + text[size:]
			once = 0
		}
		b.WriteString(text)
	}
}

// unambiguous is what l writes.
func unambiguous(s string, wrap int) string {
	var b strings.Builder
	column := 0
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		piece := s[i : i+size]
		if k := strings.IndexByte("\a\b\f\n\r\t\v\\", s[i]); k >= 0 {
			piece = `\` + `abfnrtv\`[k:k+1]
		} else if r < ' ' || r == 0x7f || r == utf8.RuneError && size == 1 {
			piece = fmt.Sprintf(`\%03o`, s[i])
		} else if r >= 0x80 && !unicode.IsPrint(r) {
			piece = ""
			for _, c := range []byte(s[i : i+size]) {
				piece += fmt.Sprintf(`\%03o`, c)
			}
		}
		if wrap > 1 && column+len(piece) > wrap-1 {
			b.WriteString("\\\n")
			column = 0
		}
		b.WriteString(piece)
		column += len(piece)
		i += size
	}
	b.WriteString("$\n")
	return b.String()
}
