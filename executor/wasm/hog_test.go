package wasm

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// filler is a command that fills a memory of 1 GiB, again and again, by one instruction each time.
var filler = bytes.Join([][]byte{
	[]byte("\x00asm\x01\x00\x00\x00"),
	{1, 4, 1, 0x60, 0, 0},       // type 0: no parameters, no results
	{3, 2, 1, 0},                // function 0 is of that
	{5, 5, 1, 0, 0x80, 0x80, 1}, // memory: at least 16384 pages
	append([]byte{7, 10, 1, 6}, "_start\x00\x00"...),
	{10, 22, 1, 20, 0, // its body
		3, 0x40, // loop
		0x41, 0, 0x41, 1, // from 0, with 1
		0x41, 0xff, 0xff, 0xff, 0xff, 3, // 1 GiB
		0xfc, 11, 0, // memory.fill
		0x0c, 0, 0x0b, 0x0b}, // again
}, nil)

// TestFill: also one instruction that takes long is ended in time.
func TestFill(t *testing.T) {
	e := openShell(t, Config{Module: filler})
	spec := uncached("x")
	spec.Timeout = 100 * time.Millisecond
	began := time.Now()
	out := run(t, e, spec)
	if out.Cause != executor.CauseTimedOut {
		t.Errorf("%+v", out)
	}
	t.Logf("over after %v", time.Since(began))
	// Its memory is more than this task may have.
	spec.Limits.MemoryBytes = 512 << 20
	if out := run(t, e, spec); out.Cause != executor.CauseOOMKilled || !strings.Contains(out.Evidence, "its memory begins with more") {
		t.Errorf("%+v", out)
	}
}
