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
	for name, spec := range map[string]executor.TaskSpec{
		"isolated": {}, "controlled": {Network: executor.NetworkControlled, Allow: []string{"registry.example:443", "10.0.0.0/8:5432/tcp"}},
	} {
		b.Run(name, func(b *testing.B) {
			spec.Argv, spec.Cache = []string{"/bin/true"}, executor.CacheOff
			for b.Loop() {
				out, err := e.Execute(b.Context(), &spec)
				if err != nil || !out.Success() {
					b.Fatal(out, err)
				}
			}
		})
	}
}
