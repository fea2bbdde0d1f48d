package wasm

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestFullScratch: a success of a task for whose files there was no room is told so, and is no result for when there is.
func TestFullScratch(t *testing.T) {
	testutil.RequireRoot(t)
	small := t.TempDir()
	must(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=2m,mode=700"))
	t.Cleanup(func() { must(t, unix.Unmount(small, 0)) })
	c, err := cache.Open(filepath.Join(small, "cache"), cache.Config{})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	e := openExecutor(t, Config{Cache: c})
	for n := range 2 {
		out := run(t, e, &executor.TaskSpec{Script: "fails write /tmp/f 10000000"})
		if !out.Success() || out.Cached || !strings.Contains(out.Evidence, "disk") {
			t.Errorf("time %d: %+v %s", n, out, out.Stderr.Inline)
		}
	}
}
