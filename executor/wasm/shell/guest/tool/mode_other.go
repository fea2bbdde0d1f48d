//go:build !wasip1

package tool

import (
	"io/fs"
	"os"
)

// Chmod sets the permission bits of a file, by its absolute path, through symbolic links.
func Chmod(name string, mode fs.FileMode) error { return os.Chmod(name, mode) }

func withMode(_ string, _ bool, fi fs.FileInfo) (fs.FileInfo, error) { return fi, nil }

func bare(fi fs.FileInfo) fs.FileInfo { return fi }
