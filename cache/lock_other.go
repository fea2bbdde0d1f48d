//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package cache

import "os"

// flock does nothing: there is none, and so one process may use a directory.
func flock(*os.File, bool) error { return nil }

func tryFlock(*os.File) bool { return true }

// syncDirFile does nothing: a directory cannot be synced here.
func syncDirFile(*os.File) error { return nil }
