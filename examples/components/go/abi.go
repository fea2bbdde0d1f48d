//go:build wasip1

package main

import "unsafe"

// The canonical ABI by hand: strings and lists are an address and a length. What is handed over is kept
// from the garbage collector until it was taken.

var kept = map[uint32][]uint64{}

// cabiRealloc is how the host has us allocate what it gives.
//
//go:wasmexport cabi_realloc
func cabiRealloc(old, oldSize, _, size uint32) uint32 {
	b := make([]uint64, size/8+1) // aligned for all
	p := address(b)
	if old != 0 {
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&b[0])), size), text(old, oldSize))
		delete(kept, old)
	}
	kept[p] = b
	return p
}

func address(b []uint64) uint32 { return uint32(uintptr(unsafe.Pointer(&b[0]))) }

// words is memory that is handed over.
func words(n int) (uint32, []uint32) {
	p := cabiRealloc(0, 0, 8, uint32(4*n))
	return p, unsafe.Slice((*uint32)(unsafe.Pointer(&kept[p][0])), n)
}

// text is the string at an address.
func text(p, n uint32) string {
	if n == 0 {
		return ""
	}
	return string(unsafe.Slice((*byte)(unsafe.Pointer(uintptr(p))), n))
}

// give hands a string over.
func give(s string) (p, n uint32) {
	p = cabiRealloc(0, 0, 1, uint32(len(s)))
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&kept[p][0])), len(s)), s)
	return p, uint32(len(s))
}

// answer is a result<string, string> or result<list<u8>, string>.
type answer struct{ failed, at, n uint32 }

func (a *answer) value() (string, error) {
	s := text(a.at, a.n)
	if a.failed&0xff != 0 {
		return "", refused(s)
	}
	return s, nil
}

type refused string

func (r refused) Error() string { return string(r) }

//go:wasmimport bitzel:executor/host@0.1.0 fetch-file
func hostFetch(at unsafe.Pointer, n uint32, to unsafe.Pointer)

//go:wasmimport bitzel:executor/host@0.1.0 store-file
func hostStore(at unsafe.Pointer, n uint32, to unsafe.Pointer)

//go:wasmimport bitzel:executor/host@0.1.0 log
func hostLog(level unsafe.Pointer, levelLen uint32, at unsafe.Pointer, n uint32)

func fetch(hash string) (string, error) {
	var a answer
	hostFetch(unsafe.Pointer(unsafe.StringData(hash)), uint32(len(hash)), unsafe.Pointer(&a))
	return a.value()
}

func store(content string) (string, error) {
	var a answer
	hostStore(unsafe.Pointer(unsafe.StringData(content)), uint32(len(content)), unsafe.Pointer(&a))
	return a.value()
}

func log(level, message string) {
	hostLog(unsafe.Pointer(unsafe.StringData(level)), uint32(len(level)), unsafe.Pointer(unsafe.StringData(message)), uint32(len(message)))
}

//go:wasmexport bitzel:executor/executor@0.1.0#ping
func ping() uint32 { return 1 }

//go:wasmexport bitzel:executor/executor@0.1.0#execute-task
func executeTask(name, nameLen, _, _, script, scriptLen, _, _, _, _, _, _, _ uint32, _ uint64) uint32 {
	out, err := run(text(name, nameLen), text(script, scriptLen))
	p, w := words(14)
	clear(w)
	if err != nil {
		w[0] = 1
		w[2], w[3] = give(err.Error())
		return p
	}
	w[2], w[3] = give("")
	w[4], w[5] = 4, uint32(len(out.files))
	if len(out.files) > 0 {
		var l []uint32
		w[4], l = words(4 * len(out.files))
		for i, f := range out.files {
			l[4*i], l[4*i+1] = give(f[0])
			l[4*i+2], l[4*i+3] = give(f[1])
		}
	}
	w[6], w[7] = give(out.stdout)
	w[8], w[9] = give("")
	w[10] = uint32(out.code)
	return p
}

//go:wasmexport cabi_post_bitzel:executor/executor@0.1.0#execute-task
func post(uint32) { clear(kept) }
