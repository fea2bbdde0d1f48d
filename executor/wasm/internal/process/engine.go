package process

import (
	"fmt"
	"hash/crc32"
	"os"
	"reflect"
	"unsafe"

	"github.com/tetratelabs/wazero"
)

// codeOf is the memory with a module's machine code, in whole pages. It is not ok if this wazero interprets, or keeps it otherwise than we know.
func codeOf(m wazero.CompiledModule) (code []byte, ok bool) {
	module := reflect.ValueOf(m)
	all, id := field(module, "compiledEngine", "compiledModules"), field(module, "module", "ID")
	if all.Kind() != reflect.Map || !id.IsValid() || id.Type() != all.Type().Key() {
		return nil, false
	}
	v := field(all.MapIndex(id), "compiledModule", "executables", "executable")
	if v.Kind() != reflect.Slice || v.Type().Elem().Kind() != reflect.Uint8 {
		return nil, false
	}
	page := os.Getpagesize()
	if uintptr(v.UnsafePointer())%uintptr(page) != 0 {
		return nil, false
	}
	return unsafe.Slice((*byte)(v.UnsafePointer()), (v.Len()+page-1)/page*page), true
}

// field is a field of a field of what v is or points to; it is not valid if there is none.
func field(v reflect.Value, names ...string) reflect.Value {
	for _, name := range names {
		for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct {
			return reflect.Value{}
		}
		v = v.FieldByName(name)
	}
	return v
}

// mark tells one module's code from another's: its length and a checksum. It is a part of a file's name.
func mark(code []byte) string {
	return fmt.Sprintf("%d-%08x", len(code), crc32.Checksum(code, castagnoli))
}
