package box

import (
	"archive/tar"
	"fmt"
	"io"
	"strings"
)

// tarWriter writes archives with the bytes that GNU's tar writes, which archive/tar does not: it
// puts numbers into fields that GNU's leaves empty, and other fields into the headers of long names.
type tarWriter struct {
	w     io.Writer
	ustar bool   // the format of POSIX, else GNU's
	root  string // the owner of what is no file
	left  int64
	pad   int64
}

const tarBlock = 512

// WriteHeader begins a member.
func (t *tarWriter) WriteHeader(h *tar.Header) error {
	name, prefix := h.Name, ""
	if t.ustar {
		var err error
		if prefix, name, err = splitName(name); err != nil {
			return err
		}
		if len(h.Linkname) > 100 {
			return errString("link name is too long; not dumped")
		}
	} else {
		for _, long := range []struct {
			text string
			kind byte
		}{{h.Linkname, tar.TypeGNULongLink}, {name, tar.TypeGNULongName}} {
			if len(long.text) <= 100 {
				continue
			}
			head := &tar.Header{Mode: 0o644, Uname: t.root, Gname: t.root, Size: int64(len(long.text)) + 1, Typeflag: long.kind}
			if err := t.block(head, "././@LongLink", ""); err != nil {
				return err
			}
			if _, err := io.WriteString(t, long.text+"\x00"); err != nil {
				return err
			}
		}
	}
	return t.block(h, name, prefix)
}

// splitName cuts a name into the two fields that ustar has for it, where GNU's tar would.
func splitName(name string) (prefix, base string, err error) {
	if len(name) <= 100 {
		return "", name, nil
	}
	if len(name) > 256 {
		return "", "", errString("file name is too long (max 256); not dumped")
	}
	i := strings.LastIndexByte(strings.TrimSuffix(name[:min(len(name), 156)], "/"), '/')
	if len(name) > 156 {
		i = strings.LastIndexByte(name[:156], '/')
	}
	if base = name[i+1:]; i <= 0 || len(base) > 100 || base == "" {
		return "", "", errString("file name is too long (cannot be split); not dumped")
	}
	return name[:i], base, nil
}

// block writes what is left to fill of the member before, and a header.
func (t *tarWriter) block(h *tar.Header, name, prefix string) error {
	if err := t.fill(); err != nil {
		return err
	}
	seconds := int64(0)
	if !h.ModTime.IsZero() {
		seconds = h.ModTime.Unix()
	}
	b := make([]byte, tarBlock)
	copy(b[0:100], name)
	for _, n := range []struct {
		at, width int
		value     int64
	}{{100, 8, h.Mode}, {108, 8, int64(h.Uid)}, {116, 8, int64(h.Gid)}, {124, 12, h.Size}, {136, 12, seconds}} {
		field := b[n.at : n.at+n.width]
		switch {
		case n.value >= 0 && n.value>>(3*(n.width-1)) == 0:
			copy(field, fmt.Sprintf("%0*o", n.width-1, n.value))
		case t.ustar:
			return errorf("value %d out of range of the format ustar; not dumped", n.value)
		default:
			for i, v := n.width-1, n.value; i >= 0; i-- {
				field[i] = byte(v)
				v >>= 8
			}
			field[0] |= 0x80
		}
	}
	b[156] = h.Typeflag
	copy(b[157:257], h.Linkname)
	copy(b[257:265], "ustar  \x00")
	copy(b[265:297], h.Uname)
	copy(b[297:329], h.Gname)
	if t.ustar {
		copy(b[257:265], "ustar\x0000")
		copy(b[329:345], "0000000\x000000000\x00")
		copy(b[345:500], prefix)
	}
	copy(b[148:156], "        ")
	sum := 0
	for _, x := range b {
		sum += int(x)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeGNULongLink || h.Typeflag == tar.TypeGNULongName {
		t.left = h.Size
		t.pad = -h.Size & (tarBlock - 1)
	}
	_, err := t.w.Write(b)
	return err
}

// Write writes content of the member that was begun.
func (t *tarWriter) Write(b []byte) (int, error) {
	if int64(len(b)) > t.left {
		return 0, tar.ErrWriteTooLong
	}
	n, err := t.w.Write(b)
	t.left -= int64(n)
	return n, err
}

// fill ends a member, the content of which may have failed to be read.
func (t *tarWriter) fill() error {
	_, err := io.CopyN(t.w, zeroReader{}, t.left+t.pad)
	t.left, t.pad = 0, 0
	return err
}

// Close writes the end of the archive.
func (t *tarWriter) Close() error {
	if err := t.fill(); err != nil {
		return err
	}
	_, err := t.w.Write(make([]byte, 2*tarBlock))
	return err
}
