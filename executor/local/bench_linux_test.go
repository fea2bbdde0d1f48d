package local

import (
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// BenchmarkTask is one task at a time, without the cache.
func BenchmarkTask(b *testing.B) {
	testutil.RequireRoot(b)
	e := openExecutor(b)
	for b.Loop() {
		out, err := e.Execute(b.Context(), &executor.TaskSpec{Argv: []string{"/bin/true"}, Cache: executor.CacheOff})
		if err != nil || !out.Success() {
			b.Fatal(out, err)
		}
	}
}
