// Package shell holds the program that runs a task where there is no kernel to run
// it: a POSIX shell and the usual tools, as one WebAssembly module.
//
// The module is a command of WASI's preview 1. It is built from package guest by
// build.sh, whose result is kept beside it and which `make check` compares, since
// whoever builds this program with `go install` has neither make nor the need for a
// second toolchain.
//
// # What the module needs of its host
//
// Arguments as for a process: args[0] is sh, bash, the name of a tool or the path of
// a script. The environment's PWD is the working directory. All files are below one
// preopened directory, /. Beside WASI it imports from the module sandboxd:
//
//	chmod(path, path_len, mode u32) -> errno i32
//	mode(path, path_len, follow u32) -> i32
//	touch(path, path_len, time) -> errno i32
//	task() -> u32
//	task_read(buffer)
//
// WASI has no permission bits, so the first two set and tell them: of the file at an
// absolute path, through a symbolic link at its end for chmod and if follow is not
// 0, in the numbers of chmod(2), of which a host may refuse those above 0777, and of a
// FIFO and a socket, which WASI does not tell apart, also the type in those of stat(2).
// An error is WASI's errno, which mode returns
// negated. A file that the guest creates has the mode 0644 and a directory 0755
// until it says otherwise. touch sets the time of modification of a symbolic link itself, or of another file: nanoseconds since
// 1970, in the eight bytes at time.
//
// task lets a host start the module before there is anything to run, which is most of
// what a short task takes: it blocks until there is, and returns the length of the
// description that task_read then writes to buffer. These are strings, each ended by a
// NUL: the number of arguments in decimal, the arguments, and the environment as
// NAME=VALUE. Where task returns 0, arguments and environment are those of WASI; where it returns 1<<32 - 1, it is called again.
package shell

import (
	_ "embed"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

//go:generate ./build.sh

//go:embed shell.wasm.zst
var compressed []byte

// Module returns the shell as a WebAssembly module. It is unpacked once and shared:
// the caller must not change it.
func Module() ([]byte, error) { return module() }

var module = sync.OnceValues(func() ([]byte, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("unpack the wasm shell: %w", err)
	}
	defer d.Close()
	b, err := d.DecodeAll(compressed, nil)
	if err != nil {
		return nil, fmt.Errorf("unpack the wasm shell: %w", err)
	}
	return b, nil
})
