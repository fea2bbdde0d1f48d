// Command guest is the shell of the portable path: a POSIX shell and the usual
// tools in one program, which is compiled to WebAssembly and embedded by package
// shell. Built natively it does the same without a wall around it, for tests.
//
// The first argument, without its folder, says what it is: sh or bash, a tool, or
// else the path of a script.
package main

import (
	"context"
	"os"
	"path"
	"runtime/debug"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/box"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/sh"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

func main() {
	// A script that recurses without an end has no use for the stacks of this program.
	debug.SetTraceback("none")
	args, env := task()
	s := &sh.Shell{Tools: box.Tools(), Proc: tool.NewProcess()}
	c := &tool.Call{Args: args, Dir: "/", Env: env, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if dir := c.Getenv("PWD"); path.IsAbs(dir) {
		c.Dir = path.Clean(dir)
	}
	os.Exit(s.Exec(context.Background(), c))
}
