package main

import (
	"os"
	"strconv"
	"strings"
	"unsafe"
)

//go:wasmimport sandboxd task
func hostTask() uint32

//go:wasmimport sandboxd task_read
func hostTaskRead(p unsafe.Pointer)

// askAgain is for a host that wants to be asked once more.
const askAgain = 1<<32 - 1

// task asks the host what to run, for which it may wait: by now this guest has
// started, which is most of what a small task costs. A host that has nothing to say
// here gave arguments and environment in the way of WASI.
func task() (args, env []string) {
	n := hostTask()
	for n == askAgain {
		n = hostTask()
	}
	if n == 0 {
		return os.Args, os.Environ()
	}
	b := make([]byte, n)
	hostTaskRead(unsafe.Pointer(&b[0]))
	all := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
	argc, err := strconv.Atoi(all[0])
	if err != nil || argc < 1 || argc >= len(all) {
		panic("the host described no task")
	}
	return all[1 : 1+argc], all[1+argc:]
}
