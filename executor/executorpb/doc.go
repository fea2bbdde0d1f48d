// Package executorpb is the wire form of package executor's messages, generated
// from executor.proto. Package rpc turns one into the other; nothing else uses it.
package executorpb

//go:generate ./generate.sh
