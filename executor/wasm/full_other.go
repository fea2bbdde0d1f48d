//go:build !unix

package wasm

// full is false, for there is no such error.
func full(error) bool { return false }

// unwritable is false, for the same reason.
func unwritable(error) bool { return false }
