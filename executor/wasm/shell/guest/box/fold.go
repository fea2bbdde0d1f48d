package box

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func fold(_ context.Context, c *tool.Call) int {
	args := []string{c.Args[0]}
	for i, a := range c.Args[1:] {
		if a == "--" {
			args = append(args, c.Args[1+i:]...)
			break
		}
		if len(a) > 1 && a[0] == '-' && strings.Trim(a[1:], "0123456789") == "" {
			a = "-w" + a[1:]
		}
		args = append(args, a)
	}
	c.Args = args
	f, names, status, ok := c.Parse(tool.Options{Short: "bsw:", Long: "bytes=b spaces=s width:=w"})
	if !ok {
		return status
	}
	width := int64(80)
	if w, given := f.Get("w"); given {
		if width, ok = count(w); !ok || width == 0 {
			return c.Fail("invalid number of columns: '%s'", w)
		}
	}
	count := func(column int64, b byte) int64 {
		switch {
		case f.Has("b"):
		case b == '\b':
			return max(column-1, 0)
		case b == '\r':
			return 0
		case b == '\t':
			return column + 8 - column%8
		}
		return column + 1
	}
	return c.Each(names, 1, func(_ string, r io.Reader) error {
		in := bufio.NewReader(r)
		var line []byte
		column := int64(0)
		for {
			b, err := in.ReadByte()
			if err != nil {
				c.Out.Write(line)
				if err == io.EOF {
					err = nil
				}
				return err
			}
			if b == '\n' {
				c.Out.Write(append(line, b))
				line, column = line[:0], 0
				continue
			}
			for next := count(column, b); next > width && len(line) > 0; next = count(column, b) {
				cut := len(line)
				if blank := bytes.LastIndexAny(line, " \t"); f.Has("s") && blank >= 0 {
					cut = blank + 1
				}
				c.Out.Write(line[:cut])
				c.Out.WriteByte('\n')
				line = append(line[:0], line[cut:]...)
				column = 0
				for _, x := range line {
					column = count(column, x)
				}
			}
			column = count(column, b)
			if line = append(line, b); len(line) > maxLine {
				return errLongLine
			}
		}
	})
}
