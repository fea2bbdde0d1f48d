package process

import (
	"bytes"
	"os"

	"github.com/tetratelabs/wazero/experimental"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// memory is the linear memory of one instance, with the task's limit.
type memory struct {
	limit uint64 // 0 before there is a task
	begin uint64 // what an instance begins with, by its module: it may have that before there is a task
	size  uint64
	// extra is what of the size is a task's before: memory never shrinks, and a guest that became what it was does not know of it.
	extra   uint64
	peak    uint64
	refused bool
	region  region // of the instance's memory; nil before there is one
}

const (
	// beforeTask bounds the memory of a module that waits for its task.
	beforeTask = 64 << 20
	// maxExtra bounds memory's extra.
	maxExtra = wire.MaxModuleMemory - wire.MaxMemory
)

// Allocate implements experimental.MemoryAllocator.
func (m *memory) Allocate(_, most uint64) experimental.LinearMemory {
	m.region, m.size = reserve(most), 0
	return &linear{m: m, region: m.region}
}

// region is memory that can grow.
type region interface {
	// grow returns the first size bytes, or nil.
	grow(size uint64) []byte
	free()
	// keep notes what it holds, in a file of imageFile, and revert makes it that again, with zeros in what has been added.
	keep(in *os.File) error
	revert()
}

// linear implements experimental.LinearMemory.
type linear struct {
	m *memory
	region
}

// Reallocate implements experimental.LinearMemory.
func (l *linear) Reallocate(size uint64) []byte {
	limit := l.m.limit
	if limit == 0 {
		limit = max(beforeTask, l.m.begin)
	}
	if size-l.m.extra > limit {
		l.m.refused = true
		return nil
	}
	b := l.grow(size)
	if b == nil {
		l.m.refused = true
		return nil
	}
	l.m.size = size
	l.m.peak = max(l.m.peak, size-l.m.extra)
	return b
}

// Free implements experimental.LinearMemory.
func (l *linear) Free() { l.free() }

// heap is a region of the Go heap, which is copied where it grows.
type heap struct{ b, kept []byte }

func (h *heap) grow(size uint64) []byte {
	if n := uint64(len(h.b)); size > n {
		h.b = append(h.b, make([]byte, size-n)...)
	}
	return h.b[:size]
}

func (h *heap) free() { h.b, h.kept = nil, nil }

func (h *heap) keep(*os.File) error {
	h.kept = bytes.Clone(h.b)
	return nil
}

func (h *heap) revert() { clear(h.b[copy(h.b, h.kept):]) }
