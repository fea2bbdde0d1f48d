//go:build !amd64

package vmtest

// TSCkHz is zero, unknown: only x86-64 has such a counter.
func TSCkHz() uint64 { return 0 }
