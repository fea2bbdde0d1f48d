package abi

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/tetratelabs/wazero/api"
)

// memory is a module's memory, as far as lifting looks at it.
type memory struct {
	api.Memory
	b []byte
}

// Size implements api.Memory.
func (m memory) Size() uint32 { return uint32(len(m.b)) }

// Read implements api.Memory.
func (m memory) Read(at, n uint32) ([]byte, bool) {
	if uint64(at)+uint64(n) > uint64(len(m.b)) {
		return nil, false
	}
	return m.b[at : at+n : at+n], true
}

// ReadUint32Le implements api.Memory.
func (m memory) ReadUint32Le(at uint32) (uint32, bool) {
	b, ok := m.Read(at, 4)
	if !ok {
		return 0, false
	}
	return binary.LittleEndian.Uint32(b), true
}

// module is one that has memory, and functions that stand for a guest's.
type module struct {
	api.Module
	memory
	functions map[string]function
}

// function is one.
type function func(args ...uint64) uint64

// guest implements api.Function.
type guest struct {
	api.Function
	f function
}

// Call implements api.Function.
func (g guest) Call(_ context.Context, args ...uint64) ([]uint64, error) {
	return []uint64{g.f(args...)}, nil
}

// ExportedFunction implements api.Module.
func (m module) ExportedFunction(name string) api.Function {
	if f := m.functions[name]; f != nil {
		return guest{f: f}
	}
	return nil
}

// Memory implements api.Module.
func (m module) Memory() api.Memory { return m.memory }

// good is a memory with a result at 8.
func good() []byte {
	b := make([]byte, 128)
	le := binary.LittleEndian
	for i, v := range []uint32{0, 0, 100, 3, 64, 1, 103, 2, 105, 1, 7, 0, 9, 1} {
		le.PutUint32(b[8+4*i:], v)
	}
	for i, v := range []uint32{100, 1, 101, 2} {
		le.PutUint32(b[64+4*i:], v)
	}
	copy(b[100:], "sigoute")
	return b
}

func TestResult(t *testing.T) {
	out, err := (&Instance{m: module{memory: memory{b: good()}}}).result(8)
	if err != nil {
		t.Fatal(err)
	}
	if out.Signature != "sig" || len(out.OutputFiles) != 1 || out.OutputFiles[0] != [2]string{"s", "ig"} || out.Stdout != "ou" || out.Stderr != "t" ||
		out.ExitCode != 7 || out.DurationMS != 9|1<<32 {
		t.Errorf("%+v", out)
	}
	b := good()
	b[8] = 1
	if out, err := (&Instance{m: module{memory: memory{b: b}}}).result(8); out != nil || err.Error() != "sig" {
		t.Errorf("%+v, %v", out, err)
	}
}

// TestCleanedUp: what a guest wants called after its calls is called, with what they returned, and may not call the host.
func TestCleanedUp(t *testing.T) {
	var i *Instance
	var posts []uint64
	post := func(args ...uint64) uint64 {
		posts = append(posts, args...)
		if i.MayCall() {
			t.Error("it may call the host as it cleans up")
		}
		return 0
	}
	i = NewInstance(module{memory: memory{b: good()}, functions: map[string]function{
		ExecuteTask: func(...uint64) uint64 { return 8 }, postPrefix + ExecuteTask: post,
		ping: func(...uint64) uint64 { return 3 }, postPrefix + ping: post,
		realloc: func(...uint64) uint64 {
			if i.MayCall() {
				t.Error("it may call the host as it allocates")
			}
			return 0
		},
	}})
	if out, err := i.ExecuteTask(t.Context(), &TaskSpec{}); err != nil || out.Signature != "sig" {
		t.Errorf("%+v, %v", out, err)
	}
	if well, err := i.Ping(t.Context()); !well || err != nil {
		t.Errorf("%v, %v", well, err)
	}
	if len(posts) != 2 || posts[0] != 8 || posts[1] != 3 {
		t.Errorf("cleaned up after %v; want 8 and 3", posts)
	}
	if !i.MayCall() {
		t.Error("it may not call the host any more")
	}
}

// TestAllocated: what a guest says that it allocated is where it says, and as aligned as was asked for.
func TestAllocated(t *testing.T) {
	for at, want := range map[uint64]string{8: "", 6: "aligned to 4", 124: "", 128: "of a memory of 128", 0xfffffffc: "of a memory of 128"} {
		i := NewInstance(module{memory: memory{b: make([]byte, 128)}, functions: map[string]function{realloc: func(...uint64) uint64 { return at }}})
		l := &lower{ctx: t.Context(), i: i}
		l.alloc(4, 4)
		if (l.err == nil) != (want == "") || l.err != nil && !strings.Contains(l.err.Error(), want) {
			t.Errorf("at %#x: %v; want %q", at, l.err, want)
		}
	}
}

// TestLiftedInAll: what is lifted by one call is bounded in all, also where it is the same bytes again.
func TestLiftedInAll(t *testing.T) {
	b := append(good(), make([]byte, MaxLifted)...)
	for _, field := range []int{8 + 24, 8 + 32} { // stdout and stderr
		binary.LittleEndian.PutUint32(b[field:], 200)
		binary.LittleEndian.PutUint32(b[field+4:], MaxLifted/2)
	}
	if out, err := (&Instance{m: module{memory: memory{b: b}}}).result(8); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("%.100v, %v", out, err)
	}
}

// FuzzResult: of any memory comes an output or an error, never both; strings are UTF-8, and all of it is bounded.
func FuzzResult(f *testing.F) {
	f.Add(good(), uint32(8))
	f.Add([]byte{}, uint32(0xfffffff8))
	f.Fuzz(func(t *testing.T, b []byte, at uint32) {
		out, err := (&Instance{m: module{memory: memory{b: b}}}).result(at)
		if (out == nil) == (err == nil) {
			t.Fatalf("%+v with %v", out, err)
		}
		if err != nil {
			return
		}
		sum := 0
		for _, s := range append([][2]string{{out.Signature, out.Stdout}, {out.Stderr}}, out.OutputFiles...) {
			if !utf8.ValidString(s[0]) || !utf8.ValidString(s[1]) {
				t.Errorf("%q is not UTF-8", s)
			}
			sum += len(s[0]) + len(s[1])
		}
		if sum > MaxLifted || len(out.OutputFiles) > maxFiles {
			t.Errorf("%d bytes, %d files", sum, len(out.OutputFiles))
		}
	})
}
