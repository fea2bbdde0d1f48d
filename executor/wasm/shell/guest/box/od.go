package box

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// odFormat is one of the formats in which od shows each line of bytes.
type odFormat struct {
	kind  byte // of a c d o u x
	size  int  // bytes of a field
	width int  // its columns
	pad   int  // the spaces in a line besides
	text  bool // whether the bytes as text are behind it
}

// odWidths are the columns of a field by kind and by the logarithm of its size.
var odWidths = map[byte][4]int{'a': {3}, 'c': {3}, 'd': {4, 6, 11, 20}, 'o': {3, 6, 11, 22}, 'u': {3, 5, 10, 20}, 'x': {2, 4, 8, 16}}

// odShort are the options that stand for formats.
var odShort = map[string]string{"a": "a", "b": "o1", "c": "c", "d": "u2", "o": "o2", "s": "d2", "x": "x2", "i": "d4", "l": "d8"}

// odFormats reads the value of -t.
func odFormats(s string) (list []odFormat, err error) {
	all := s
	for s != "" {
		f := odFormat{kind: s[0], size: 1}
		s = s[1:]
		switch {
		case f.kind == 'f':
			return nil, errString("the format f is not available in the wasm shell")
		case f.kind != 0 && strings.IndexByte("ac", f.kind) >= 0:
		case odWidths[f.kind] != [4]int{}:
			f.size = 4
			if s == "" {
				break
			}
			digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
			if i := strings.IndexByte("CSIL", s[0]); i >= 0 {
				f.size, s = 1<<i, s[1:]
				break
			}
			if digits == "" {
				break
			}
			s = s[len(digits):]
			if len(digits) > 1 || strings.IndexByte("1248", digits[0]) < 0 {
				return nil, errorf("invalid type string '%s';\nthis system doesn't provide a %s-byte integral type", all, digits)
			}
			f.size = int(digits[0] - '0')
		default:
			return nil, errorf("invalid character '%c' in type string '%s'", f.kind, all)
		}
		f.width = odWidths[f.kind][map[int]int{1: 0, 2: 1, 4: 2, 8: 3}[f.size]]
		if strings.HasPrefix(s, "z") {
			f.text, s = true, s[1:]
		}
		list = append(list, f)
	}
	return list, nil
}

func od(_ context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "A:j:N:t:vw::abcdosxilS:",
		Long: "address-radix:=A skip-bytes:=j read-bytes:=N format:=t output-duplicates=v width::=w strings::=S"})
	if !ok {
		return status
	}
	address, formats, limit, skip, line := "%07o", []odFormat(nil), int64(-1), int64(0), 0
	for _, x := range f {
		switch x.Name {
		case "A":
			if address, ok = map[string]string{"d": "%07d", "o": "%07o", "x": "%06x", "n": ""}[x.Value]; !ok {
				return c.Fail("invalid output address radix '%s'; it must be one character from [doxn]", x.Value)
			}
		case "j", "N":
			n, ok := odNumber(x.Value)
			if !ok {
				return c.Fail("invalid -%s argument '%s'", x.Name, x.Value)
			}
			if x.Name == "j" {
				skip = n
			} else {
				limit = n
			}
		case "w":
			line = 32
			if x.Value != "" {
				n, ok := parseSize(x.Value)
				if !ok || n == 0 || n > 1<<20 {
					return c.Fail("invalid -w argument '%s'", x.Value)
				}
				line = int(n)
			}
		case "S":
			return c.Usage(1, "the option -S is not available in the wasm shell")
		case "v":
		default:
			spec := x.Value
			if x.Name != "t" {
				spec = odShort[x.Name]
			}
			list, err := odFormats(spec)
			if err != nil {
				return c.Fail("%v", err)
			}
			formats = append(formats, list...)
		}
	}
	for _, n := range names {
		if strings.HasPrefix(n, "+") {
			return c.Fail("an offset as in '%s' is not available in the wasm shell: -j is", n)
		}
	}
	if len(formats) == 0 {
		formats, _ = odFormats("o2")
	}
	unit := 1
	for _, f := range formats {
		unit = max(unit, f.size)
	}
	switch {
	case line == 0:
		line = 16
	case line%unit != 0:
		c.Errorf("warning: invalid width %d; using %d instead", line, unit)
		line = unit
	}
	columns := 0
	for _, f := range formats {
		columns = max(columns, (f.width+1)*(line/f.size))
	}
	for i, f := range formats {
		formats[i].pad = columns - f.width*(line/f.size)
	}

	d := &odDump{c: c, formats: formats, line: line, address: address, all: f.Has("v"), skip: skip, at: skip, limit: limit}
	status = c.Each(names, 1, d.file)
	if d.skip > 0 {
		return c.Fail("cannot skip past end of combined input")
	}
	d.block(d.buf)
	if address != "" {
		fmt.Fprintf(c.Out, address+"\n", d.at)
	}
	return status
}

