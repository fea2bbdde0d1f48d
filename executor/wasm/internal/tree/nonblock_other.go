//go:build !unix

package tree

// nonblock is nothing where no FIFO lies among files.
const nonblock = 0
