// Package component takes the module that does the work out of a component binary, so that it runs
// without a component runtime.
//
// What the usual tools make of a module (wit-component, and all that is built on it) is that module
// and some glue: a shim and a fixup, through which it imports what needs its memory, and perhaps an
// adapter of WASI. The host offers these imports itself, so the glue is not needed. What is
// more than that, such as several components in one, is refused with what it is.
//
// A binary is a stranger's: all is bounded by its own length, and nothing here recurses.
package component

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

var (
	coreMagic      = []byte("\x00asm\x01\x00\x00\x00")
	componentMagic = []byte("\x00asm\x0d\x00\x01\x00")
)

// Is says whether b begins as a component.
func Is(b []byte) bool { return bytes.HasPrefix(b, componentMagic) }

// Sections of a component, and of a core module.
const (
	sectionCoreModule = 1
	sectionCanon      = 8

	coreImport = 2
	coreExport = 7
)

// Core returns the module in the component b that exports export. The error is a sentence for whoever
// made the component.
func Core(b []byte, export string) ([]byte, error) {
	if !Is(b) {
		return nil, errors.New("it is no component: it does not begin as one of the layer and version that the tools make today")
	}
	r := &reader{b: b[len(componentMagic):]}
	var found []byte
	modules := 0
	for len(r.b) > 0 && r.err == nil {
		id, body := r.section()
		if r.err != nil {
			break
		}
		switch id {
		case sectionCoreModule:
			modules++
			has, err := exports(body, export)
			if err != nil {
				return nil, fmt.Errorf("its core module %d: %w", modules, err)
			}
			if has && found != nil {
				return nil, fmt.Errorf("more than one of its core modules exports %s; link them to one", export)
			}
			if has {
				found = body
			}
		case sectionCanon:
			if err := canon(body); err != nil {
				return nil, err
			}
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	if found == nil {
		return nil, fmt.Errorf("none of its %d core modules exports %s; it is composed of other components, or of another world", modules, export)
	}
	return original(found)
}

// exports says whether a core module exports a function.
func exports(b []byte, name string) (bool, error) {
	r, err := coreReader(b)
	if err != nil {
		return false, err
	}
	has := false
	for len(r.b) > 0 && r.err == nil {
		id, body := r.section()
		if id != coreExport {
			continue
		}
		q := &reader{b: body}
		for n := q.u32(); n > 0 && q.err == nil; n-- {
			x, kind := q.name(), q.u8()
			q.u32()
			has = has || x == name && kind == 0
		}
		r.fail(q.err)
	}
	return has, r.err
}

func coreReader(b []byte) (*reader, error) {
	if !bytes.HasPrefix(b, coreMagic) {
		return nil, errors.New("it is no WebAssembly module: it does not begin as one")
	}
	return &reader{b: b[len(coreMagic):]}, nil
}

// rewrite is a core module whose sections have other bodies where f returns some.
func rewrite(core []byte, f func(id byte, body []byte) ([]byte, error)) ([]byte, error) {
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
		to, err := f(id, body)
		switch {
		case err != nil:
			return nil, err
		case to == nil:
			out = append(out, core[start:len(core)-len(r.b)]...)
		default:
			out = append(appendU32(append(out, id), uint32(len(to))), to...)
		}
	}
	return out, nil
}

// OnlyFunctions refuses a core module that imports anything else, which nobody here has.
func OnlyFunctions(core []byte) error {
	r, err := coreReader(core)
	if err != nil {
		return err
	}
	for len(r.b) > 0 {
		id, body := r.section()
		if id != coreImport {
			continue
		}
		q := &reader{b: body}
		for n := q.u32(); n > 0 && q.err == nil; n-- {
			module, name := q.name(), q.name()
			if kind := map[byte]string{1: "table", 2: "memory", 3: "global", 4: "tag"}[first(q.b)]; kind != "" {
				return fmt.Errorf("it imports the %s %q of %q, which nobody has here; build it so that it has its own", kind, name, module)
			}
			q.importType()
		}
		r.fail(q.err)
	}
	return r.err
}

func first(b []byte) byte {
	if len(b) == 0 {
		return 0
	}
	return b[0]
}

// canon looks for what the host does not speak.
func canon(b []byte) error {
	r := &reader{b: b}
	for n := r.u32(); n > 0 && r.err == nil; n-- {
		switch k := r.u8(); k {
		case 0: // lift
			r.u8()
			r.u32()
			if err := options(r); err != nil {
				return err
			}
			r.u32()
		case 1: // lower
			r.u8()
			r.u32()
			if err := options(r); err != nil {
				return err
			}
		case 2, 3, 4: // resource.new, drop, rep
			r.u32()
		default:
			if r.err == nil {
				return fmt.Errorf("it uses the built-in %#x of the canonical ABI, which is of async functions or threads; build it without", k)
			}
		}
	}
	return r.err
}

// options are those of a lift or lower.
func options(r *reader) error {
	for n := r.u32(); n > 0 && r.err == nil; n-- {
		switch k := r.u8(); k {
		case 0: // utf8
		case 1, 2:
			if r.err == nil {
				return fmt.Errorf("its strings are %s, and only UTF-8 is understood; build it for that", map[byte]string{1: "UTF-16", 2: "Latin-1 or UTF-16"}[k])
			}
		case 3, 4, 5: // memory, realloc, post-return
			r.u32()
		default:
			if r.err == nil {
				return fmt.Errorf("it uses the option %#x of the canonical ABI, which is of async functions; build it without", k)
			}
		}
	}
	return nil
}

// original undoes what the tools do to a module that imports one function twice: they
// number the second, as "fd_write [v2]".
func original(core []byte) ([]byte, error) {
	r, err := coreReader(core)
	if err != nil {
		return nil, err
	}
	for len(r.b) > 0 && r.err == nil {
		start := len(core) - len(r.b)
		id, body := r.section()
		if id != coreImport {
			continue
		}
		end := len(core) - len(r.b)
		q := &reader{b: body}
		n := q.u32()
		out := appendU32(nil, n)
		for ; n > 0 && q.err == nil; n-- {
			module, name := q.name(), q.name()
			rest := q.b
			q.importType()
			out = appendName(appendName(out, module), unnumbered(name))
			out = append(out, rest[:len(rest)-len(q.b)]...)
		}
		if q.err == nil && len(q.b) > 0 {
			q.fail(errors.New("its imports are followed by something else"))
		}
		if q.err != nil {
			return nil, q.err
		}
		whole := append(bytes.Clone(core[:start]), coreImport)
		whole = append(appendU32(whole, uint32(len(out))), out...)
		return append(whole, core[end:]...), nil
	}
	return core, r.err
}

// unnumbered is a name without " [v2]" or another number at its end.
func unnumbered(name string) string {
	base, number, ok := strings.Cut(name, " [v")
	digits, closed := strings.CutSuffix(number, "]")
	if !ok || !closed || digits == "" || strings.Trim(digits, "0123456789") != "" {
		return name
	}
	return base
}

// reader takes from the front of b. After an error it gives zeros.
type reader struct {
	b   []byte
	err error
}

var errShort = errors.New("it ends in the midst of something, or has a number that is none")

func (r *reader) fail(err error) {
	if err != nil {
		if r.err == nil {
			r.err = err
		}
		r.b = nil
	}
}

func (r *reader) u8() byte {
	if len(r.b) == 0 {
		r.fail(errShort)
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

// u32 is a number in LEB128.
func (r *reader) u32() uint32 {
	v, ok := r.leb(5)
	if !ok || v > 1<<32-1 {
		r.fail(errShort)
		return 0
	}
	return uint32(v)
}

// leb is a number of at most so many bytes.
func (r *reader) leb(most int) (v uint64, ok bool) {
	for i := range most {
		c := r.u8()
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			return v, r.err == nil
		}
	}
	return 0, false
}

func (r *reader) bytes(n uint32) []byte {
	if uint64(n) > uint64(len(r.b)) {
		r.fail(errShort)
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) name() string { return string(r.bytes(r.u32())) }

func (r *reader) section() (id byte, body []byte) {
	id = r.u8()
	return id, r.bytes(r.u32())
}

// importType passes over the type of an import.
func (r *reader) importType() {
	switch k := r.u8(); k {
	case 0: // function
		r.u32()
	case 1: // table
		r.u8()
		r.limits()
	case 2: // memory
		r.limits()
	case 3: // global
		r.u8()
		r.u8()
	case 4: // tag
		r.u8()
		r.u32()
	default:
		r.fail(fmt.Errorf("it imports something of the kind %d, which is unknown", k))
	}
}

func (r *reader) limits() {
	flags := r.u8()
	least := 1
	if flags&1 != 0 {
		least = 2
	}
	for range least {
		if _, ok := r.leb(10); !ok {
			r.fail(errShort)
		}
	}
}

func appendU32(b []byte, v uint32) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

func appendName(b []byte, s string) []byte { return append(appendU32(b, uint32(len(s))), s...) }
