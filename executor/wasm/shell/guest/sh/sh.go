// Package sh is the shell of the wasm guest: mvdan.cc/sh's interpreter, with the
// tools of package box for commands, since there are no processes to start.
//
// Where the interpreter differs from bash and a hook can mend it, it is mended
// here (see call.go and tree.go), else in interpreter.patch, with which the module is
// built, and what build.sh's --modfile is used for; what remains is in docs/wasm.md.
package sh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// Shell runs scripts, and the tools that they call.
type Shell struct {
	// Tools by name.
	Tools map[string]tool.Func
	// Proc is what commands begin with.
	Proc *tool.Process
	// Crash, if not nil, is told of a panic, which is a bug of the shell or of a tool. It ends
	// the process, as the panic would.
	Crash func(v any)
}

// guard is deferred where a goroutine enters.
func (s *Shell) guard() {
	if s.Crash == nil {
		return
	}
	if v := recover(); v != nil {
		s.Crash(v)
	}
}

// Exec runs c as a command: a tool by its name or a path that ends in it, the shell
// itself as sh or bash, or a script by its path. It returns the exit status.
func (s *Shell) Exec(ctx context.Context, c *tool.Call) int {
	defer s.guard()
	name := c.Args[0]
	call := *c
	call.Exec = s.Exec
	if call.Proc == nil {
		call.Proc = s.Proc
	}
	if strings.Contains(name, "/") {
		fi, err := call.Stat(name)
		switch {
		case err == nil && fi.IsDir():
			return status(&call, tool.StatusCannotExec, "Is a directory")
		case err == nil && fi.Mode()&0o111 == 0:
			return status(&call, tool.StatusCannotExec, "Permission denied")
		case err == nil:
			return s.file(ctx, &call)
		case !binDirs[path.Dir(path.Clean(name))]:
			return status(&call, tool.StatusNotFound, "%s", tool.Text(err))
		}
		if s.tool(path.Base(name)) != nil {
			return s.runTool(ctx, path.Base(name), &call)
		}
		return status(&call, tool.StatusNotFound, "No such file or directory")
	}
	if file := s.lookPath(&call, name); file != "" {
		call.Args = append([]string{file}, call.Args[1:]...)
		return s.file(ctx, &call)
	}
	if s.tool(name) != nil {
		return s.runTool(ctx, name, &call)
	}
	return status(&call, tool.StatusNotFound, "command not found")
}

// runTool runs the shell with the streams as they are: it passes them on to tools
// of its own, and a native interpreter needs its input to be a file.
func (s *Shell) runTool(ctx context.Context, name string, c *tool.Call) int {
	f := s.tool(name)
	if name == "sh" || name == "bash" || builtins[name] != "" {
		return f(ctx, c)
	}
	return tool.Run(ctx, f, c)
}

// builtins are the tools that are builtins of the shell, as scripts that call them,
// for those who do not call them from a shell.
var builtins = map[string]string{
	"test": `test "$@"`, "[": `[ "$@"`, "pwd": `pwd "$@"`, "true": "true", "false": "false",
}

func (s *Shell) builtin(ctx context.Context, c *tool.Call, script string) int {
	return s.run(ctx, c, strings.NewReader(script), c.Args[0], nil, c.Args[1:])
}

// binDirs are where scripts expect tools, though no files are there.
var binDirs = map[string]bool{"/bin": true, "/usr/bin": true, "/usr/local/bin": true, "/sbin": true, "/usr/sbin": true}

func (s *Shell) tool(name string) tool.Func {
	if name == "sh" || name == "bash" {
		return s.main
	}
	if own := builtins[name]; own != "" {
		return func(ctx context.Context, c *tool.Call) int { return s.builtin(ctx, c, own) }
	}
	return s.Tools[name]
}

