package component

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
)

// withCode is a module with a function that it exports as f, which takes an i32 and returns one.
func withCode(code []byte) []byte {
	b := append(bytes.Clone(coreMagic), section(1, 1, 0x60, 1, 0x7f, 1, 0x7f)...)
	b = append(b, section(3, 1, 0)...)
	b = append(b, section(coreExport, 1, 1, 'f', 0, 0)...)
	return append(append(b, section(coreCode, code...)...), section(0, 1, 'x', 'y')...)
}

// call calls f with 1. The error is of that, valid says whether there is a module to call it of.
func call(b []byte) (got []uint64, valid bool, err error) {
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	defer r.Close(ctx)
	m, err := r.Instantiate(ctx, b)
	if err != nil {
		return nil, false, err
	}
	got, err = m.ExportedFunction("f").Call(ctx, 1)
	return got, true, err
}

func TestStub(t *testing.T) {
	b := withCode([]byte{1, 9, 1, 2, 0x7f, 0x20, 0, 0x41, 41, 0x6a, 0x0b}) // two locals; x + 41
	if got, _, err := call(b); err != nil || got[0] != 42 {
		t.Fatalf("%d, %v", got, err)
	}
	stub, err := Stub(b)
	if err != nil {
		t.Fatal(err)
	}
	if want := withCode(append([]byte{1}, trap...)); !bytes.Equal(stub, want) {
		t.Errorf("%q, want %q", stub, want)
	}
	if _, valid, err := call(stub); !valid || err == nil || !strings.Contains(err.Error(), "unreachable") {
		t.Errorf("called, it ends with %v; want a trap", err)
	}
	if again, err := Stub(stub); err != nil || !bytes.Equal(again, stub) {
		t.Errorf("%q, %v", again, err)
	}
	for what, b := range map[string][]byte{"no module": []byte("\x7fELF"), "cut short": b[:len(b)-1], "more functions than bytes": withCode([]byte{9, 1, 0})} {
		if _, err := Stub(b); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// FuzzStub: of a module that is valid the stub is, and traps.
func FuzzStub(f *testing.F) {
	f.Add([]byte{1, 7, 0, 0x20, 0, 0x41, 41, 0x6a, 0x0b})
	f.Add([]byte{1, 9, 1, 2, 0x7f, 0x20, 0, 0x41, 41, 0x6a, 0x0b})
	f.Fuzz(func(t *testing.T, code []byte) {
		b := withCode(code)
		stub, err := Stub(b)
		ctx := context.Background()
		r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
		defer r.Close(ctx)
		if _, bad := r.CompileModule(ctx, b); bad != nil {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, valid, err := call(stub); !valid || !strings.Contains(err.Error(), "unreachable") {
			t.Errorf("%q: %v", b, err)
		}
	})
}
