package box

import (
	"context"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// duRun is one run of du. Directories have no size here, and a file the blocks of 4096
// bytes that its content takes.
type duRun struct {
	c        *tool.Call
	f        tool.Flags
	depth    int
	apparent bool
	unit     int64 // 0 for what a person reads
	seen     map[[2]uint64]bool
	status   int
}

func du(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "0abcd:hHkLmPsx",
		Long: "null=0 all=a bytes=b total=c max-depth:=d human-readable=h dereference=L dereference-args=H summarize=s one-file-system=x apparent-size"})
	if !ok {
		return status
	}
	d := &duRun{c: c, f: f, depth: math.MaxInt, apparent: f.Has("b", "apparent-size"), unit: 1024, seen: map[[2]uint64]bool{}}
	switch f.Last("b", "h", "k", "m") {
	case "b":
		d.unit = 1
	case "h":
		d.unit = 0
	case "m":
		d.unit = 1 << 20
	}
	if v, given := f.Get("d"); given {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return c.Usage(1, "invalid maximum depth '%s'", v)
		}
		d.depth = n
	}
	if f.Has("s") {
		switch {
		case f.Has("a"):
			return c.Usage(1, "cannot both summarize and show all entries")
		case f.Has("d") && d.depth != 0:
			return c.Usage(1, "warning: summarizing conflicts with --max-depth=%d", d.depth)
		}
		d.depth = 0
	}
	if len(names) == 0 {
		names = []string{"."}
	}
	total := int64(0)
	for _, n := range names {
		total += d.walk(n, 0)
	}
	if f.Has("c") {
		d.show(total, "total")
	}
	return d.status
}

func (d *duRun) walk(name string, depth int) int64 {
	stat := d.c.Lstat
	if d.f.Has("L") || d.f.Has("H") && depth == 0 {
		stat = d.c.Stat
	}
	fi, err := stat(name)
	if err != nil {
		d.c.Errorf("cannot access '%s': %s", name, tool.Text(err))
		d.status = 1
		return 0
	}
	id := identity(fi)
	if (id.links > 1 || depth == 0) && id.ino != 0 {
		// What has several names counts once.
		key := [2]uint64{id.dev, id.ino}
		if d.seen[key] {
			return 0
		}
		d.seen[key] = true
	}
	size := int64(0)
	switch {
	case fi.IsDir():
		list, err := os.ReadDir(d.c.Path(name))
		if err != nil {
			d.c.Errorf("cannot read directory '%s': %s", name, tool.Text(err))
			d.status = 1
		}
		for _, e := range list {
			size += d.walk(strings.TrimSuffix(name, "/")+"/"+e.Name(), depth+1)
		}
	case fi.Mode().IsRegular() || fi.Mode()&fs.ModeSymlink != 0 && d.apparent:
		if size = fi.Size(); !d.apparent {
			size = (size + 4095) &^ 4095
		}
	}
	if depth == 0 || depth <= d.depth && (fi.IsDir() || d.f.Has("a")) {
		d.show(size, name)
	}
	return size
}

func (d *duRun) show(size int64, name string) {
	s := ""
	if d.unit == 0 {
		s = sizeForPeople(size)
	} else {
		s = strconv.FormatInt((size+d.unit-1)/d.unit, 10)
	}
	fmt.Fprintf(d.c.Out, "%s\t%s%s", s, name, map[bool]string{false: "\n", true: "\x00"}[d.f.Has("0")])
}

// sizeForPeople is rounded up, with one digit behind the point below ten.
func sizeForPeople(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10)
	}
	v, i := float64(n)/1024, 0
	for ; math.Ceil(v) >= 1024 && i < 5; i++ {
		v /= 1024
	}
	unit := "KMGTPE"[i : i+1]
	if tenths := math.Ceil(v * 10); tenths < 100 {
		return fmt.Sprintf("%.1f%s", tenths/10, unit)
	}
	return fmt.Sprintf("%.0f%s", math.Ceil(v), unit)
}
