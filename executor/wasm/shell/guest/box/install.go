package box

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func install(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "dDm:o:g:t:TpvcCs", Long: "directory=d mode:=m owner:=o group:=g target-directory:=t " +
		"no-target-directory=T preserve-timestamps=p verbose=v compare=C strip=s"})
	if !ok {
		return status
	}
	if f.Has("s") {
		return c.Usage(1, "the option -s is not available in the wasm shell")
	}
	for _, l := range []string{"o", "g"} {
		if who, given := f.Get(l); given && who != "root" && who != "0" {
			return c.Fail("invalid %s '%s': all files are root's in the wasm shell", map[string]string{"o": "user", "g": "group"}[l], who)
		}
	}
	mode := fs.FileMode(0o755)
	if m, given := f.Get("m"); given {
		var err error
		if mode, err = tool.ParseMode(m, 0, f.Has("d"), 0); err != nil {
			return c.Fail("invalid mode '%s'", m)
		}
		if tool.Special(mode) {
			return c.Fail("the mode '%s': %s", m, tool.Text(tool.ErrSpecial))
		}
	}
	if f.Has("d") {
		if len(names) == 0 {
			return c.Usage(1, "missing file operand")
		}
		for _, n := range names {
			if err := makeAll(c, n, func(d string) {
				if f.Has("v") {
					fmt.Fprintf(c.Out, "install: creating directory '%s'\n", d)
				}
			}); err != nil {
				status = c.Fail("cannot create directory '%s': %s", n, tool.Text(err))
				continue
			}
			if err := tool.Chmod(c.Path(n), mode); err != nil {
				status = c.Fail("cannot change permissions of '%s': %s", n, tool.Text(err))
			}
		}
		return status
	}
	target, hasTarget := f.Get("t")
	k := copier{c: c, noTarget: f.Has("T"), follow: 'L', times: f.Has("p"), verbose: f.Has("v")}
	if f.Has("D") {
		where := target
		if !hasTarget && len(names) > 1 {
			where = dir(names[len(names)-1])
		}
		if where != "" && where != "." {
			if err := makeAll(c, where, func(d string) {
				if f.Has("v") {
					fmt.Fprintf(c.Out, "install: creating directory '%s'\n", d)
				}
			}); err != nil {
				return c.Fail("cannot create directory '%s': %s", where, tool.Text(err))
			}
		}
	}
	return k.into(names, target, hasTarget, func(src, dst string) {
		from, err := c.Stat(src)
		switch {
		case err != nil:
			k.failf("cannot stat '%s': %s", src, tool.Text(err))
			return
		case from.IsDir():
			k.failf("omitting directory '%s'", src)
			return
		}
		if to, err := c.Stat(dst); err == nil {
			if isPlace(c, src, dst) {
				k.failf("'%s' and '%s' are the same file", src, dst)
				return
			}
			if f.Has("C") && to.Mode().IsRegular() && to.Mode() == from.Mode().Type()|mode && sameContent(c, src, dst) {
				return
			}
			if !to.IsDir() {
				// A new file in its place: who has the old one open keeps it.
				os.Remove(c.Path(dst))
			}
		} else if _, err := c.Lstat(dst); err == nil {
			os.Remove(c.Path(dst)) // a link to nothing
		}
		before := k.status
		k.status = 0
		k.copy(src, dst)
		if failed := k.status; failed != 0 {
			return
		}
		k.status = before
		if err := tool.Chmod(c.Path(dst), mode); err != nil {
			k.failf("cannot change permissions of '%s': %s", dst, tool.Text(err))
		}
	})
}

// sameContent tells whether two files hold the same; one that cannot be read does not.
func sameContent(c *tool.Call, a, b string) bool {
	x, err := os.ReadFile(c.Path(a))
	if err != nil {
		return false
	}
	y, err := os.ReadFile(c.Path(b))
	return err == nil && bytes.Equal(x, y)
}
