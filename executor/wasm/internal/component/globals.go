package component

import (
	"bytes"
	"errors"
	"fmt"
)

const coreGlobal = 6

// maxGlobals bounds how many globals a module may have that are exported: those of one that is made by
// a compiler are few.
const maxGlobals = 64

// ExportGlobals returns a core module with its own mutable globals exported by names that begin with prefix, and these
// names. One that imports globals, or has none of its own, is refused.
func ExportGlobals(core []byte, prefix string) (out []byte, names []string, err error) {
	r, err := coreReader(core)
	if err != nil {
		return nil, nil, err
	}
	var mutable []uint32
	for len(r.b) > 0 && r.err == nil {
		start := len(core) - len(r.b)
		id, body := r.section()
		if r.err != nil {
			break
		}
		q := &reader{b: body}
		switch id {
		case coreImport:
			for n := q.u32(); n > 0 && q.err == nil; n-- {
				q.name()
				q.name()
				if len(q.b) > 0 && q.b[0] == 3 {
					return nil, nil, errors.New("it imports a global")
				}
				q.importType()
			}
		case coreGlobal:
			for n, i := q.u32(), uint32(0); i < n && q.err == nil; i++ {
				q.u8()
				if q.u8() == 1 {
					mutable = append(mutable, i)
				}
				q.constant()
			}
		case coreExport:
			if len(mutable) == 0 || len(mutable) > maxGlobals {
				return nil, nil, fmt.Errorf("it has %d globals that change; at most %d may be", len(mutable), maxGlobals)
			}
			n := q.u32()
			if q.err != nil {
				return nil, nil, q.err
			}
			all := append(appendU32(nil, n+uint32(len(mutable))), q.b...)
			for _, g := range mutable {
				names = append(names, fmt.Sprint(prefix, g))
				all = appendU32(append(appendName(all, names[len(names)-1]), 3), g)
			}
			out = append(bytes.Clone(core[:start]), coreExport)
			out = append(appendU32(out, uint32(len(all))), all...)
			return append(out, r.b...), names, nil
		}
		r.fail(q.err)
	}
	if r.err != nil {
		return nil, nil, r.err
	}
	return nil, nil, errors.New("it exports nothing")
}

// constant passes over the value that a global has at first, as compilers write it.
func (r *reader) constant() {
	switch k := r.u8(); k {
	case 0x41, 0x42: // i32.const, i64.const
		if _, ok := r.leb(10); !ok {
			r.fail(errShort)
		}
	case 0x43: // f32.const
		r.bytes(4)
	case 0x44: // f64.const
		r.bytes(8)
	default:
		r.fail(fmt.Errorf("a global begins with the instruction %#x, which is not understood", k))
	}
	if r.u8() != 0x0b && r.err == nil {
		r.fail(errors.New("a global begins with more than a number"))
	}
}