// odNumber is a size that may be in octal or in hexadecimal.
func odNumber(s string) (int64, bool) {
	var n int64
	if strings.HasPrefix(s, "0") && len(s) > 1 {
		_, err := fmt.Sscanf(s, "%v", &n)
		return n, err == nil && n >= 0
	}
	return parseSize(s)
}

// odDump is one run of od: its input is that of all files in a row.
type odDump struct {
	c           *tool.Call
	formats     []odFormat
	line        int
	address     string
	all         bool
	skip, limit int64
	at          int64  // the address of buf
	buf         []byte // less than a line
	last        []byte // the line before
	starred     bool
}

func (d *odDump) file(_ string, r io.Reader) error {
	if d.skip > 0 {
		n, err := io.CopyN(io.Discard, r, d.skip)
		if d.skip -= n; err != nil {
			if err == io.EOF {
				err = nil
			}
			return err
		}
	}
	buf := make([]byte, 32<<10)
	for d.limit != 0 {
		b := buf
		if d.limit > 0 {
			b = buf[:min(int64(len(buf)), d.limit)]
		}
		n, err := r.Read(b)
		if d.limit > 0 {
			d.limit -= int64(n)
		}
		d.buf = append(d.buf, b[:n]...)
		rest := d.buf
		for len(rest) >= d.line {
			d.block(rest[:d.line])
			rest = rest[d.line:]
		}
		d.buf = append(d.buf[:0], rest...)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// block writes a line of bytes in each of the formats.
func (d *odDump) block(b []byte) {
	if len(b) == 0 {
		return
	}
	out := d.c.Out
	defer func() { d.at += int64(len(b)) }()
	if !d.all && d.last != nil && len(b) == d.line && bytes.Equal(b, d.last) {
		if !d.starred {
			out.WriteString("*\n")
		}
		d.starred = true
		return
	}
	d.starred = false
	d.last = append(d.last[:0], b...)
	whole := make([]byte, d.line)
	copy(whole, b)
	for i, f := range d.formats {
		switch {
		case d.address == "":
		case i == 0:
			fmt.Fprintf(out, d.address, d.at)
		default:
			fmt.Fprintf(out, "%*s", len(fmt.Sprintf(d.address, 0)), "")
		}
		fields := d.line / f.size
		blank := (d.line - len(b)) / f.size
		left := f.pad
		for k := range fields - blank {
			next := f.pad * (fields - k - 1) / fields
			fmt.Fprintf(out, "%*s", left-next+f.width, f.field(whole[k*f.size:]))
			left = next
		}
		if f.text {
			fmt.Fprintf(out, "%*s  >", blank*f.width+f.pad*blank/fields, "")
			for _, x := range b {
				if x < ' ' || x > '~' {
					x = '.'
				}
				out.WriteByte(x)
			}
			out.WriteByte('<')
		}
		out.WriteByte('\n')
	}
}

// odNames are what -a calls the characters that are not seen.
var odNames = strings.Fields("nul soh stx etx eot enq ack bel bs ht nl vt ff cr so si dle dc1 dc2 dc3 dc4 nak syn etb can em sub esc fs gs rs us sp")

func (f *odFormat) field(b []byte) string {
	switch f.kind {
	case 'a':
		if x := b[0] & 0x7f; int(x) < len(odNames) {
			return odNames[x]
		} else if x == 0x7f {
			return "del"
		}
		return string(rune(b[0] & 0x7f))
	case 'c':
		if i := strings.IndexByte("\x00\a\b\f\n\r\t\v", b[0]); i >= 0 {
			return `\` + "0abfnrtv"[i:i+1]
		}
		if b[0] >= ' ' && b[0] <= '~' {
			return string(rune(b[0]))
		}
		return fmt.Sprintf("%03o", b[0])
	}
	var u uint64
	var n int64
	switch f.size {
	case 1:
		u, n = uint64(b[0]), int64(int8(b[0]))
	case 2:
		x := binary.LittleEndian.Uint16(b)
		u, n = uint64(x), int64(int16(x))
	case 4:
		x := binary.LittleEndian.Uint32(b)
		u, n = uint64(x), int64(int32(x))
	default:
		u = binary.LittleEndian.Uint64(b)
		n = int64(u)
	}
	switch f.kind {
	case 'd':
		return fmt.Sprint(n)
	case 'u':
		return fmt.Sprint(u)
	case 'o':
		return fmt.Sprintf("%0*o", f.width, u)
	}
	return fmt.Sprintf("%0*x", f.width, u)
}
