//go:build unix

package wasm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
)

// TestLargeDirectory: a directory is told at once, and all of its entries as far as they can be.
func TestLargeDirectory(t *testing.T) {
	dir := t.TempDir()
	const n = 13_000 // with all that is known of the links it would be more than a frame
	target := strings.Repeat("x", 4000)
	for _, d := range []string{"files", "links"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o700))
		for i := range n {
			name := filepath.Join(dir, d, fmt.Sprint("name", i))
			if d == "files" {
				must(t, os.WriteFile(name, nil, 0o600))
			} else {
				must(t, os.Symlink(target, name))
			}
		}
	}
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	for d, some := range map[string]bool{"files": false, "links": true} {
		all, err := tree.Dir{Root: root}.List(d)
		must(t, err)
		bare := 0
		for _, i := range all {
			if i.Bare {
				bare++
			}
		}
		if len(all) != n || (bare > 0) != some {
			t.Errorf("of %d %s %d are listed, %d by their names alone", n, d, len(all), bare)
		}
	}
	e := openExecutor(t, Config{})
	spec := uncached("count /build/files\ncount /build/links")
	spec.Workdir = dir
	if out := run(t, e, spec); string(out.Stdout.Inline) != "13000 13000 " {
		t.Errorf("a task sees %s, %s", out.Stdout.Inline, out.Stderr.Inline)
	}
}
