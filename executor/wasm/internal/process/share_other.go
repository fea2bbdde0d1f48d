//go:build !linux

package process

// shareCode is for Linux.
func shareCode(string, []byte) error { return nil }
