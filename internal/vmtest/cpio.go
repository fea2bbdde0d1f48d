package vmtest

import (
	"bytes"
	"fmt"
	"path"
	"strings"
)

// Archive is an initramfs in the making: an uncompressed cpio archive in the
// kernel's "newc" form, everything owned by root. The zero value is empty.
type Archive struct {
	buf  bytes.Buffer
	ino  int
	dirs map[string]bool
}

// File adds a file with the given permission bits, and its parents.
func (a *Archive) File(name string, perm uint32, data []byte) {
	name = strings.Trim(name, "/")
	a.Dir(path.Dir(name))
	a.entry(name, 0o100000|perm, data, 0, 0)
}

// Char adds a character device, and its parents.
func (a *Archive) Char(name string, major, minor uint32) {
	name = strings.Trim(name, "/")
	a.Dir(path.Dir(name))
	a.entry(name, 0o020600, nil, major, minor)
}

// Dir adds a directory of mode 0755 and its parents, unless they are there.
func (a *Archive) Dir(name string) {
	name = strings.Trim(name, "/")
	if name == "" || name == "." || a.dirs[name] {
		return
	}
	if a.dirs == nil {
		a.dirs = make(map[string]bool)
	}
	a.Dir(path.Dir(name))
	a.dirs[name] = true
	a.entry(name, 0o040755, nil, 0, 0)
}

// Bytes ends the archive and returns it; nothing may be added after.
func (a *Archive) Bytes() []byte {
	a.entry("TRAILER!!!", 0, nil, 0, 0)
	return a.buf.Bytes()
}

func (a *Archive) entry(name string, mode uint32, data []byte, major, minor uint32) {
	a.ino++
	const uid, gid, links, mtime, devMajor, devMinor, sum = 0, 0, 1, 0, 0, 0, 0
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, mode, uid, gid, links, mtime, len(data), devMajor, devMinor, major, minor, len(name)+1, sum)
	a.buf.WriteString(name + "\x00")
	a.pad()
	a.buf.Write(data)
	a.pad()
}

// pad aligns to four bytes, as the format wants after each name and body.
func (a *Archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}
