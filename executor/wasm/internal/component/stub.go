package component

const coreCode = 10

// trap is the body of a function that traps at once, with its length: it has no locals, and unreachable is its one instruction.
var trap = []byte{3, 0, 0x00, 0x0b}

// Stub returns a core module that is as another but for what its functions do, which trap at once. What the other was compiled to
// is as good for it, and it is small: most of a module are its functions' bodies.
func Stub(core []byte) ([]byte, error) {
	return rewrite(core, func(id byte, body []byte) ([]byte, error) {
		if id != coreCode {
			return nil, nil
		}
		r := &reader{b: body}
		n := r.u32()
		stubs := appendU32(nil, n)
		for ; n > 0 && r.err == nil; n-- {
			r.bytes(r.u32())
			stubs = append(stubs, trap...)
		}
		return stubs, r.err
	})
}
