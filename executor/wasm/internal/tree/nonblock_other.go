//go:build !unix

package tree

// Nonblock is no flag where no FIFO lies among files.
const Nonblock = 0
