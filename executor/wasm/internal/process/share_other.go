//go:build !linux

package process

// shareCode is for Linux.
func shareCode(string, string, []byte) error { return nil }
