package abi

import (
	"encoding/binary"
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

// module is one that has memory alone.
type module struct {
	api.Module
	memory
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
