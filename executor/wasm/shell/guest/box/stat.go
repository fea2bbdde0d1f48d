package box

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func stat(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "Lc:ft", Long: "dereference=L format:=c printf: file-system=f terse=t"})
	if !ok {
		return status
	}
	if f.Has("f", "t") {
		return c.Usage(1, "the options -f and -t are not available in the wasm shell")
	}
	if len(names) == 0 {
		return c.Usage(1, "missing operand")
	}
	format, given := f.Get("c")
	format += "\n"
	if p, ok := f.Get("printf"); ok {
		format, _ = tool.Unescape(p, tool.FormatEscapes)
	} else if !given {
		format = "  File: %N\n  Size: %-10s\tBlocks: %-10b IO Block: %-6o %F\nDevice: %d\tInode: %-11i Links: %h\n" +
			"Access: (%04a/%A)  Uid: (%5u/%8U)   Gid: (%5g/%8G)\nAccess: %x\nModify: %y\nChange: %z\n Birth: %w\n"
	}
	for _, n := range names {
		get := c.Lstat
		if f.Has("L") {
			get = c.Stat
		}
		fi, err := get(n)
		if err != nil {
			status = c.Fail("cannot statx '%s': %s", n, tool.Text(err))
			continue
		}
		if err := statFormat(c, format, n, fi); err != nil {
			return c.Fail("%v", err)
		}
	}
	return status
}

func statFormat(c *tool.Call, format, name string, fi fs.FileInfo) error {
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			c.Out.WriteByte(format[i])
			continue
		}
		start := i
		for i++; i < len(format) && strings.IndexByte("-+ #0123456789.", format[i]) >= 0; i++ {
		}
		if i == len(format) {
			c.Out.WriteString(format[start:])
			break
		}
		if format[i] == '%' {
			c.Out.WriteByte('%')
			continue
		}
		s, number, ok := statField(c, format[i], name, fi)
		if !ok {
			return fmt.Errorf("the format %%%c is not available in the wasm shell", format[i])
		}
		spec := format[start:i]
		if number && strings.HasPrefix(spec, "%0") {
			width, _ := strconv.Atoi(spec[1:])
			s = strings.Repeat("0", max(0, min(width, 1000)-len(s))) + s
		} else {
			width, _ := strconv.Atoi(strings.Trim(spec, "%-+ #."))
			fill := strings.Repeat(" ", max(0, min(width, 1000)-len(s)))
			if strings.Contains(spec, "-") {
				s += fill
			} else {
				s = fill + s
			}
		}
		c.Out.WriteString(s)
	}
	return nil
}

func statField(c *tool.Call, l byte, name string, fi fs.FileInfo) (s string, number, ok bool) {
	id := identity(fi)
	t := fi.ModTime()
	when := tool.Strftime("%Y-%m-%d %H:%M:%S.%N %z", t.In(tool.Zone(c)))
	switch l {
	case 'n':
		return name, false, true
	case 'N':
		s = "'" + name + "'"
		if fi.Mode()&fs.ModeSymlink != 0 {
			to, _ := os.Readlink(c.Path(name))
			s += " -> '" + to + "'"
		}
		return s, false, true
	case 's':
		return strconv.FormatInt(fi.Size(), 10), true, true
	case 'b':
		return strconv.FormatInt(blocks(fi), 10), true, true
	case 'B':
		return "512", true, true
	case 'o':
		return "4096", true, true
	case 'a':
		return strconv.FormatUint(uint64(tool.Bits(fi.Mode())), 8), true, true
	case 'A':
		return modeString(fi.Mode()), false, true
	case 'f':
		return strconv.FormatUint(uint64(tool.Bits(fi.Mode()))|typeBits(fi.Mode()), 16), true, true
	case 'F':
		return typeName(fi), false, true
	case 'h':
		return strconv.Itoa(id.links), true, true
	case 'i':
		return strconv.FormatUint(id.ino, 10), true, true
	case 'd':
		return strconv.FormatUint(id.dev, 10), true, true
	case 'u':
		return strconv.Itoa(id.uid), true, true
	case 'U':
		return id.owner, false, true
	case 'g':
		return strconv.Itoa(id.gid), true, true
	case 'G':
		return id.group, false, true
	case 'y', 'x', 'z': // the modification stands for all: nothing else is kept everywhere
		return when, false, true
	case 'Y', 'X', 'Z':
		return strconv.FormatInt(t.Unix(), 10), true, true
	case 'w':
		return "-", false, true
	case 'W':
		return "0", true, true
	}
	return "", false, false
}

func typeName(fi fs.FileInfo) string {
	switch m := fi.Mode(); {
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	case m&fs.ModeCharDevice != 0:
		return "character special file"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "block special file"
	case fi.Size() == 0:
		return "regular empty file"
	}
	return "regular file"
}

func typeBits(m fs.FileMode) uint64 {
	switch {
	case m.IsDir():
		return 0o040000
	case m&fs.ModeSymlink != 0:
		return 0o120000
	case m&fs.ModeCharDevice != 0:
		return 0o020000
	case m&fs.ModeDevice != 0:
		return 0o060000
	case m&fs.ModeNamedPipe != 0:
		return 0o010000
	case m&fs.ModeSocket != 0:
		return 0o140000
	}
	return 0o100000
}
