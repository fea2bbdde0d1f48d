//go:build !windows

package executor

// hostPath checks a path of the executor's machine.
func hostPath(field, p string) error { return absolute(field, p) }
