package wasm

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/abi"
)

// section is one of a module, or another vector with its size before it.
func section(id []byte, parts ...[]byte) []byte {
	body := bytes.Join(parts, nil)
	n := len(body)
	if n >= 1<<14 {
		panic("a section that is too long")
	}
	return append(append(id, byte(n&0x7f|0x80), byte(n>>7)), body...)
}

// handmade is a component's core module, whose functions are an endless loop and one that does nothing, of the same type as
// all that have no parameters and a result. more is what else it has, by its place.
func handmade(ping byte, exported []byte, more []byte) []byte {
	export := func(name string, kind, index byte) []byte {
		return append(section(nil, []byte(name)), kind, index)
	}
	var i32 = []byte{0x7f}
	exports := [][]byte{
		export("memory", 2, 0), export(abi.ExecutorName+"#ping", 0, ping), export(abi.ExecuteTask, 0, 3), export("cabi_realloc", 0, 4), exported,
	}
	if exported == nil {
		exports = exports[:4]
	}
	return bytes.Join([][]byte{
		[]byte("\x00asm\x01\x00\x00\x00"),
		section([]byte{1}, []byte{4, 0x60, 0, 0, 0x60, 0, 1, 0x7f, 0x60, 14}, bytes.Repeat(i32, 13), []byte{0x7e, 1, 0x7f, 0x60, 4}, bytes.Repeat(i32, 4), []byte{1, 0x7f}),
		section([]byte{3}, []byte{5, 0, 1, 1, 2, 3}), // loop, endless ping, ping, execute-task, cabi_realloc
		section([]byte{5}, []byte{1, 0, 1}),
		section([]byte{7}, []byte{byte(len(exports))}, bytes.Join(exports, nil)),
		more,
		section([]byte{10}, []byte{5,
			7, 0, 3, 0x40, 0x0c, 0, 0x0b, 0x0b,
			9, 0, 3, 0x40, 0x0c, 0, 0x0b, 0x41, 1, 0x0b,
			4, 0, 0x41, 1, 0x0b,
			3, 0, 0, 0x0b,
			3, 0, 0, 0x0b,
		}),
	}, nil)
}

// TestLoops: what does not come to an end before there is a task is ended, and is the module's fault.
func TestLoops(t *testing.T) {
	initialize := append(section(nil, []byte("_initialize")), 0, 0)
	if out := run(t, openShell(t, Config{Module: handmade(2, nil, nil)}), uncached("x")); !strings.Contains(out.Evidence, "unreachable") {
		t.Fatalf("the module is not as it should be: %+v", out)
	}
	for name, module := range map[string][]byte{
		"start": handmade(2, nil, section([]byte{8}, []byte{0})), "_initialize": handmade(2, initialize, nil), "ping": handmade(1, nil, nil),
	} {
		e := openShell(t, Config{Module: module, trying: 300 * time.Millisecond})
		for range 2 {
			if out, err := e.Execute(t.Context(), uncached("x")); executor.KindOf(err) != executor.Unsupported || !strings.Contains(err.Error(), "does not come to an end") {
				t.Errorf("%s: %+v, %v", name, out, err)
			}
		}
	}
	e := openExecutor(t, Config{CodeDir: t.TempDir() + "/code", compiling: time.Nanosecond})
	if out, err := e.Execute(t.Context(), uncached("x")); executor.KindOf(err) != executor.Unsupported || !strings.Contains(err.Error(), "to be compiled") {
		t.Errorf("%+v, %v", out, err)
	}
}

// TestBeginsWithMuch: a component may have what it begins with before there is a task, and each task's limit holds.
func TestBeginsWithMuch(t *testing.T) {
	const much = 1600 // pages, which are more than what others may have by then
	memory := section([]byte{5}, []byte{1, 0, 1})
	module := bytes.Replace(handmade(2, nil, nil), memory, section([]byte{5}, []byte{1, 0, much&0x7f | 0x80, much >> 7}), 1)
	e := openShell(t, Config{Module: module})
	spec := uncached("x")
	spec.Limits.MemoryBytes = 64 << 20
	for range 2 {
		if out := run(t, e, uncached("x")); !strings.Contains(out.Evidence, "unreachable") {
			t.Errorf("it does not run: %+v", out)
		}
		if out := run(t, e, spec); out.Cause != executor.CauseOOMKilled || !strings.Contains(out.Evidence, "its memory begins with more") {
			t.Errorf("with less: %+v", out)
		}
	}
}

// TestImports: what a module cannot have is refused by its name.
func TestImports(t *testing.T) {
	name := append(section(nil, []byte("env")), section(nil, []byte("it"))...)
	for kind, what := range map[string][]byte{"table": {1, 0x70, 0, 0}, "memory": {2, 0, 1}, "global": {3, 0x7f, 0}} {
		module := slices.Concat([]byte("\x00asm\x01\x00\x00\x00"), section([]byte{2}, []byte{1}, name, what))
		e := openShell(t, Config{Module: module})
		if out, err := e.Execute(t.Context(), uncached("x")); executor.KindOf(err) != executor.Unsupported || !strings.Contains(err.Error(), kind+` "it" of "env"`) {
			t.Errorf("%s: %+v, %v", kind, out, err)
		}
	}
}

// tables is a command that has its tables grow until it may not.
var tables = bytes.Join([][]byte{
	[]byte("\x00asm\x01\x00\x00\x00"),
	{1, 4, 1, 0x60, 0, 0},
	{3, 2, 1, 0},
	{4, 4, 1, 0x70, 0, 1}, // a table of functions
	{5, 3, 1, 0, 1},
	append([]byte{7, 10, 1, 6}, "_start\x00\x00"...),
	{10, 20, 1, 18, 0,
		3, 0x40, // loop
		0xd0, 0x70, // ref.null func
		0x41, 0x80, 0xc2, 0xd7, 0x2f, // 100,000,000
		0xfc, 15, 0, // table.grow
		0x1a, 0x0c, 0, 0x0b, 0x0b},
}, nil)

// TestTables: memory that is not the module's own is bounded, too, and its end is told in a sentence.
func TestTables(t *testing.T) {
	e := openShell(t, Config{Module: tables})
	spec := uncached("x")
	spec.Limits.MemoryBytes = 64 << 20
	out := run(t, e, spec)
	if inVM() && out.Cause == executor.CauseSignaled && out.Signal == 9 {
		t.Skip("the VM has less memory than a worker may have, and its kernel ended the worker first")
	}
	if out.Cause != executor.CauseOOMKilled || strings.Contains(out.Evidence, "\n") {
		t.Errorf("%s: %s; %s", out.Cause, out.Evidence, out.Stderr.Inline)
	}
}
