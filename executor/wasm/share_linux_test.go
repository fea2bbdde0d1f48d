package wasm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// codeOf is which files a process has mapped for compiled code, by device and inode, and how much such code it has that is of no file.
func codeOf(t *testing.T, pid int) (files []string, own int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	must(t, err)
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		var from, to int
		if _, err := fmt.Sscanf(f[0], "%x-%x", &from, &to); err != nil || f[1] != "r-xp" {
			continue
		}
		switch {
		case len(f) > 5 && strings.Contains(f[5], "/code/"):
			files = append(files, f[3]+" "+f[4])
		case f[4] == "0":
			own += to - from
		}
	}
	return files, own
}

// TestSharedCode: workers have the pages of compiled code in common, and do without where its file is not what it was.
func TestSharedCode(t *testing.T) {
	cfg := Config{CodeDir: filepath.Join(t.TempDir(), "code"), MaxParallel: 2}
	var first []string
	look := func(e *Executor) {
		t.Helper()
		for range 2 {
			s := <-e.seats
			defer func() { e.seats <- s }()
			<-s.ready
			must(t, s.err)
			files, own := codeOf(t, s.worker.cmd.Process.Pid)
			if first == nil {
				first = files
			}
			if len(files) != 1 || !slices.Equal(files, first) || own > 1<<20 {
				t.Errorf("a worker runs code of the files %q, and has %d bytes for itself; another has %q", files, own, first)
			}
		}
	}
	e := openExecutor(t, cfg)
	if out := run(t, e, uncached("echo fine")); string(out.Stdout.Inline) != "fine\n" {
		t.Errorf("%+v", out)
	}
	look(e)

	for what, spoil := range map[string]func(name string) error{
		"other content": func(name string) error { // of the same length, and in a file of its own: the first one is mapped
			b, err := os.ReadFile(name)
			b[len(b)/2] ^= 1
			return errors.Join(err, os.Remove(name), os.WriteFile(name, b, 0o600))
		},
		"cut short":   func(name string) error { return errors.Join(os.Remove(name), os.WriteFile(name, []byte("x"), 0o600)) },
		"a directory": func(name string) error { return errors.Join(os.Remove(name), os.Mkdir(name, 0o700)) },
	} {
		all, err := filepath.Glob(filepath.Join(cfg.CodeDir, "*", "*.code"))
		must(t, err)
		if len(all) != 1 {
			t.Fatalf("there are %q", all)
		}
		must(t, spoil(all[0]))
		first = nil
		e := openExecutor(t, cfg)
		if out := run(t, e, uncached("echo fine")); string(out.Stdout.Inline) != "fine\n" {
			t.Errorf("%s: %+v", what, out)
		}
		look(e)
	}
}
