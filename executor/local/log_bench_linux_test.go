package local

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
)

// BenchmarkLog is what a task writes to its standard output, kept in the cache, and told of or not.
func BenchmarkLog(b *testing.B) {
	for _, told := range []bool{false, true} {
		for _, size := range []int{4 << 10, 128 << 10} {
			b.Run(fmt.Sprintf("told=%v/write=%dKiB", told, size>>10), func(b *testing.B) {
				store, err := cache.Open(filepath.Join(b.TempDir(), "cache"), cache.Config{})
				must(b, err)
				defer func() { must(b, store.Close()) }()
				var event executor.EventFunc
				got := 0
				if told {
					event = func(e executor.TaskEvent) { got += len(e.Data) }
				}
				p := bytes.Repeat([]byte("0123456789abcde\n"), size/16)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				l, err := openLogs(store, 1<<40, event, func() {})
				must(b, err)
				l.begin()
				for range b.N {
					_, err := l.outW.Write(p)
					must(b, err)
				}
				must(b, l.closeWriters())
				out, _, err := l.finish()
				must(b, err)
				if told && got != b.N*size || b.N*size > executor.InlineBytes && out.Digest.Size != int64(b.N*size) {
					b.Fatalf("%d of %d bytes told of, %d kept", got, b.N*size, out.Digest.Size)
				}
			})
		}
	}
}
