package local

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
)

// TestLogFault: a stream that the cache did not take from the beginning is an error at its end, and not a
// blob without its middle, whatever the cache can do by then.
func TestLogFault(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	store, err := cache.Open(dir, cache.Config{})
	must(t, err)
	defer func() { must(t, store.Close()) }()
	own, err := filepath.Glob(dir + "/tmp/*[^k]") // but the lock
	if err != nil || len(own) != 1 {
		t.Fatal(own, err)
	}
	l := &logs{cache: store, limit: 1 << 30}
	s := &stream{kind: executor.EventStdout}
	must(t, os.Remove(own[0]))
	l.take(s, bytes.Repeat([]byte("1"), executor.InlineBytes+1)) // as on a full disk
	must(t, os.Mkdir(own[0], 0o700))
	l.take(s, bytes.Repeat([]byte("2"), 100))
	if out, err := s.finish(); err == nil || out.Truncated {
		t.Errorf("%d bytes of %d, %v", out.Digest.Size, executor.InlineBytes+101, err)
	}
	if left, err := os.ReadDir(own[0]); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
