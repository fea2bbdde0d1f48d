package executor

import (
	"path/filepath"
	"strings"
)

// hostPath checks a path of the executor's machine, which is taken to be of this system.
func hostPath(field, p string) error {
	switch {
	case strings.HasPrefix(p, "/"): // of another system, or of the current drive
		return absolute(field, p)
	case len(p) > MaxPathBytes:
		return FieldErrorf(field, "is %d bytes long; at most %d may be", len(p), MaxPathBytes)
	case !filepath.IsAbs(p):
		return FieldErrorf(field, "%q is not an absolute path; begin it with a drive", p)
	case strings.ContainsRune(p, 0):
		return FieldErrorf(field, "%q holds a NUL byte, which no path can", p)
	case filepath.Clean(p) != p:
		return FieldErrorf(field, "%q is not clean; write it as %q", p, filepath.Clean(p))
	}
	return nil
}
