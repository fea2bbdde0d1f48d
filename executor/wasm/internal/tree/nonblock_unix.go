//go:build unix

package tree

import "syscall"

// Nonblock is a flag of open(2) that has the opening of a FIFO that took a file's place not wait for its other end.
const Nonblock = syscall.O_NONBLOCK
