package shell_test

import (
	"bytes"
	"testing"

	"github.com/sandboxd/sandboxd/executor/wasm/shell"
)

func TestModule(t *testing.T) {
	b, err := shell.Module()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(b, []byte("\x00asm\x01\x00\x00\x00")) {
		t.Fatalf("it begins with % x, not as a WebAssembly module", b[:min(8, len(b))])
	}
	if again, _ := shell.Module(); &again[0] != &b[0] {
		t.Error("it was unpacked twice")
	}
}
