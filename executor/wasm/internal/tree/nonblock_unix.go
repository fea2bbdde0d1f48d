//go:build unix

package tree

import "syscall"

// Nonblock are flags of open(2) that have the opening of what took a file's place do nothing: that of a FIFO not wait for its other end, and that of a terminal not
// make it this process's.
const Nonblock = syscall.O_NONBLOCK | syscall.O_NOCTTY
