//go:build !unix

package wasm

// nonblock is nothing where no FIFO lies among files.
const nonblock = 0
