// Command hostile is a component that lies to its host, in the way that the script names.
package main

import (
	"encoding/binary"
	"os"
	"strconv"
	"strings"
	"unsafe"
)

func main() {}

var (
	lie  = ""
	kept [][]uint64
)

func alloc(size uint32) uint32 {
	b := make([]uint64, size/8+1)
	kept = append(kept, b)
	return uint32(uintptr(unsafe.Pointer(&b[0])))
}

//go:wasmexport cabi_realloc
func cabiRealloc(_, _, align, size uint32) uint32 {
	switch lie {
	case "realloc beyond":
		return 0xfffffff0
	case "realloc unaligned":
		return alloc(size+8) + 1
	case "realloc small": // the end of memory is not far enough
		return 0x7fffffff &^ 7
	case "realloc calls":
		log("x")
	case "realloc traps":
		panic("as told")
	case "realloc spins":
		for {
		}
	}
	return alloc(size)
}

//go:wasmimport bitzel:executor/host@0.1.0 fetch-file
func hostFetch(at, n, to uint32)

//go:wasmimport bitzel:executor/host@0.1.0 store-file
func hostStore(at, n, to uint32)

//go:wasmimport bitzel:executor/host@0.1.0 log
func hostLog(level, levelLen, at, n uint32)

//go:wasmimport nowhere nothing
func nothing(uint32) uint64

func address(s string) uint32 { return uint32(uintptr(unsafe.Pointer(unsafe.StringData(s)))) }

func log(s string) { hostLog(address(s), uint32(len(s)), address(s), uint32(len(s))) }

//go:wasmexport bitzel:executor/executor@0.1.0#ping
func ping() uint32 { return 0x100 } // which is true

func text(p, n uint32) string {
	return string(unsafe.Slice((*byte)(unsafe.Pointer(uintptr(p))), n))
}

//go:wasmexport bitzel:executor/executor@0.1.0#execute-task
func executeTask(_, _, _, _, script, scriptLen, _, _, _, _, _, _, _ uint32, _ uint64) uint32 {
	what := text(script, scriptLen)
	p := alloc(56)
	w := unsafe.Slice((*uint32)(unsafe.Pointer(uintptr(p))), 14)
	clear(w)
	w[6], w[7] = address("fine\n"), 5
	to := alloc(12)
	number, hex := uint32(0), strings.Fields(what)
	if n, err := strconv.ParseUint(hex[len(hex)-1], 0, 32); err == nil {
		number = uint32(n)
	}
	switch {
	case what == "fine":
	case strings.HasPrefix(what, "return"):
		return number
	case what == "unaligned":
		return p + 4
	case strings.HasPrefix(what, "tag"):
		w[0] = number
	case strings.HasPrefix(what, "string at"):
		w[6] = number
	case strings.HasPrefix(what, "string of"):
		w[7] = number
	case what == "string not UTF-8":
		w[6], w[7] = address("\xff\xfe"), 2
	case strings.HasPrefix(what, "files of"):
		w[4], w[5] = 4, number
	case what == "files unaligned":
		w[4], w[5] = 2, 1
	case what == "files that are large": // the same megabytes again and again
		big := alloc(1 << 20)
		w[4], w[5] = alloc(16*1000), 1000
		l := unsafe.Slice((*uint32)(unsafe.Pointer(uintptr(w[4]))), 4000)
		for i := range 1000 {
			l[4*i], l[4*i+1], l[4*i+2], l[4*i+3] = big, 1<<20, big, 1<<20
		}
	case strings.HasPrefix(what, "output "):
		f := strings.Fields(what)
		w[4], w[5] = alloc(16), 1
		l := unsafe.Slice((*uint32)(unsafe.Pointer(uintptr(w[4]))), 4)
		kept = append(kept, nil)
		l[0], l[1], l[2], l[3] = address(f[1]), uint32(len(f[1])), address(f[2]), uint32(len(f[2]))
		names = f // not to be collected
	case strings.HasPrefix(what, "twice "): // gives one output again
		hash := strings.Fields(what)[1]
		w[4], w[5] = alloc(2*16), 2
		l := unsafe.Slice((*uint32)(unsafe.Pointer(uintptr(w[4]))), 8)
		for i := range 2 {
			l[4*i], l[4*i+1], l[4*i+2], l[4*i+3] = address("a"), 1, address(hash), uint32(len(hash))
		}
	case strings.HasPrefix(what, "keep "): // COUNT files of SIZE bytes, none like another
		f := strings.Fields(what)
		count, _ := strconv.Atoi(f[1])
		size, _ := strconv.Atoi(f[2])
		content := make([]byte, size)
		for i := range count {
			binary.LittleEndian.PutUint32(content, uint32(i))
			hostStore(uint32(uintptr(unsafe.Pointer(&content[0]))), uint32(size), to)
			if refused, text := result(to); refused {
				w[6], w[7] = address(text), uint32(len(text))
				names = []string{text}
				break
			}
		}
	case strings.HasPrefix(what, "get "): // HASH, and tells how long it is
		hash := strings.Fields(what)[1]
		hostFetch(address(hash), uint32(len(hash)), to)
		refused, text := result(to)
		if !refused {
			text = strconv.Itoa(len(text)) + " bytes"
		}
		w[6], w[7] = address(text), uint32(len(text))
		names = []string{text}
	case strings.HasPrefix(what, "log at"):
		hostLog(number, 16, number, 16)
	case strings.HasPrefix(what, "log of"):
		hostLog(address("x"), 1, address("x"), number)
	case what == "log lines":
		log("x\n[error] y\x1b[2J\u009b\tz")
	case what == "log not UTF-8":
		log("\xff")
	case strings.HasPrefix(what, "store at"):
		hostStore(number, 16, to)
	case strings.HasPrefix(what, "store of"):
		hostStore(to, number, to)
	case strings.HasPrefix(what, "store to"):
		hostStore(to, 8, number)
	case strings.HasPrefix(what, "fetch to"):
		hostFetch(address("x"), 1, number)
	case what == "fetch nothing":
		hostFetch(address("x"), 1, to)
		if unsafe.Slice((*byte)(unsafe.Pointer(uintptr(to))), 1)[0] != 1 {
			panic("it was there")
		}
	case strings.HasPrefix(what, "realloc"):
		lie = what
		hostStore(to, 8, to)
	case strings.HasPrefix(what, "post"):
		lie = what
	case what == "nowhere":
		nothing(1)
	case what == "exit":
		os.Exit(3)
	case what == "panic":
		panic("as told")
	case what == "code":
		w[10] = 0xffffffff
	}
	return p
}

// result is what a call of the host's left.
func result(to uint32) (refused bool, said string) {
	r := unsafe.Slice((*uint32)(unsafe.Pointer(uintptr(to))), 3)
	return byte(r[0]) == 1, text(r[1], r[2])
}

var names []string

//go:wasmexport cabi_post_bitzel:executor/executor@0.1.0#execute-task
func post(uint32) {
	switch lie {
	case "post traps":
		panic("as told")
	case "post calls":
		log("x")
	}
}
