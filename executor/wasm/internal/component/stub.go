package component

import "bytes"

const coreCode = 10

// trap is the body of a function that traps at once, with its length: it has no locals, and unreachable is its one instruction.
var trap = []byte{3, 0, 0x00, 0x0b}

// Stub returns a core module that is as another but for what its functions do, which trap at once. What the other was compiled to
// is as good for it, and it is small: most of a module are its functions' bodies.
func Stub(core []byte) ([]byte, error) {
	r, err := coreReader(core)
	if err != nil {
		return nil, err
	}
	out := bytes.Clone(core[:len(core)-len(r.b)])
	for len(r.b) > 0 {
		start := len(core) - len(r.b)
		id, body := r.section()
		if r.err != nil {
			return nil, r.err
		}
		if id != coreCode {
			out = append(out, core[start:len(core)-len(r.b)]...)
			continue
		}
		q := &reader{b: body}
		n := q.u32()
		stubs := appendU32(nil, n)
		for ; n > 0 && q.err == nil; n-- {
			q.bytes(q.u32())
			stubs = append(stubs, trap...)
		}
		if q.err != nil {
			return nil, q.err
		}
		out = append(appendU32(append(out, coreCode), uint32(len(stubs))), stubs...)
	}
	return out, nil
}
