//go:build unix || wasip1

package box

import (
	"io/fs"
	"strconv"
	"syscall"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

type fileID struct {
	dev, ino     uint64
	links        int
	uid, gid     int
	owner, group string
}

// identity tells what of a file only its system knows. In the guest all files are
// root's, as is whoever runs it.
func identity(fi fs.FileInfo) fileID {
	if e, ok := fi.(entry); ok {
		fi = e.FileInfo
	}
	s, ok := tool.Sys(fi).(*syscall.Stat_t)
	if !ok {
		return fileID{links: 1, owner: "root", group: "root"}
	}
	id := fileID{uint64(s.Dev), s.Ino, int(s.Nlink), int(s.Uid), int(s.Gid), strconv.Itoa(int(s.Uid)), strconv.Itoa(int(s.Gid))}
	if s.Uid == 0 {
		id.owner = "root"
	}
	if s.Gid == 0 {
		id.group = "root"
	}
	return id
}
