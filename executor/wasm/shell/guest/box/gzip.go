package box

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func gunzip(ctx context.Context, c *tool.Call) int { return gzipAs(ctx, c, "-d") }
func zcat(ctx context.Context, c *tool.Call) int   { return gzipAs(ctx, c, "-dc") }

func gzipAs(ctx context.Context, c *tool.Call, flag string) int {
	c.Args = append([]string{c.Args[0], flag}, c.Args[1:]...)
	return gzipTool(ctx, c)
}

func gzipTool(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "cdfknNqtv123456789lS:r", Long: "stdout=c to-stdout=c decompress=d uncompress=d force=f keep=k " +
		"no-name=n name=N quiet=q test=t verbose=v fast=1 best=9 list=l suffix:=S recursive=r rsyncable"})
	if !ok {
		return status
	}
	if f.Has("l", "r", "N", "rsyncable") {
		return c.Usage(1, "the options -l, -r, -N and --rsyncable are not available in the wasm shell")
	}
	z := &zipper{c: c, f: f, level: 6, suffix: ".gz"}
	if s, given := f.Get("S"); given {
		z.suffix = s
	}
	if l := f.Last("1", "2", "3", "4", "5", "6", "7", "8", "9"); l != "" {
		z.level = int(l[0] - '0')
	}
	if len(names) == 0 {
		names = []string{"-"}
	}
	for _, n := range names {
		if n == "-" {
			if err := z.transform(c.Out, c.Stdin, fs.FileInfo(nil), ""); err != nil {
				status = max(status, z.fail("stdin", err))
			}
			continue
		}
		status = max(status, z.file(n))
	}
	return status
}

type zipper struct {
	c      *tool.Call
	f      tool.Flags
	level  int
	suffix string
}

// fail says what is wrong, behind an empty line where it is in the data.
func (z *zipper) fail(name string, err error) int {
	text := ""
	switch {
	case errors.Is(err, gzip.ErrHeader):
		text = "not in gzip format"
	case errors.Is(err, gzip.ErrChecksum):
		text = "invalid compressed data--crc error"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		text = "unexpected end of file"
	default:
		return z.c.Fail("%s: %s", name, tool.Text(err))
	}
	io.WriteString(z.c.Stderr, "\n")
	return z.c.Fail("%s: %s", name, text)
}

func (z *zipper) file(name string) int {
	c := z.c
	fi, err := c.Lstat(name)
	if err != nil {
		return c.Fail("%s: %s", name, tool.Text(err))
	}
	if fi.IsDir() {
		c.Errorf("%s is a directory -- ignored", name)
		return 2
	}
	in, err := c.Open(name)
	if err != nil {
		return c.Fail("%s: %s", name, tool.Text(err))
	}
	defer in.Close()
	if z.f.Has("t") {
		if err := z.transform(io.Discard, in, fi, name); err != nil {
			return z.fail(name, err)
		}
		return 0
	}
	if z.f.Has("c") {
		if err := z.transform(c.Out, in, fi, name); err != nil {
			return z.fail(name, err)
		}
		return 0
	}
	out := name + z.suffix
	if z.f.Has("d") {
		switch {
		case strings.HasSuffix(name, ".tgz"):
			out = strings.TrimSuffix(name, ".tgz") + ".tar"
		case strings.HasSuffix(name, z.suffix) && name != z.suffix:
			out = strings.TrimSuffix(name, z.suffix)
		default:
			c.Errorf("%s: unknown suffix -- ignored", name)
			return 2
		}
	} else if strings.HasSuffix(name, z.suffix) {
		c.Errorf("%s already has %s suffix -- unchanged", name, z.suffix)
		return 2
	}
	if fi.Mode()&fs.ModeSymlink != 0 && !z.f.Has("f") {
		return c.Fail("%s: Too many levels of symbolic links", name)
	}
	if _, err := c.Lstat(out); err == nil && !z.f.Has("f") {
		c.Errorf("%s already exists;\tnot overwritten", out)
		return 2
	}
	return z.replace(name, out, in, fi)
}

// replace writes out, and removes the file that it came from.
func (z *zipper) replace(name, out string, in io.Reader, fi fs.FileInfo) int {
	c := z.c
	w, err := c.Create(out, false)
	if err != nil {
		return c.Fail("%s: %s", out, tool.Text(err))
	}
	b := bufio.NewWriter(w)
	err = z.transform(b, in, fi, name)
	err = errors.Join(err, b.Flush(), w.Close())
	if err == nil {
		err = errors.Join(tool.Chmod(c.Path(out), fi.Mode()), os.Chtimes(c.Path(out), fi.ModTime(), fi.ModTime()))
	}
	if err != nil {
		os.Remove(c.Path(out))
		return z.fail(name, err)
	}
	if z.f.Has("v") {
		fmt.Fprintf(c.Stderr, "%s:\t -- replaced with %s\n", name, out)
	}
	if !z.f.Has("k") {
		if err := os.Remove(c.Path(name)); err != nil {
			return c.Fail("%s: %s", name, tool.Text(err))
		}
	}
	return 0
}

func (z *zipper) transform(w io.Writer, r io.Reader, fi fs.FileInfo, name string) error {
	if z.f.Has("d") || z.f.Has("t") {
		in := bufio.NewReader(r)
		if magic, _ := in.Peek(2); string(magic) != "\x1f\x8b" {
			return gzip.ErrHeader
		}
		zr, err := gzip.NewReader(in)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, zr)
		return err
	}
	zw, err := gzip.NewWriterLevel(w, z.level)
	if err != nil {
		return err
	}
	zw.OS = 3
	if fi != nil && !z.f.Has("n") {
		zw.Name, zw.ModTime = base(name), fi.ModTime()
	}
	if _, err := io.Copy(zw, r); err != nil {
		return err
	}
	return zw.Close()
}

func base(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }
