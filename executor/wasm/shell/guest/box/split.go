package box

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// splitter writes the pieces of one input.
type splitter struct {
	c              *tool.Call
	prefix, suffix string
	digits         string // of the names
	length         int
	grows          bool // whether names get longer when all are used
	next           int64
	verbose        bool
	w              tool.File
	out            *bufio.Writer
}

func split(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "a:b:C:de:l:n:t:ux",
		Long: "suffix-length:=a additional-suffix: bytes:=b line-bytes:=C numeric-suffixes::=numeric hex-suffixes::=hex elide-empty-files=e filter: lines:=l number:=n separator:=t unbuffered=u verbose"})
	if !ok {
		return status
	}
	for _, o := range []string{"C", "e", "t", "filter"} {
		if f.Has(o) {
			return c.Usage(1, "the option %s is not available in the wasm shell", map[bool]string{true: "-" + o, false: "--" + o}[len(o) == 1])
		}
	}
	s := &splitter{c: c, prefix: "x", digits: "abcdefghijklmnopqrstuvwxyz", length: 2, grows: true, verbose: f.Has("verbose")}
	s.suffix, _ = f.Get("additional-suffix")
	if strings.Contains(s.suffix, "/") {
		return c.Usage(1, "invalid suffix '%s', contains directory separator", s.suffix)
	}
	for _, x := range f {
		switch x.Name {
		case "d", "numeric", "x", "hex":
			if s.digits = "0123456789"; x.Name == "x" || x.Name == "hex" {
				s.digits = "0123456789abcdef"
			}
			if x.Value != "" {
				from, err := strconv.ParseInt(x.Value, len(s.digits), 32)
				if err != nil || from < 0 {
					return c.Usage(1, "%s: invalid start value for numerical suffix", x.Value)
				}
				s.next, s.grows = from, false
			}
		}
	}
	if a, given := f.Get("a"); given {
		n, ok := count(a)
		if !ok || n > 64 {
			return c.Fail("invalid suffix length: '%s'", a)
		}
		if n > 0 {
			s.length, s.grows = int(n), false
		}
	}
	kinds := map[string]bool{}
	for _, x := range f {
		if strings.Contains("lbn", x.Name) {
			kinds[x.Name] = true
		}
	}
	if len(kinds) > 1 {
		return c.Usage(1, "cannot split in more than one way")
	}
	kind, size := f.Last("l", "b", "n"), int64(1000)
	if kind == "" {
		kind = "l"
	}
	if v, given := f.Get(kind); given {
		if size, ok = parseSize(v); !ok || size == 0 {
			return c.Fail("%s: '%s'", map[string]string{"l": "invalid number of lines", "b": "invalid number of bytes", "n": "invalid number of chunks"}[kind], v)
		}
	}
	if len(names) > 2 {
		return c.Usage(1, "extra operand '%s'", names[2])
	}
	input := "-"
	if len(names) > 0 {
		input = names[0]
	}
	if len(names) > 1 {
		s.prefix = names[1]
	}
	in, err := c.Input(input)
	if err != nil {
		return c.Fail("cannot open '%s' for reading: %s", input, tool.Text(err))
	}
	defer in.Close()
	switch kind {
	case "l":
		err = s.lines(in, size)
	case "b":
		for done := false; !done && err == nil; {
			done, err = s.piece(in, size)
		}
	default:
		err = s.chunks(in, size, f.Has("a"))
	}
	err = errors.Join(err, s.end())
	var mine errString
	switch {
	case errors.As(err, &mine):
		return c.Fail("%v", mine)
	case err != nil:
		return c.Fail("%s: %s", input, tool.Text(err))
	}
	return 0
}

func (s *splitter) lines(in io.Reader, size int64) error {
	var failed error
	n := int64(0)
	err := lines(in, '\n', func(line string, ended bool) bool {
		if n%size == 0 {
			if failed = s.begin(); failed != nil {
				return false
			}
		}
		n++
		_, failed = s.out.WriteString(withEnd(line, ended, "\n"))
		return failed == nil
	})
	return errors.Join(failed, err)
}

// piece writes up to size bytes to a file, which is made when there is one. It tells whether that was the end.
func (s *splitter) piece(in io.Reader, size int64) (done bool, err error) {
	one := make([]byte, 1)
	if _, err := io.ReadFull(in, one); err != nil {
		if err == io.EOF {
			err = nil
		}
		return true, err
	}
	if err := s.begin(); err != nil {
		return true, err
	}
	s.out.Write(one)
	if _, err = io.CopyN(s.out, in, size-1); err == io.EOF {
		return true, nil
	}
	return err != nil, err
}

// chunks makes n files of one input, the last of which has what is left over.
func (s *splitter) chunks(in io.Reader, n int64, fixed bool) error {
	all, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	most, length := int64(1), 0
	for most < s.next+n {
		most *= int64(len(s.digits))
		length++
	}
	if s.grows = false; !fixed {
		s.length = max(s.length, length)
	} else if length > s.length {
		return errorf("the suffix length needs to be at least %d", length)
	}
	size := int64(len(all)) / n
	for i := range n {
		if err := s.begin(); err != nil {
			return err
		}
		k := size
		if i == n-1 {
			k = int64(len(all))
		}
		if _, err := s.out.Write(all[:k]); err != nil {
			return err
		}
		all = all[k:]
	}
	return nil
}

// begin ends a file, and begins the next one.
func (s *splitter) begin() error {
	if err := s.end(); err != nil {
		return err
	}
	name, err := s.name()
	if err != nil {
		return err
	}
	if s.verbose {
		fmt.Fprintf(s.c.Out, "creating file '%s'\n", name)
	}
	w, err := s.c.Create(name, false)
	if err != nil {
		return errorf("%s: %s", name, tool.Text(err))
	}
	s.w, s.out = w, bufio.NewWriterSize(w, 32<<10)
	return nil
}

func (s *splitter) end() error {
	if s.w == nil {
		return nil
	}
	err := s.out.Flush()
	if e := s.w.Close(); err == nil {
		err = e
	}
	s.w = nil
	return err
}

// name is the next one. When those that begin with other than the last digit are used, it begins with that and is two longer.
func (s *splitter) name() (string, error) {
	base := int64(len(s.digits))
	power := func(n int) int64 {
		p := int64(1)
		for range n {
			if p *= base; p > 1<<40 {
				break
			}
		}
		return p
	}
	if s.grows && s.next >= power(s.length)-power(s.length-1) {
		s.prefix += s.digits[base-1:]
		s.length++
		s.next = 0
	}
	if s.next >= power(s.length) {
		return "", errString("output file suffixes exhausted")
	}
	name := make([]byte, s.length)
	for i, n := s.length-1, s.next; i >= 0; i-- {
		name[i] = s.digits[n%base]
		n /= base
	}
	s.next++
	return s.prefix + string(name) + s.suffix, nil
}