// lookPath finds an executable file in the PATH of c. What PATH has of binDirs comes
// last: a tool of ours stands there unless a file does.
func (s *Shell) lookPath(c *tool.Call, name string) string {
	for _, dir := range strings.Split(c.Getenv("PATH"), ":") {
		if dir == "" {
			dir = "."
		}
		if s.tool(name) != nil && binDirs[path.Clean(dir)] {
			return ""
		}
		file := path.Join(dir, name)
		if dir == "." {
			file = "./" + name
		}
		if fi, err := c.Stat(file); err == nil && !fi.IsDir() && fi.Mode()&0o111 != 0 {
			return file
		}
	}
	return ""
}

func status(c *tool.Call, code int, format string, a ...any) int {
	fmt.Fprintf(c.Stderr, "sh: %s: %s\n", c.Args[0], fmt.Sprintf(format, a...))
	return code
}

// file runs an executable file: a script, by its first line or as a shell script.
func (s *Shell) file(ctx context.Context, c *tool.Call) int {
	f, err := os.Open(c.Path(c.Args[0]))
	if err != nil {
		return status(c, tool.StatusCannotExec, "%s", tool.Text(err))
	}
	head := make([]byte, 256)
	n, _ := io.ReadFull(f, head)
	f.Close()
	line, _, _ := bytes.Cut(head[:n], []byte("\n"))
	if bytes.IndexByte(line, 0) >= 0 {
		return status(c, tool.StatusCannotExec, "cannot execute binary file: only scripts run in the wasm shell")
	}
	args := append([]string{"sh"}, c.Args...)
	if bang, ok := bytes.CutPrefix(line, []byte("#!")); ok {
		by, arg, _ := strings.Cut(strings.TrimSpace(string(bang)), " ")
		args = append([]string{by}, c.Args...)
		if arg = strings.TrimSpace(arg); arg != "" {
			args = append([]string{by, arg}, c.Args...)
		}
		if s.tool(path.Base(by)) == nil || !binDirs[path.Dir(by)] {
			return status(c, tool.StatusCannotExec, "%s: bad interpreter: not available in the wasm shell", by)
		}
	}
	child := *c
	child.Args = args
	return s.runTool(ctx, path.Base(args[0]), &child)
}

// main is the command sh.
func (s *Shell) main(ctx context.Context, c *tool.Call) int {
	var opts []string
	args := c.Args[1:]
	command, stdin := false, false
flags:
	for len(args) > 0 && len(args[0]) > 1 && (args[0][0] == '-' || args[0][0] == '+') {
		a := args[0]
		args = args[1:]
		switch {
		case a == "--":
			break flags
		case a == "--posix" || a == "--norc" || a == "--noprofile" || a == "--login":
		case strings.HasPrefix(a, "--"):
			return c.Usage(2, "%s: invalid option", a)
		default:
			for _, l := range a[1:] {
				switch l {
				case 'c':
					command = true
				case 's':
					stdin = true
				case 'l':
				case 'o':
					if len(args) == 0 {
						return c.Usage(2, "%co: option requires an argument", a[0])
					}
					if args[0] != "posix" {
						opts = append(opts, a[:1]+"o", args[0])
					}
					args = args[1:]
				default:
					opts = append(opts, a[:1]+string(l))
				}
			}
		}
	}
	name, script := "sh", io.Reader(c.Stdin)
	switch {
	case command && len(args) == 0:
		return c.Usage(2, "-c: option requires an argument")
	case command:
		script = strings.NewReader(args[0])
		if args = args[1:]; len(args) > 0 {
			name, args = args[0], args[1:]
		}
	case len(args) > 0 && !stdin:
		name = args[0]
		f, err := c.Open(name)
		if err != nil {
			c.Errorf("%s: %s", name, tool.Text(err))
			return tool.StatusNotFound
		}
		defer f.Close()
		script, args = f, args[1:]
	}
	return s.run(ctx, c, script, name, opts, args)
}

// level is how many shells run one in another; see maxLevel.
type level struct{}

// maxLevel bounds it where a system would run out of processes. A builtin that is called as a tool is one, too.
const maxLevel = 1000

