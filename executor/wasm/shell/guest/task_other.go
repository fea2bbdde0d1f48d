//go:build !wasip1

package main

import (
	"os"
	"path/filepath"
)

// task takes its name for what to be, as if it were linked to many names.
func task() (args, env []string) {
	return append([]string{filepath.Base(os.Args[0])}, os.Args[1:]...), os.Environ()
}
