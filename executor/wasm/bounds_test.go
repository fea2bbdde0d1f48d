package wasm

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
)

// TestComponentsFilesAreBounded: what a component stores and fetches is within the task's limits, and it is told where that is not.
func TestComponentsFilesAreBounded(t *testing.T) {
	e := openShell(t, Config{Module: hostileModule(t), files: 20})
	large := filepath.Join(t.TempDir(), "large")
	must(t, os.WriteFile(large, nil, 0o600))
	must(t, os.Truncate(large, maxBlob+1))
	hash := func(size int) string { return cache.DigestOf(make([]byte, size)).Hash }
	for _, c := range []struct{ script, want string }{
		{"keep 4 250000", "fine\n"},
		{"keep 5 250000", "what is stored is more than 1000000 bytes or 20 files"},
		{"keep 20 100", "fine\n"},
		{"keep 21 100", "what is stored is more than 1000000 bytes or 20 files"},
		{"get " + hash(maxBlob+1), fmt.Sprintf("large has %d bytes; at most %d are fetched at once", maxBlob+1, maxBlob)},
	} {
		spec := uncached(c.script)
		spec.Limits.OutputBytes = 1_000_000
		spec.Workdir = filepath.Dir(large)
		if out := run(t, e, spec); string(out.Stdout.Inline) != c.want {
			t.Errorf("%s: %q, want %q; %+v", c.script, out.Stdout.Inline, c.want, out)
		}
	}
	must(t, os.Truncate(large, maxBlob))
	spec := uncached("get " + hash(maxBlob))
	spec.Workdir = filepath.Dir(large)
	if out, want := run(t, e, spec), fmt.Sprint(maxBlob, " bytes"); string(out.Stdout.Inline) != want {
		t.Errorf("the largest that is fetched: %q, want %q; %+v", out.Stdout.Inline, want, out)
	}
}

// growingCommand is a wasip1 command that asks for 64 MiB of memory more, and is content with what comes of it.
func growingCommand() []byte {
	section := func(id byte, body ...byte) []byte { return append([]byte{id, byte(len(body))}, body...) }
	return slices.Concat([]byte("\x00asm\x01\x00\x00\x00"),
		section(1, 1, 0x60, 0, 0), section(3, 1, 0), section(5, 1, 0, 1), // a function, and a page of memory
		section(7, slices.Concat([]byte{2, 6}, []byte("memory"), []byte{2, 0, 6}, []byte("_start"), []byte{0, 0})...),
		section(10, 1, 8, 0, 0x41, 0x80, 0x08, 0x40, 0, 0x1a, 0x0b), // 1024 memory.grow drop
	)
}

// TestStrainedIsNotStored: a success that was refused something may be another one with more, and is found by nobody.
func TestStrainedIsNotStored(t *testing.T) {
	memory, files := openShell(t, Config{Module: growingCommand()}), openExecutor(t, Config{files: 10})
	for _, c := range []struct {
		name     string
		e        *Executor
		script   string
		limits   executor.ResourceLimits
		strained bool
	}{
		{"memory", memory, "x", executor.ResourceLimits{MemoryBytes: 32 << 20}, true},
		{"memory enough", memory, "x", executor.ResourceLimits{MemoryBytes: 128 << 20}, false},
		{"bytes", files, "fails write /tmp/f 100000", executor.ResourceLimits{TmpBytes: 10_000}, true},
		{"bytes enough", files, "write /tmp/f 100000", executor.ResourceLimits{TmpBytes: 100_000}, false},
		{"files", files, "fails files /tmp/f 11", executor.ResourceLimits{}, true},
		{"files enough", files, "files /tmp/f 10", executor.ResourceLimits{}, false},
	} {
		for n := range 2 {
			out := run(t, c.e, &executor.TaskSpec{Script: c.script, Limits: c.limits})
			if !out.Success() || out.Cached != (n == 1 && !c.strained) {
				t.Errorf("%s, time %d: %+v %s", c.name, n, out, out.Stderr.Inline)
			}
			if strings.Contains(out.Evidence, "refused") != c.strained && n == 0 {
				t.Errorf("%s: the evidence is %q", c.name, out.Evidence)
			}
		}
	}
}

// TestClockIsSigned: what a task came to that saw the time is no result for one that must not, nor the other way round.
func TestClockIsSigned(t *testing.T) {
	c := openCache(t)
	seen := map[executor.Signature]bool{}
	for _, real := range []bool{false, true} {
		e := openExecutor(t, Config{Cache: c, RealClock: real})
		for n := range 2 {
			out := run(t, e, &executor.TaskSpec{Script: "date"})
			if out.Cached != (n == 1) || strings.HasPrefix(string(out.Stdout.Inline), "2022-01-01") == real {
				t.Errorf("real clock %v, time %d: cached %v, %s", real, n, out.Cached, out.Stdout.Inline)
			}
			seen[out.Signature] = true
		}
	}
	if len(seen) != 2 {
		t.Errorf("both have the signatures %v", seen)
	}
}
