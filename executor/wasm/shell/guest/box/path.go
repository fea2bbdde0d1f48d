package box

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// resolve makes an absolute path free of links, . and .. . What does not exist is
// an error, or with missing is taken as it stands; exists tells.
func resolve(name string, missing bool) (real string, exists bool, err error) {
	todo := strings.Split(name, "/")
	real, exists = "/", true
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			real = path.Dir(real)
			continue
		}
		next := path.Join(real, part)
		fi, err := os.Lstat(next)
		switch {
		case err != nil && missing && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)):
			exists = false
			real = next
		case err != nil:
			return "", false, err
		case fi.Mode()&fs.ModeSymlink != 0:
			if links++; links > 40 {
				return "", false, &fs.PathError{Op: "resolve", Path: name, Err: syscall.ELOOP}
			}
			to, err := os.Readlink(next)
			if err != nil {
				return "", false, err
			}
			if path.IsAbs(to) {
				real = "/"
			}
			todo = append(strings.Split(to, "/"), todo...)
		case len(todo) > 0 && !fi.IsDir() && !missing:
			return "", false, &fs.PathError{Op: "resolve", Path: name, Err: syscall.ENOTDIR}
		default:
			real = next
		}
	}
	return real, exists, nil
}

// canonical resolves with all but the last component in existence.
func canonical(c *tool.Call, name string) (string, error) {
	if name == "" {
		return "", &fs.PathError{Op: "resolve", Path: name, Err: syscall.ENOENT}
	}
	if real, _, err := resolve(c.Path(name), false); err == nil {
		return real, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	full := path.Clean(c.Path(name))
	if fi, err := os.Lstat(full); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(full)
		if err != nil {
			return "", err
		}
		full = tool.Abs(path.Dir(full), to)
	}
	parent, _, err := resolve(path.Dir(full), false)
	if err != nil {
		return "", err
	}
	return path.Join(parent, path.Base(full)), nil
}

func readlink(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "femnqsvz",
		Long: "canonicalize=f canonicalize-existing=e canonicalize-missing=m no-newline=n quiet=q silent=s verbose=v zero=z"})
	if !ok {
		return status
	}
	if len(names) == 0 {
		return c.Usage(1, "missing operand")
	}
	for _, n := range names {
		var to string
		var err error
		switch f.Last("f", "e", "m") {
		case "f":
			to, err = canonical(c, n)
		case "e":
			to, _, err = resolve(c.Path(n), false)
		case "m":
			to, _, err = resolve(c.Path(n), true)
		default:
			to, err = os.Readlink(c.Path(n))
		}
		if err != nil {
			if f.Has("v") {
				c.Errorf("%s: %s", n, tool.Text(err))
			}
			status = 1
			continue
		}
		c.Out.WriteString(to)
		if !f.Has("n") || len(names) > 1 {
			c.Out.WriteString(end(f))
		}
	}
	return status
}

func realpath(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "emqsz",
		Long: "canonicalize-existing=e canonicalize-missing=m quiet=q strip=s no-symlinks=s zero=z relative-to:"})
	if !ok {
		return status
	}
	if len(names) == 0 {
		return c.Usage(1, "missing operand")
	}
	real := func(n string) (p string, err error) {
		switch f.Last("e", "m", "s") {
		case "e":
			p, _, err = resolve(c.Path(n), false)
		case "m":
			p, _, err = resolve(c.Path(n), true)
		case "s":
			p = path.Clean(c.Path(n))
		default:
			p, err = canonical(c, n)
		}
		return p, err
	}
	base, based := f.Get("relative-to")
	if based {
		b, err := real(base)
		if err != nil {
			return c.Fail("%s: %s", base, tool.Text(err))
		}
		base = b
	}
	for _, n := range names {
		p, err := real(n)
		if err != nil {
			if !f.Has("q") {
				c.Errorf("%s: %s", n, tool.Text(err))
			}
			status = 1
			continue
		}
		if based {
			p = relativeTo(base, p)
		}
		c.Out.WriteString(p + end(f))
	}
	return status
}
