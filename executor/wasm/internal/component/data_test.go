package component

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
)

// withData is a module with a memory of a page, which it exports as m, and data segments.
func withData(segments ...[]byte) []byte {
	return withSection(append(appendU32(nil, uint32(len(segments))), bytes.Join(segments, nil)...))
}

func withSection(body []byte) []byte {
	b := append([]byte{}, coreMagic...)
	b = append(b, section(5, 1, 0, 1)...)
	b = append(b, section(coreExport, 1, 1, 'm', 2, 0)...)
	return append(b, section(coreData, body...)...)
}

func segment(at int32, data string) []byte {
	return appendName(append(appendI32([]byte{0, 0x41}, at), 0x0b), data)
}

// begins is what the memory of an instance is at first.
func begins(t *testing.T, b []byte) []byte {
	t.Helper()
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithMemoryLimitPages(1))
	defer r.Close(ctx)
	m, err := r.Instantiate(ctx, b)
	if err != nil {
		return nil
	}
	memory := m.ExportedMemory("m")
	if memory == nil {
		return nil
	}
	all, _ := memory.Read(0, memory.Size())
	return bytes.Clone(all)
}

func TestMergeData(t *testing.T) {
	b := withData(segment(8, "ab"), segment(10, "cd"), segment(65535, "z"), segment(17+5, "f"), segment(16, "e"))
	out, err := MergeData(b, 4)
	if err != nil {
		t.Fatal(err)
	}
	if want := withData(segment(8, "abcd\x00\x00\x00\x00e"), segment(22, "f"), segment(65535, "z")); !bytes.Equal(out, want) {
		t.Errorf("%q, want %q", out, want)
	}
	if was, is := begins(t, b), begins(t, out); was == nil || !bytes.Equal(was, is) {
		t.Error("memory begins otherwise")
	}
	for name, bad := range map[string][]byte{
		"overlap":      withData(segment(8, "ab"), segment(9, "c")),
		"of kind 1":    withData([]byte{1, 0x41}),
		"more than":    withData([]byte{0, 0x41, 1, 0x41}),
		"in the midst": withData([]byte{0, 0x41, 1, 0x0b, 5, 'a'}),
		"counts":       append(append([]byte{}, coreMagic...), section(coreDataCount, 0)...),
	} {
		if _, err := MergeData(bad, 4); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, err := MergeData(withData(segment(-64, "a")), 4); err != nil || !bytes.Equal(got, withData(segment(-64, "a"))) {
		t.Errorf("%q, %v", got, err)
	}
}

// FuzzMergeData: a module that can be instantiated begins with the same memory.
func FuzzMergeData(f *testing.F) {
	f.Add(append(append([]byte{3}, segment(8, "ab")...), append(segment(10, "cd"), segment(100, "")...)...), uint32(4))
	f.Add(append(append([]byte{2}, segment(-1, "")...), segment(10, "cd")...), uint32(1000))
	f.Fuzz(func(t *testing.T, body []byte, gap uint32) {
		b := withSection(body)
		out, err := MergeData(b, gap%1024)
		if err != nil {
			return
		}
		if was := begins(t, b); was != nil && !bytes.Equal(was, begins(t, out)) {
			t.Errorf("%q begins otherwise", b)
		}
	})
}
