package box

import (
	"context"
	"io/fs"
	"math/bits"
	"os"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// parseSize reads a number with a unit: c, w, b, or K, M, G, T, P, E with nothing or iB behind them for powers of
// 1024 and B for those of 1000.
func parseSize(s string) (int64, bool) {
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || strings.ContainsAny(digits, "+-") {
		return 0, false
	}
	unit := uint64(1)
	switch suffix := s[len(digits):]; suffix {
	case "", "c":
	case "w":
		unit = 2
	case "b":
		unit = 512
	default:
		if suffix[0] == 'k' {
			suffix = "K" + suffix[1:]
		}
		power := strings.IndexByte("KMGTPE", suffix[0]) + 1
		base := uint64(1024)
		switch suffix[1:] {
		case "", "iB":
		case "B":
			base = 1000
		default:
			return 0, false
		}
		if power == 0 {
			return 0, false
		}
		for range power {
			unit *= base
		}
	}
	high, low := bits.Mul64(uint64(n), unit)
	if high != 0 || low > 1<<63-1 {
		return 0, false
	}
	return int64(low), true
}

func truncate(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "cor:s:", Long: "no-create=c io-blocks=o reference:=r size:=s"})
	if !ok {
		return status
	}
	if f.Has("o") {
		return c.Usage(1, "the option -o is not available in the wasm shell")
	}
	size, given := f.Get("s")
	reference, like := f.Get("r")
	if !given && !like {
		return c.Usage(1, "you must specify either '--size' or '--reference'")
	}
	op, digits := byte(0), strings.TrimLeft(size, " ")
	if digits != "" && strings.IndexByte("+-<>/%", digits[0]) >= 0 {
		op, digits = digits[0], digits[1:]
	}
	n, ok := parseSize(digits)
	switch {
	case given && !ok:
		return c.Fail("Invalid number: '%s'", size)
	case (op == '/' || op == '%') && n == 0:
		return c.Fail("division by zero")
	case given && like && op == 0:
		return c.Usage(1, "you must specify a relative '--size' with '--reference'")
	case len(names) == 0:
		return c.Usage(1, "missing file operand")
	}
	base := int64(-1)
	if like {
		fi, err := c.Stat(reference)
		if err != nil {
			return c.Fail("cannot stat '%s': %s", reference, tool.Text(err))
		}
		if base = fi.Size(); !given {
			op, n = '+', 0
		}
	}
	flag := os.O_WRONLY | os.O_CREATE
	if f.Has("c") {
		flag = os.O_WRONLY
	}
	for _, name := range names {
		if err := truncateFile(c, name, flag, base, op, n); err != nil {
			if _, err := c.Stat(name); err == nil || !f.Has("c") {
				status = 1
			}
			if status == 1 {
				c.Errorf("%v", err)
			}
		}
	}
	return status
}

func truncateFile(c *tool.Call, name string, flag int, base int64, op byte, n int64) error {
	w, err := tool.OpenFile(c.Dir, name, flag, 0o666, c.Proc, c.Stdin, c.Stdout, c.Stderr)
	if err != nil {
		return errorf("cannot open '%s' for writing: %s", name, tool.Text(err))
	}
	defer w.Close()
	file, ok := w.(*os.File)
	var fi fs.FileInfo
	if ok {
		fi, err = file.Stat()
	}
	if !ok || err != nil || !fi.Mode().IsRegular() {
		return errorf("failed to truncate '%s' at %d bytes: Invalid argument", name, n)
	}
	if base < 0 {
		base = fi.Size()
	}
	to := n
	switch op {
	case '+':
		to = base + n
	case '-':
		to = max(base-n, 0)
	case '<':
		to = min(base, n)
	case '>':
		to = max(base, n)
	case '/':
		to = base / n * n
	case '%':
		to = (base + n - 1) / n * n
	}
	if to < 0 { // too large
		return errorf("overflow extending size of file '%s'", name)
	}
	if err := file.Truncate(to); err != nil {
		return errorf("failed to truncate '%s' at %d bytes: %s", name, to, tool.Text(err))
	}
	return nil
}
