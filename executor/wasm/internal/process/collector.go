package process

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// collector collects garbage where that holds up nobody: a collection waits for all goroutines, and one
// that is in a guest's code may never come, so the runtime is kept from beginning one.
type collector struct {
	calls  int
	before uint64
	sample [1]metrics.Sample
}

// Between two looks at the heap are lookEvery calls, between two collections growth bytes.
const (
	lookEvery = 256
	growth    = 64 << 20
)

// called counts a guest's call of ours.
func (c *collector) called() {
	if c.calls++; c.calls >= lookEvery {
		c.now()
	}
}

// now collects if that pays.
func (c *collector) now() {
	c.calls = 0
	if c.heap() > c.before+growth {
		runtime.GC()
		c.before = c.heap()
	}
}

// all collects, and gives back to the system what is free.
func (c *collector) all() {
	debug.FreeOSMemory()
	c.before = c.heap()
}

// heap is how large it is.
func (c *collector) heap() uint64 {
	c.sample[0].Name = "/memory/classes/heap/objects:bytes"
	metrics.Read(c.sample[:])
	return c.sample[0].Value.Uint64()
}
