package box

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// cksumTable is that of POSIX's CRC, with the bits in the order of their weight.
var cksumTable = func() (t [256]uint32) {
	for i := range t {
		x := uint32(i) << 24
		for range 8 {
			if x&(1<<31) != 0 {
				x = x<<1 ^ 0x04c11db7
			} else {
				x <<= 1
			}
		}
		t[i] = x
	}
	return t
}()

func cksum(ctx context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "a:cz", Long: "algorithm:=a check=c zero=z untagged tag"})
	if !ok {
		return status
	}
	if a, given := f.Get("a"); given && a != "crc" {
		digest := sums()[a+"sum"]
		if digest == nil {
			return c.Usage(1, "the algorithm '%s' is not available in the wasm shell", a)
		}
		args := []string{c.Args[0]}
		if !f.Has("untagged", "c") {
			args = append(args, "--tag")
		}
		for _, o := range []string{"c", "z"} {
			if f.Has(o) {
				args = append(args, "-"+o)
			}
		}
		c.Args = slices.Concat(args, []string{"--"}, names)
		return digest(ctx, c)
	}
	if f.Has("c", "z") {
		return c.Usage(1, "the options -c and -z are not available in the wasm shell without -a")
	}
	buf := make([]byte, 32<<10)
	return c.Each(names, 1, func(name string, r io.Reader) error {
		crc, size := uint32(0), int64(0)
		for {
			n, err := r.Read(buf)
			for _, b := range buf[:n] {
				crc = crc<<8 ^ cksumTable[byte(crc>>24)^b]
			}
			if size += int64(n); err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
		}
		for n := size; n > 0; n >>= 8 {
			crc = crc<<8 ^ cksumTable[byte(crc>>24)^byte(n)]
		}
		line := fmt.Sprintf("%d %d", ^crc, size)
		if len(names) > 0 {
			line += " " + strings.ReplaceAll(name, "\n", `\n`)
		}
		c.Out.WriteString(line + "\n")
		return nil
	})
}
