//go:build unix

package tree

import "syscall"

// nonblock has the opening of a FIFO that took a file's place not wait for its other end.
const nonblock = syscall.O_NONBLOCK