func (s *Shell) run(ctx context.Context, c *tool.Call, script io.Reader, name string, opts, params []string) int {
	_, isText := script.(*strings.Reader)
	isFile := !isText && script != c.Stdin
	n, _ := ctx.Value(level{}).(int)
	if n >= maxLevel {
		c.Errorf("maximum shell nesting level exceeded (%d)", maxLevel)
		return tool.StatusCannotExec
	}
	ctx = context.WithValue(ctx, level{}, n+1)
	src, err := io.ReadAll(script)
	if err != nil {
		c.Errorf("%s: %s", name, tool.Text(err))
		return 126
	}
	if !slices.ContainsFunc(c.Env, func(v string) bool { return strings.HasPrefix(v, "HOME=") }) {
		// The interpreter would ask the system.
		c.Env = append(slices.Clone(c.Env), "HOME=")
	}
	r := &runner{shell: s, ctx: ctx, call: c, funcs: map[string]bool{}}
	run, err := interp.New(
		interp.Env(expand.ListEnviron(deeper(c.Env)...)),
		interp.Dir(c.Dir),
		interp.StdIO(c.Stdin, c.Stdout, c.Stderr),
		interp.CallHandler(r.intercept),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return r.exec }),
		interp.OpenHandler(r.open),
		interp.StatHandler(func(ctx context.Context, p string, follow bool) (fs.FileInfo, error) {
			if fi := statStream(ctx, p); fi != nil {
				return tool.Bare(fi), nil
			}
			fi, err := stat(p, follow)
			if err != nil {
				return nil, err
			}
			if fi.Mode()&fs.ModeNamedPipe != 0 {
				return fi, nil
			}
			return tool.Bare(fi), nil // which -ef compares
		}),
		interp.AccessHandler(access),
	)
	if err != nil {
		c.Errorf("%v", err)
		return 2
	}
	if err := interp.Params(append(opts, append([]string{"--"}, params...)...)...)(run); err != nil {
		c.Errorf("%v", err)
		return 2
	}
	ctx = context.WithValue(ctx, adaptKey{}, r.adapt)
	ctx = context.WithValue(ctx, scriptKey{}, isFile)
	ctx = context.WithValue(ctx, crashKey{}, s.Crash)
	status := r.script(ctx, run, src, name)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.temporary {
		os.Remove(f)
	}
	return status
}

// statStream is tool.StatStream of the streams of a command.
func statStream(ctx context.Context, name string) fs.FileInfo {
	hc := interp.HandlerCtx(ctx)
	return tool.StatStream(name, hc.Stdin, hc.Stdout, hc.Stderr)
}

func stat(name string, follow bool) (fs.FileInfo, error) {
	if follow {
		return tool.Stat(name)
	}
	return tool.Lstat(name)
}

// By these the interpreter, as build.sh patches it, finds what adapts each piece of
// script, whether the first one is a file, and whom to tell of panics in goroutines of
// its own. Without the patch nobody asks.
type (
	adaptKey  = struct{ ShellAdapt bool }
	crashKey  = struct{ ShellCrash bool }
	scriptKey = struct{ ShellScript bool }
)

// runner is one interpreter at work.
type runner struct {
	shell *Shell
	ctx   context.Context
	call  *tool.Call

	mu        sync.Mutex
	funcs     map[string]bool // the names that the script declares as functions anywhere
	temporary []string        // files that are removed in the end
}

// script parses all of it before anything runs, other than shells do: a syntax error
// at the end is found at the start.
func (r *runner) script(ctx context.Context, run *interp.Runner, src []byte, name string) int {
	file, err := syntax.NewParser().Parse(bytes.NewReader(src), name)
	if err != nil {
		fmt.Fprintf(r.call.Stderr, "%v\n", err)
		return 2
	}
	r.adapt(file)
	err = run.Run(ctx, file)
	if code, ok := errors.AsType[interp.ExitStatus](err); ok {
		return int(code)
	}
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		return 137
	}
	r.call.Errorf("%v", err)
	return 1
}

