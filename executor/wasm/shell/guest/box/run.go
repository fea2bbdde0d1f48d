package box

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func timeout(ctx context.Context, c *tool.Call) int {
	f, args, status, ok := c.Parse(tool.Options{Short: "+s:k:v", Long: "signal:=s kill-after:=k verbose=v preserve-status foreground", Status: 125})
	if !ok {
		return status
	}
	if len(args) < 2 {
		return c.Usage(125, "missing operand")
	}
	d, ok := interval(args[0])
	if !ok {
		return c.Usage(125, "invalid time interval '%s'", args[0])
	}
	if k, given := f.Get("k"); given {
		if _, ok := interval(k); !ok {
			return c.Usage(125, "invalid time interval '%s'", k)
		}
	}
	if d == 0 {
		return c.Child(ctx, args[1:])
	}
	within, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	deadline := &deadlineContext{within, time.Now().Add(d)}
	child := c.Command(args[1:], c.Raw())
	done := make(chan int, 1)
	// What waits for input is left behind: there is no signal that would wake it.
	go func() { done <- c.Exec(deadline, child) }()
	select {
	case code := <-done:
		if deadline.Err() == nil || code != 137 {
			return code
		}
	case <-within.Done():
	}
	if f.Has("v") {
		c.Errorf("sending signal to command '%s'", args[1])
	}
	switch s, _ := f.Get("s"); {
	case f.Has("preserve-status"):
		return 143
	case s == "KILL" || s == "9" || s == "SIGKILL":
		return 137
	}
	return tool.StatusTimeout
}

// deadlineContext ends at its time even if no timer gets to run, since a busy guest
// has one thread for all.
type deadlineContext struct {
	context.Context
	at time.Time
}

func (d *deadlineContext) Err() error {
	if err := d.Context.Err(); err != nil {
		return err
	}
	if time.Now().After(d.at) {
		return context.DeadlineExceeded
	}
	return nil
}

func which(ctx context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "as"})
	if !ok {
		return status
	}
	for _, n := range names {
		found := whichFile(c, n)
		if found == "" && !strings.Contains(n, "/") && c.Exec(ctx, c.Command([]string{"sh", "-c", `[ "$(type -t -- "$1")" = file ]`, "sh", n}, strings.NewReader(""))) == 0 {
			found = "/usr/bin/" + n
		}
		if found == "" {
			status = 1
			continue
		}
		if !f.Has("s") {
			fmt.Fprintln(c.Out, found)
		}
	}
	return status
}

func whichFile(c *tool.Call, name string) string {
	dirs := strings.Split(c.Getenv("PATH"), ":")
	if strings.Contains(name, "/") {
		dirs = []string{""}
	}
	for _, d := range dirs {
		file := path.Join(d, name)
		if fi, err := c.Stat(file); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return file
		}
	}
	return ""
}
