package component

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
)

const (
	coreData      = 11
	coreDataCount = 12
)

// MergeData returns a core module with those of its data segments in one that follow each other in memory with no more than gap bytes between them, for
// which there are zeros then. Memory that is zero but for its segments, as all is that nobody imports, begins the same, with fewer segments to keep and to copy. A module
// with passive segments, or some that overlap, is refused.
func MergeData(core []byte, gap uint32) ([]byte, error) {
	return rewrite(core, func(id byte, body []byte) ([]byte, error) {
		switch id {
		case coreDataCount:
			// It is for instructions that name segments, and these are others now.
			return nil, errors.New("it counts its data segments")
		case coreData:
			return mergeData(body, gap)
		}
		return nil, nil
	})
}

func mergeData(body []byte, gap uint32) ([]byte, error) {
	type segment struct {
		at   uint32
		data []byte
	}
	var all []segment
	r := &reader{b: body}
	for n := r.u32(); n > 0 && r.err == nil; n-- {
		if kind, op := r.u8(), r.u8(); r.err == nil && (kind != 0 || op != 0x41) {
			return nil, fmt.Errorf("it has a data segment of kind %d, at an address that is no number", kind)
		}
		at := uint32(r.i32())
		if r.u8() != 0x0b && r.err == nil {
			return nil, errors.New("the address of a data segment is more than a number")
		}
		data := r.bytes(r.u32())
		all = append(all, segment{at, data})
	}
	if r.err != nil {
		return nil, r.err
	}
	slices.SortStableFunc(all, func(a, b segment) int { return cmp.Compare(a.at, b.at) })
	var few []segment
	end := uint64(0) // of the last one
	for _, s := range all {
		switch last := len(few) - 1; {
		case uint64(s.at) < end:
			return nil, errors.New("its data segments overlap")
		case last >= 0 && uint64(s.at)-end <= uint64(gap):
			few[last].data = append(append(few[last].data, make([]byte, uint64(s.at)-end)...), s.data...)
		default:
			few = append(few, segment{s.at, bytes.Clone(s.data)})
		}
		end = uint64(s.at) + uint64(len(s.data))
	}
	out := appendU32(nil, uint32(len(few)))
	for _, s := range few {
		out = appendI32(append(out, 0, 0x41), int32(s.at))
		out = appendU32(append(out, 0x0b), uint32(len(s.data)))
		out = append(out, s.data...)
	}
	return out, nil
}

// i32 is a signed number in LEB128.
func (r *reader) i32() int32 {
	before := len(r.b)
	v, ok := r.leb(5)
	if !ok {
		r.fail(errShort)
		return 0
	}
	unused := 64 - 7*(before-len(r.b))
	return int32(int64(v<<unused) >> unused)
}

// appendI32 appends one.
func appendI32(b []byte, v int32) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}
