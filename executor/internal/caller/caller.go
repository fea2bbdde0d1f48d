// Package caller is what an executor does on behalf of those who call it: with their rights to files, and no others.
package caller

import (
	"slices"

	"github.com/sandboxd/sandboxd/executor"
)

// Alike reports whether two callers are the same to files: whatever one may read or write, so may the other.
func Alike(a, b executor.Caller) bool {
	groups := func(c executor.Caller) []uint32 {
		return slices.Compact(slices.Sorted(slices.Values(c.Groups)))
	}
	return a.UID == b.UID && a.GID == b.GID && slices.Equal(groups(a), groups(b))
}
