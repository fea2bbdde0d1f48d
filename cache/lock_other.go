//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package cache

import "os"

// flock does nothing: there is none, and so one process may use a directory.
func flock(*os.File, bool) error { return nil }

func funlock(*os.File) error { return nil }

func tryFlock(*os.File) bool { return true }

// syncFile does nothing for a directory, which cannot be synced here, nor for a file, which
// cannot through a descriptor that is open for reading.
func syncFile(*os.File) error { return nil }
