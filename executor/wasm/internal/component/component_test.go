package component

import (
	"bytes"
	"strings"
	"testing"
)

// section is one of a binary.
func section(id byte, body ...byte) []byte {
	return append(appendU32([]byte{id}, uint32(len(body))), body...)
}

// core is a module that imports names from "m" as functions of type 0, and exports names as functions.
func core(imports, exports []string) []byte {
	b := bytes.Clone(coreMagic)
	b = append(b, section(1, 1, 0x60, 0, 0)...) // one type, of no parameters
	in := appendU32(nil, uint32(len(imports)))
	for _, n := range imports {
		in = append(appendName(appendName(in, "m"), n), 0, 0)
	}
	b = append(b, section(coreImport, in...)...)
	out := appendU32(nil, uint32(len(exports)))
	for _, n := range exports {
		out = append(appendName(out, n), 0, 0)
	}
	return append(b, section(coreExport, out...)...)
}

func component(sections ...[]byte) []byte {
	return append(bytes.Clone(componentMagic), bytes.Join(sections, nil)...)
}

func TestCore(t *testing.T) {
	main := core([]string{"fd_write", "fd_write [v2]", "odd [v]", "odd [vx]", "x [v10]"}, []string{"run", "memory"})
	want := core([]string{"fd_write", "fd_write", "odd [v]", "odd [vx]", "x"}, []string{"run", "memory"})
	utf8 := section(sectionCanon, 1, 0, 0, 5, 3, 0, 3, 0, 4, 1, 7) // lift, with utf8, memory 0, realloc 1
	got, err := Core(component(section(0, 1, 'x'), section(1, core(nil, []string{"shim"})...), section(1, main...), utf8), "run")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	for text, b := range map[string][]byte{
		"it is no component":                             main,
		"more than one of its core modules":              component(section(1, main...), section(1, main...)),
		"none of its 1 core modules exports":             component(section(1, core(nil, nil)...)),
		"its strings are UTF-16":                         component(section(1, main...), section(sectionCanon, 1, 1, 0, 0, 1, 1)),
		"its strings are Latin-1 or UTF-16":              component(section(1, main...), section(sectionCanon, 1, 1, 0, 0, 1, 2)),
		"the option 0x6 of the canonical ABI":            component(section(1, main...), section(sectionCanon, 1, 0, 0, 5, 1, 6, 0)),
		"the built-in 0x1f of the canonical":             component(section(1, main...), section(sectionCanon, 1, 0x1f)),
		"it ends in the midst of something":              component(section(1, main...))[:40],
		"its core module 1: it is no WebAssembly module": component(section(1, 1, 2, 3)),
	} {
		if got, err := Core(b, "run"); got != nil || err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q, %v; want %s", got, err, text)
		}
	}
}

// TestCutShort: no part of a component is taken for one, nor does one that lies about a length do harm.
func TestCutShort(t *testing.T) {
	whole := component(section(1, core([]string{"a [v2]"}, []string{"run"})...), section(sectionCanon, 1, 0, 0, 5, 1, 0, 7))
	for i := range whole {
		if got, err := Core(whole[:i], "run"); err == nil && !bytes.HasPrefix(got, coreMagic) {
			t.Errorf("the first %d bytes: %q", i, got)
		}
		b := bytes.Clone(whole)
		b[i] ^= 0xff
		_, _ = Core(b, "run")
	}
}

// FuzzCore: what comes out is a module that exports what was asked for, and comes out of itself unchanged.
func FuzzCore(f *testing.F) {
	f.Add(component(section(1, core([]string{"a", "a [v2]"}, []string{"run"})...), section(sectionCanon, 1, 0, 0, 5, 1, 0, 7)))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Core(b, "run")
		if err != nil {
			if got != nil || err.Error() == "" {
				t.Errorf("%q with %v", got, err)
			}
			return
		}
		if has, err := exports(got, "run"); err != nil || !has {
			t.Errorf("%q: %v, %v", got, has, err)
		}
		if again, err := Core(component(section(1, got...)), "run"); err != nil || !bytes.Equal(again, got) {
			t.Errorf("%q became %q, %v", got, again, err)
		}
	})
}

func TestExportGlobals(t *testing.T) {
	plain := bytes.Clone(coreMagic)
	plain = append(plain, section(coreGlobal, 4, 0x7f, 1, 0x41, 0, 0x0b, 0x7e, 0, 0x42, 0, 0x0b, 0x7d, 1, 0x43, 0, 0, 0, 0, 0x0b, 0x7c, 1, 0x44, 0, 0, 0, 0, 0, 0, 0, 0, 0x0b)...)
	whole := append(bytes.Clone(plain), section(coreExport, 1, 1, 'm', 2, 0)...)
	whole = append(whole, section(0, 1, 'x')...)
	want := append(bytes.Clone(plain), section(coreExport, 4, 1, 'm', 2, 0, 2, 'g', '0', 3, 0, 2, 'g', '2', 3, 2, 2, 'g', '3', 3, 3)...)
	want = append(want, section(0, 1, 'x')...)
	got, names, err := ExportGlobals(whole, "g")
	if err != nil || !bytes.Equal(got, want) || strings.Join(names, " ") != "g0 g2 g3" {
		t.Errorf("%q, %q, %v; want %q", got, names, err, want)
	}
	for i := range whole {
		if got, _, err := ExportGlobals(whole[:i], "g"); err == nil && !bytes.HasPrefix(got, plain) {
			t.Errorf("the first %d bytes: %q", i, got)
		}
	}
}
