package box

import (
	"context"
	"slices"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func env(ctx context.Context, c *tool.Call) int {
	f, args, status, ok := c.Parse(tool.Options{Short: "+iu:C:0S:",
		Long: "ignore-environment=i unset:=u chdir:=C null=0 split-string:=S", Status: 125})
	if !ok {
		return status
	}
	vars := slices.Clone(c.Env)
	if len(args) > 0 && args[0] == "-" {
		f, args = append(f, tool.Flag{Name: "i"}), args[1:]
	}
	if f.Has("i") {
		vars = nil
	}
	if s, given := f.Get("S"); given {
		if strings.ContainsAny(s, "\\\"'$#") {
			c.Errorf("quotes and escapes in -S are not available in the wasm shell")
			return 125
		}
		args = append(strings.Fields(s), args...)
	}
	for _, x := range f {
		if x.Name == "u" {
			vars = unset(vars, x.Value)
		}
	}
	for len(args) > 0 && strings.IndexByte(args[0], '=') > 0 {
		name, _, _ := strings.Cut(args[0], "=")
		vars = append(unset(vars, name), args[0])
		args = args[1:]
	}
	if len(args) == 0 {
		end := "\n"
		if f.Has("0") {
			end = "\x00"
		}
		for _, v := range vars {
			c.Out.WriteString(v + end)
		}
		return 0
	}
	if d, given := f.Get("C"); given {
		fi, err := c.Stat(d)
		switch {
		case err != nil:
			c.Errorf("cannot change directory to '%s': %s", d, tool.Text(err))
			return 125
		case !fi.IsDir():
			c.Errorf("cannot change directory to '%s': Not a directory", d)
			return 125
		}
		c.Dir = c.Path(d)
		vars = append(unset(vars, "PWD"), "PWD="+c.Dir)
	}
	c.Env = vars
	return c.Child(ctx, args)
}

func unset(vars []string, name string) []string {
	return slices.DeleteFunc(vars, func(v string) bool { return strings.HasPrefix(v, name+"=") })
}

func printenv(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "+0", Long: "null=0", Status: 2})
	if !ok {
		return status
	}
	end := "\n"
	if f.Has("0") {
		end = "\x00"
	}
	if len(names) == 0 {
		for _, v := range c.Env {
			c.Out.WriteString(v + end)
		}
	}
	for _, n := range names {
		i := slices.IndexFunc(c.Env, func(v string) bool { return strings.HasPrefix(v, n+"=") })
		if i < 0 {
			status = 1
			continue
		}
		c.Out.WriteString(c.Env[i][len(n)+1:] + end)
	}
	return status
}
