package wasm

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// TestOutputsAreNotHeld: of what comes before a task's end, as often as its worker has it, no content is held in memory.
func TestOutputsAreNotHeld(t *testing.T) {
	const each, links = 64 << 10, 3
	c := openCache(t)
	e := openShell(t, Config{Cache: c})
	spec := uncached("mkdir o; head -c 65536 /dev/zero >o/0; ln o/0 o/1; ln o/0 o/2; : >o/empty")
	spec.Outputs = []string{"o"}
	out := run(t, e, spec)
	if n := slices.IndexFunc(out.OutputFiles, func(f executor.OutputFile) bool { return f.Path == "o/2" }); n < 0 || out.OutputFiles[n].Digest.Size != each || len(out.OutputFiles) != links+2 {
		t.Errorf("%+v", out.OutputFiles)
	}
	r := &running{task: &task{Executor: e, spec: spec, granted: granted{}}, ctx: t.Context()}
	r.granted.OutputBytes = links * each
	r.blobs = &blobs{task: r.task, ctx: t.Context()}
	send := func(o wire.Output) error {
		body, err := json.Marshal(o)
		must(t, err)
		return r.output(body)
	}
	for range links + 1 {
		must(t, send(wire.Output{Path: []byte("o/f"), Size: each, Content: make([]byte, each)}))
	}
	for _, o := range r.outputs {
		if o.Content != nil {
			t.Fatalf("%d bytes are held", len(o.Content))
		}
	}
	if b, err := c.Bytes(r.outputs[0].digest, each); err != nil || !bytes.Equal(b, make([]byte, each)) {
		t.Errorf("%d bytes are kept, %v", len(b), err)
	}
	if x := executor.AsError(r.unkept); x == nil || x.Field != "outputs" || !strings.Contains(x.Text, "more than") {
		t.Errorf("beyond the bound: %v", r.unkept)
	}
	r.unkept, r.outputs = nil, nil
	long := append([]byte("o/"), bytes.Repeat([]byte("x/"), executor.MaxPathBytes/2-2)...)
	for range maxNames/(len(long)-1) + 10 {
		must(t, send(wire.Output{Path: long[:len(long)-1], Mode: 1 << 31}))
	}
	if x := executor.AsError(r.unkept); x == nil || x.Field != "outputs" || !strings.Contains(x.Text, "bytes of names") || len(r.outputs) > maxNames/(len(long)-1)+2 {
		t.Errorf("%d of long names: %v", len(r.outputs), r.unkept)
	}
	// Nor is what is no name at all, of a worker that was taken over.
	if err := send(wire.Output{Path: []byte("o/l"), Mode: uint32(1 << 27), Target: make([]byte, executor.MaxPathBytes+1)}); err == nil {
		t.Error("a link without end was taken")
	}
	if err := r.undeclare(make([]byte, 3*executor.MaxPathBytes)); err == nil {
		t.Error("a path without end was taken")
	}
}
