// Package rpc carries the message protocol of package executor over a Unix socket:
// one bidirectional gRPC stream for each connection.
//
// The server knows its callers by the kernel's word on the socket alone, and gives a client the
// blobs that its results name and no others. A client
// can hold a bounded number of connections, tasks and bytes. When it goes, its
// tasks are canceled and awaited; when it does not read, only it waits.
//
// Both ends build on every system; a server needs Linux for its callers' credentials.
package rpc

import "github.com/sandboxd/sandboxd/executor"

// maxMessage bounds a message both ways: the largest spec, and room for its frame.
const maxMessage = executor.MaxSpecBytes + 64<<10

// Windows and buffers are fixed: a socket on one machine has no bandwidth to find out.
const (
	windowBytes = 512 << 10
	bufferBytes = 32 << 10
)