func (r *runner) exec(ctx context.Context, args []string) error {
	hc := interp.HandlerCtx(ctx)
	c := &tool.Call{
		Args: args, Dir: hc.Dir, Env: environ(hc.Env), Proc: r.process(hc.Env),
		Stdin: hc.Stdin, Stdout: hc.Stdout, Stderr: hc.Stderr, Exec: r.shell.Exec,
	}
	if f := own[args[0]]; f != nil {
		c.Args = append([]string{strings.TrimPrefix(args[0], ownPrefix)}, args[1:]...)
		code := tool.Run(ctx, f, c)
		if code == tool.StatusPipe {
			// As SIGPIPE would, this ends the shell that the builtin is a part of.
			return hc.Builtin(ctx, []string{"exit", "141"})
		}
		return exitStatus(code)
	}
	c.Env = r.environment(c, hc.Env)
	return exitStatus(r.shell.Exec(ctx, c))
}

// maskVariable holds the umask of a shell once it is set. A subshell has a copy of it, as of all variables, which is what the umask of a process
// of its own would be.
const maskVariable = "sandboxd_umask"

// process is what a command of a shell with these variables is given.
func (r *runner) process(env expand.Environ) *tool.Process {
	v := env.Get(maskVariable)
	if !v.IsSet() {
		return r.call.Proc
	}
	m, err := strconv.ParseUint(v.String(), 8, 32)
	if err != nil {
		return r.call.Proc
	}
	p := tool.NewProcess()
	p.Umask(int(m))
	return p
}

func exitStatus(code int) error {
	if code == 0 {
		return nil
	}
	return interp.ExitStatus(code)
}

// environment is that of a command: what is exported, and what bash exports of itself.
func (r *runner) environment(c *tool.Call, vars expand.Environ) []string {
	env := c.Env
	set := func(name, value string) {
		i := slices.IndexFunc(env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
		if i < 0 {
			env = append(env, name+"="+value)
			return
		}
		env[i] = name + "=" + value
	}
	for _, name := range []string{"PWD", "OLDPWD"} {
		if v := vars.Get(name); v.IsSet() && v.Kind == expand.String {
			set(name, v.String())
		}
	}
	file := c.Args[0]
	if !strings.Contains(file, "/") {
		if file = r.shell.lookPath(c, c.Args[0]); file == "" {
			file = "/usr/bin/" + c.Args[0]
		}
	}
	set("_", file)
	return env
}

// deeper counts a shell in SHLVL, as each does when it starts.
func deeper(env []string) []string {
	n := 0
	env = slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		value, is := strings.CutPrefix(v, "SHLVL=")
		if is {
			n, _ = strconv.Atoi(value)
		}
		return is
	})
	return append(env, fmt.Sprintf("SHLVL=%d", max(n, 0)+1))
}

func environ(env expand.Environ) []string {
	var list []string
	seen := map[string]int{}
	for name, v := range env.Each {
		i, again := seen[name]
		if !v.Exported || name == maskVariable || v.Kind != expand.String || !v.IsSet() {
			if again {
				list[i] = ""
			}
			continue
		}
		e := name + "=" + v.String()
		if again {
			list[i] = e
			continue
		}
		seen[name] = len(list)
		list = append(list, e)
	}
	out := list[:0]
	for _, e := range list {
		if e != "" {
			out = append(out, e)
		}
	}
	return out
}

func (r *runner) open(ctx context.Context, name string, flag int, perm fs.FileMode) (io.ReadWriteCloser, error) {
	hc := interp.HandlerCtx(ctx)
	f, err := tool.OpenFile(hc.Dir, name, flag, 0o666, r.process(hc.Env), hc.Stdin, hc.Stdout, hc.Stderr)
	if err != nil {
		return nil, &fs.PathError{Op: "sh", Path: name, Err: errors.New(tool.Text(err))}
	}
	return f, nil
}

func access(ctx context.Context, p string, mode interp.AccessMode) error {
	if fi := statStream(ctx, p); fi != nil {
		if mode&interp.AccessExec != 0 && fi.Mode()&0o111 == 0 {
			return fs.ErrPermission
		}
		return nil
	}
	fi, err := tool.Stat(p)
	if err != nil {
		return err
	}
	m := fi.Mode().Perm()
	if mode&interp.AccessExec != 0 && m&0o111 == 0 {
		return fs.ErrPermission
	}
	return nil
}
