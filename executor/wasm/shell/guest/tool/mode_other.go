//go:build !wasip1

package tool

import (
	"io/fs"
	"os"
)

func chmod(name string, mode fs.FileMode) error { return os.Chmod(name, mode) }

func withMode(_ string, _ bool, fi fs.FileInfo) (fs.FileInfo, error) { return fi, nil }

func bare(fi fs.FileInfo) fs.FileInfo { return fi }
