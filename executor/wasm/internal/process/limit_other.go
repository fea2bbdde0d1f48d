//go:build !linux

package process

// limit does nothing, where the system has no bound for what is not mapped from files.
func limit(int64) {}

// sacrifice does nothing here.
func sacrifice() {}
