//go:build !linux

package process

// sacrifice does nothing here.
func sacrifice() {}
