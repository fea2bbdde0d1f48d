//go:build !unix

package wasm

import "io/fs"

// private takes a directory below the user's own for what it is.
func private(string, fs.FileInfo) error { return nil }

// unmovable does as well.
func unmovable(string, fs.FileInfo) error { return nil }
