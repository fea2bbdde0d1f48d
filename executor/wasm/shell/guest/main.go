// Command guest is the shell of the portable path: a POSIX shell and the usual
// tools in one program, which is compiled to WebAssembly and embedded by package
// shell. Built natively it does the same without a wall around it, for tests.
//
// The first argument, without its folder, says what it is: sh or bash, a tool, or
// else the path of a script.
package main

import (
	"context"
	"fmt"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/box"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/sh"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func main() {
	// A script that recurses without an end has no use for the stacks of this program.
	debug.SetTraceback("none")
	args, env := task()
	s := &sh.Shell{Tools: box.Tools(), Proc: tool.NewProcess(), Crash: crash}
	c := &tool.Call{Args: args, Dir: "/", Env: env, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if dir := c.Getenv("PWD"); path.IsAbs(dir) {
		c.Dir = path.Clean(dir)
	}
	os.Exit(s.Exec(context.Background(), c))
}

// statusCrash is that of a program with a bug, as sysexits.h has it (EX_SOFTWARE).
const statusCrash = 70

// crash ends the guest for a panic, with what is needed to report it in one line. No trap of a
// script runs: who knows in what state the interpreter is.
func crash(v any) {
	where := "?"
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	for panicked := false; ; {
		f, more := frames.Next()
		if panicked && !strings.HasPrefix(f.Function, "runtime.") {
			where = fmt.Sprintf("%s, line %d", f.Function, f.Line)
			break
		}
		panicked = panicked || f.Function == "runtime.gopanic"
		if !more {
			break
		}
	}
	fmt.Fprintf(os.Stderr, "sh: this is a bug of the wasm shell, please report it: %v, in %s\n", v, where)
	os.Exit(statusCrash)
}
