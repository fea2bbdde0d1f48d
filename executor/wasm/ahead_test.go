package wasm

import (
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
)

// countingComponent is a module of the world in executor.wit that imports nothing and has 40 MiB of memory. It
// answers a task with the error "1", and the next one in the same instance with "2".
func countingComponent() []byte { return componentWithPost() }

// componentWithPost is the same with more code, a function that is called with the result of ping once that was seen.
func componentWithPost(post ...byte) []byte {
	vec := func(items ...[]byte) []byte { return append([]byte{byte(len(items))}, slices.Concat(items...)...) }
	sized := func(b ...byte) []byte { return append([]byte{byte(len(b))}, b...) }
	section := func(id byte, body []byte) []byte {
		size := []byte{byte(len(body))}
		if len(body) > 127 {
			size = []byte{byte(len(body)) | 0x80, byte(len(body) >> 7)}
		}
		return slices.Concat([]byte{id}, size, body)
	}
	export := func(name string, kind, index byte) []byte { return append(sized([]byte(name)...), kind, index) }
	const i32, i64 = 0x7f, 0x7e
	const end = 0x0b
	data := func(at []byte, b ...byte) []byte {
		return slices.Concat([]byte{0, 0x41}, at, []byte{end}, sized(b...))
	}
	at1024, at1100 := []byte{0x80, 0x08}, []byte{0xcc, 0x08}
	const world = "bitzel:executor/executor@0.1.0#"
	types := [][]byte{
		{0x60, 0, 1, i32},
		{0x60, 4, i32, i32, i32, i32, 1, i32},
		{0x60, 14, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i64, 1, i32},
		{0x60, 1, i32, 0},
	}
	functions := []byte{0, 1, 2} // of these types
	exports := [][]byte{export("memory", 2, 0), export(world+"ping", 0, 0), export("cabi_realloc", 0, 1), export(world+"execute-task", 0, 2)}
	code := [][]byte{
		sized(0, 0x41, 1, end),
		// The global is returned, and becomes (it + n + 15) & -8.
		sized(0, 0x23, 0, 0x23, 0, 0x20, 3, 0x6a, 0x41, 15, 0x6a, 0x41, 0x78, 0x71, 0x24, 0, end),
		// The byte at 1100 is counted up, and 1024 returned.
		sized(slices.Concat([]byte{0, 0x41}, at1100, []byte{0x41}, at1100, []byte{0x2d, 0, 0, 0x41, 1, 0x6a, 0x3a, 0, 0, 0x41}, at1024, []byte{end})...),
	}
	if post != nil {
		functions, exports = append(functions, 3), append(exports, export("cabi_post_"+world+"ping", 0, 3))
		code = append(code, sized(slices.Concat([]byte{0}, post, []byte{end})...))
	}
	return slices.Concat([]byte("\x00asm\x01\x00\x00\x00"),
		section(1, vec(types...)),
		section(3, append([]byte{byte(len(functions))}, functions...)),
		section(5, []byte{1, 0, 0x80, 0x05}),                       // 640 pages
		section(6, []byte{1, i32, 1, 0x41, 0x80, 0x80, 0x04, end}), // where free memory begins: 64 KiB
		section(7, vec(exports...)), section(10, vec(code...)),
		section(11, vec(data(at1024, 1, 0, 0, 0, 0, 0, 0, 0, 0x4c, 4, 0, 0, 1, 0, 0, 0), data(at1100, '0'))),
	)
}

// TestPingIsPosted: a component gets back the result of its ping, once that was seen.
func TestPingIsPosted(t *testing.T) {
	const local, constant, equal, unequal, when, trap, end = 0x20, 0x41, 0x46, 0x47, 0x04, 0x00, 0x0b
	for name, c := range map[string]struct {
		trapsIf byte
		want    string
	}{
		"traps for the result":         {equal, "unreachable"},
		"traps for all but the result": {unequal, "did not run the task: 1"},
	} {
		e := openShell(t, Config{Module: componentWithPost(local, 0, constant, 1, c.trapsIf, when, 0x40, trap, end)})
		if out, err := e.Execute(t.Context(), uncached("x")); executor.KindOf(err) != executor.Unsupported || !strings.Contains(err.Error(), c.want) {
			t.Errorf("one that %s: %+v, %v; want %s", name, out, err, c.want)
		}
	}
}

// TestComponentMadeAhead: an instance that is made before its task is for that one alone, and has no more memory than that may.
func TestComponentMadeAhead(t *testing.T) {
	e := openShell(t, Config{Module: countingComponent(), MaxParallel: 1})
	for range 3 {
		for range 2 {
			if _, err := e.Execute(t.Context(), uncached("x")); executor.KindOf(err) != executor.Unsupported || !strings.HasSuffix(err.Error(), "did not run the task: 1") {
				t.Errorf("%v", err)
			}
		}
		small := uncached("x")
		small.Limits.MemoryBytes = 32 << 20
		if out := run(t, e, small); out.Cause != executor.CauseOOMKilled || out.Success() {
			t.Errorf("%+v", out)
		}
	}
}
