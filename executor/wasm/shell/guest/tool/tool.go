// Package tool is what every tool of the wasm shell is written against: one
// invocation with its arguments, directory and streams, the reading of its
// options, and errors in the words of the GNU tools.
//
// Nothing here or in a tool uses the process's working directory, environment
// or standard streams, since many commands of one script run at once, as
// goroutines, each with its own.
package tool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Func runs one tool and returns its exit status. What it writes to Out is
// flushed by [Run]. It must end soon after ctx does, which it may leave to the
// streams: they fail then.
type Func func(ctx context.Context, c *Call) int

// Call is one invocation of a tool.
type Call struct {
	Args   []string      // Args[0] is the name that errors begin with
	Dir    string        // the working directory, absolute
	Env    []string      // NAME=VALUE of what is exported, each name once
	Stdin  io.Reader     // never nil
	Out    *bufio.Writer // standard output; nil until Run
	Stdout io.Writer     // what is below Out
	Stderr io.Writer
	Proc   *Process

	raw *Call // as it was before Run guarded the streams

	// Exec runs another command, by the rules by which the shell finds one,
	// and returns its exit status. The callee's Args, and whatever else
	// differs from the caller, are set in a copy of the Call.
	Exec func(ctx context.Context, c *Call) int
}

// Process is what a command has of the shell that runs it. It is safe for concurrent use.
type Process struct {
	mu    sync.Mutex
	umask fs.FileMode
}

// NewProcess has the umask 022.
func NewProcess() *Process { return &Process{umask: 0o022} }

// Umask returns the mask, and replaces it if mask is not negative.
func (p *Process) Umask(mask int) fs.FileMode {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.umask
	if mask >= 0 {
		p.umask = fs.FileMode(mask) & 0o777
	}
	return old
}

// Exit statuses that mean the same everywhere.
const (
	StatusTimeout    = 124 // of timeout
	StatusCannotExec = 126
	StatusNotFound   = 127
	StatusPipe       = 141 // what a shell shows for a command that SIGPIPE ended
)

// stop is what a stream throws to end its tool: the reader of a pipe went away, or
// ctx ended. A process would be killed at this place by a signal.
type stop struct{ status int }

// Run runs f with its streams guarded: a write into a pipe that nobody reads ends
// the tool with [StatusPipe] as SIGPIPE would, and the end of ctx with 137 as a kill would.
func Run(ctx context.Context, f Func, c *Call) (status int) {
	g := *c
	g.raw = c
	if g.Stdin == nil {
		g.Stdin = strings.NewReader("")
	}
	if g.Stdout == nil {
		g.Stdout = io.Discard
	}
	if g.Stderr == nil {
		g.Stderr = io.Discard
	}
	g.Stdin = &guardedReader{ctx, g.Stdin}
	out := &guardedWriter{ctx: ctx, w: g.Stdout}
	g.Stdout = out
	g.Out = bufio.NewWriterSize(out, 16<<10)
	defer func() {
		switch r := recover().(type) {
		case nil:
		case stop:
			status = r.status
		default:
			panic(r)
		}
	}()
	status = f(ctx, &g)
	g.Out.Flush()
	if out.err != nil {
		g.Errorf("write error: %s", Text(out.err))
		if status == 0 {
			status = 1
		}
	}
	return status
}

type guardedReader struct {
	ctx context.Context
	r   io.Reader
}

func (g *guardedReader) Read(p []byte) (int, error) {
	if g.ctx.Err() != nil {
		panic(stop{137})
	}
	return g.r.Read(p)
}

type guardedWriter struct {
	ctx context.Context
	w   io.Writer
	err error // the first that was not the end of a pipe
}

func (g *guardedWriter) Write(p []byte) (int, error) {
	if g.ctx.Err() != nil {
		panic(stop{137})
	}
	n, err := g.w.Write(p)
	if Broken(err) {
		panic(stop{StatusPipe})
	}
	if err != nil && g.err == nil {
		g.err = err
	}
	return n, err
}

// Broken tells whether err is that of a write into a pipe without a reader.
func Broken(err error) bool {
	return err != nil && (errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.EPIPE))
}

// Errorf writes one line to standard error, with the tool's name in front.
func (c *Call) Errorf(format string, a ...any) {
	fmt.Fprintf(c.Stderr, "%s: %s\n", c.Args[0], fmt.Sprintf(format, a...))
}

// Fail is Errorf and the exit status 1.
func (c *Call) Fail(format string, a ...any) int {
	c.Errorf(format, a...)
	return 1
}

// Usage is what a tool answers to arguments it cannot take.
func (c *Call) Usage(status int, format string, a ...any) int {
	c.Errorf(format, a...)
	fmt.Fprintf(c.Stderr, "Try '%s --help' for more information.\n", c.Args[0])
	return status
}

// Child runs args as a command with c's streams, directory and environment, after
// what c has written so far. Only a tool under [Run] may call it.
func (c *Call) Child(ctx context.Context, args []string) int {
	return c.Exec(ctx, c.Command(args, c.raw.Stdin))
}

// Command is what Child runs, with another standard input.
func (c *Call) Command(args []string, in io.Reader) *Call {
	c.Out.Flush()
	child := *c.raw
	child.Args, child.Dir, child.Env, child.Stdin = args, c.Dir, c.Env, in
	return &child
}

// Raw is the standard input as it is passed on to another command.
func (c *Call) Raw() io.Reader { return c.raw.Stdin }

// Getenv returns the value of an exported variable, empty if there is none.
func (c *Call) Getenv(name string) string {
	for _, e := range c.Env {
		if n, v, _ := strings.Cut(e, "="); n == name {
			return v
		}
	}
	return ""
}

// texts are the C library's words for the errors of a file system. The guest's
// errno differ from a host's by number and words.
var texts = []struct {
	err  syscall.Errno
	text string
}{
	{syscall.ENOENT, "No such file or directory"},
	{syscall.EEXIST, "File exists"},
	{syscall.ENOTDIR, "Not a directory"},
	{syscall.EISDIR, "Is a directory"},
	{syscall.ENOTEMPTY, "Directory not empty"},
	{syscall.EACCES, "Permission denied"},
	{syscall.EPERM, "Operation not permitted"},
	{syscall.ELOOP, "Too many levels of symbolic links"},
	{syscall.EINVAL, "Invalid argument"},
	{syscall.ENOSPC, "No space left on device"},
	{syscall.EROFS, "Read-only file system"},
	{syscall.EXDEV, "Invalid cross-device link"},
	{syscall.ENAMETOOLONG, "File name too long"},
	{syscall.EIO, "Input/output error"},
	{syscall.EBUSY, "Device or resource busy"},
	{syscall.EBADF, "Bad file descriptor"},
	{syscall.EMFILE, "Too many open files"},
	{syscall.EPIPE, "Broken pipe"},
	{syscall.ENOSYS, "Function not implemented"},
	{syscall.EMLINK, "Too many links"},
}

// Text is what strerror would say of err.
func Text(err error) string {
	for _, t := range texts {
		if errors.Is(err, t.err) {
			return t.text
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "No such file or directory"
	case errors.Is(err, fs.ErrExist):
		return "File exists"
	case errors.Is(err, fs.ErrPermission):
		return "Permission denied"
	case errors.Is(err, io.ErrClosedPipe):
		return "Broken pipe"
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// Sleep waits for d, or less if ctx ends, which it tells.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
