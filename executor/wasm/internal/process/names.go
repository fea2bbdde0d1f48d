package process

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"strings"
	"unicode/utf8"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	wasys "github.com/tetratelabs/wazero/sys"
)

// wazero refuses paths that are not UTF-8, since io/fs does, and names of files on Unix need not be. So its functions are
// given another spelling of such a path, which the file system below undoes: a byte b that is of no character is the
// character escape+b, and so are the bytes of a character that means that.
const escape = 0xef00

func escapes(r rune) bool { return escape+0x80 <= r && r <= escape+0xff }

// plain says whether a path is its own spelling.
func plain(p []byte) bool { return utf8.Valid(p) && !bytes.ContainsFunc(p, escapes) }

// spell is the spelling of a path.
func spell(p []byte) []byte {
	var s []byte
	for len(p) > 0 {
		r, n := utf8.DecodeRune(p)
		if r == utf8.RuneError && n == 1 || escapes(r) {
			for _, b := range p[:n] {
				s = utf8.AppendRune(s, escape+rune(b))
			}
		} else {
			s = append(s, p[:n]...)
		}
		p = p[n:]
	}
	return s
}

// unspell is the path that has the spelling s.
func unspell(s string) string {
	if !strings.ContainsFunc(s, escapes) {
		return s
	}
	var p []byte
	for _, r := range s {
		if escapes(r) {
			p = append(p, byte(r-escape))
		} else {
			p = utf8.AppendRune(p, r)
		}
	}
	return string(p)
}

// span is memory that a function is given: at an argument, and as long as the next argument or, where that is not 0, n bytes.
type span struct{ argument, n int }

// pathCalls are the functions of wasip1 that take paths, by which arguments, and what else of memory they read or write.
var pathCalls = map[string]struct{ paths, others []span }{
	"path_create_directory":   {[]span{{1, 0}}, nil},
	"path_filestat_get":       {[]span{{2, 0}}, []span{{4, 64}}},
	"path_filestat_set_times": {[]span{{2, 0}}, nil},
	"path_link":               {[]span{{2, 0}, {5, 0}}, nil},
	"path_open":               {[]span{{2, 0}}, []span{{8, 4}}},
	"path_readlink":           {[]span{{1, 0}}, []span{{3, 0}, {5, 4}}},
	"path_remove_directory":   {[]span{{1, 0}}, nil},
	"path_rename":             {[]span{{1, 0}, {4, 0}}, nil},
	"path_symlink":            {[]span{{3, 0}}, []span{{0, 0}}},
	"path_unlink_file":        {[]span{{1, 0}}, nil},
}

// of is where the span is.
func (s span) of(stack []uint64) (at, n uint64) {
	if s.n != 0 {
		return uint64(uint32(stack[s.argument])), uint64(s.n)
	}
	return uint64(uint32(stack[s.argument])), uint64(uint32(stack[s.argument+1]))
}

// exportPaths offers wazero's functions of wasip1 that take paths, for any path.
func exportPaths(ctx context.Context, rt wazero.Runtime, b wazero.HostModuleBuilder) error {
	theirs := rt.NewHostModuleBuilder(wasi_snapshot_preview1.ModuleName)
	wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(theirs)
	m, err := theirs.Compile(ctx)
	if err != nil {
		return err
	}
	for name, c := range pathCalls {
		d := m.ExportedFunctions()[name]
		f, ok := d.GoFunction().(api.GoModuleFunction)
		if !ok {
			return fmt.Errorf("wazero's %s is a %T", name, d.GoFunction())
		}
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, m api.Module, stack []uint64) {
			defer lend(m.Memory(), stack, c.paths, c.others)()
			f.Call(ctx, m, stack)
			if name == "path_filestat_get" && stack[0] == 0 {
				noFile(m.Memory(), uint32(stack[4]))
			}
		}), d.ParamTypes(), d.ResultTypes()).Export(name)
	}
	return nil
}

// noFile has what wazero knows no type of, a FIFO or a socket of the machine's, be a socket in a result of path_filestat_get: many
// guests take what is of unknown type for a file.
func noFile(mem api.Memory, at uint32) {
	const unknown, socket = 0, 6
	if t, ok := mem.ReadByte(at + 16); ok && t == unknown {
		mem.WriteByte(at+16, socket)
	}
}

// maxSpelled bounds a path that is spelled anew; the tree takes none as long.
const maxSpelled = 8 << 10

// lend has arguments lead to the spellings of paths, in memory of the guest's, which waits meanwhile and gets it back by what is returned. Where
// there is no such memory they stay what they are, and are refused.
func lend(mem api.Memory, stack []uint64, paths, others []span) (giveBack func()) {
	giveBack = func() {}
	if mem == nil {
		return
	}
	var given [2][]byte
	all := true // are plain
	for i, s := range paths {
		at, n := s.of(stack)
		b, ok := mem.Read(uint32(at), uint32(n))
		if !ok || n > maxSpelled {
			return
		}
		given[i], all = b, all && plain(b)
	}
	if all {
		return
	}
	var spelled []byte
	var ends []int
	for _, b := range given {
		spelled = append(spelled, spell(b)...)
		ends = append(ends, len(spelled))
	}
	at, ok := room(uint64(mem.Size()), uint64(len(spelled)), stack, others)
	if !ok {
		return
	}
	b, _ := mem.Read(at, uint32(len(spelled)))
	was := bytes.Clone(b)
	from := 0
	for i, s := range paths {
		stack[s.argument], stack[s.argument+1] = uint64(at)+uint64(from), uint64(ends[i]-from)
		from = ends[i]
	}
	copy(b, spelled)
	return func() { mem.Write(at, was) }
}

// room is where n bytes are that are none of the spans'.
func room(size, n uint64, stack []uint64, others []span) (uint32, bool) {
next:
	for at := uint64(0); at+n <= size; {
		for _, s := range others {
			if from, long := s.of(stack); from < at+n && at < from+long {
				at = from + long
				continue next
			}
		}
		return uint32(at), true
	}
	return 0, false
}

// named is a file system that is given spellings.
type named struct{ sys.FS }

// OpenFile implements sys.FS.
func (f named) OpenFile(p string, flag sys.Oflag, perm fs.FileMode) (sys.File, sys.Errno) {
	return f.FS.OpenFile(unspell(p), flag, perm)
}

// Lstat implements sys.FS.
func (f named) Lstat(p string) (wasys.Stat_t, sys.Errno) { return f.FS.Lstat(unspell(p)) }

// Stat implements sys.FS.
func (f named) Stat(p string) (wasys.Stat_t, sys.Errno) { return f.FS.Stat(unspell(p)) }

// Mkdir implements sys.FS.
func (f named) Mkdir(p string, perm fs.FileMode) sys.Errno { return f.FS.Mkdir(unspell(p), perm) }

// Chmod implements sys.FS.
func (f named) Chmod(p string, perm fs.FileMode) sys.Errno { return f.FS.Chmod(unspell(p), perm) }

// Rename implements sys.FS.
func (f named) Rename(from, to string) sys.Errno { return f.FS.Rename(unspell(from), unspell(to)) }

// Rmdir implements sys.FS.
func (f named) Rmdir(p string) sys.Errno { return f.FS.Rmdir(unspell(p)) }

// Unlink implements sys.FS.
func (f named) Unlink(p string) sys.Errno { return f.FS.Unlink(unspell(p)) }

// Link implements sys.FS.
func (f named) Link(from, to string) sys.Errno { return f.FS.Link(unspell(from), unspell(to)) }

// Symlink implements sys.FS. What a link leads to is spelled as it is.
func (f named) Symlink(target, p string) sys.Errno { return f.FS.Symlink(target, unspell(p)) }

// Readlink implements sys.FS.
func (f named) Readlink(p string) (string, sys.Errno) { return f.FS.Readlink(unspell(p)) }

// Utimens implements sys.FS.
func (f named) Utimens(p string, atime, mtime int64) sys.Errno {
	return f.FS.Utimens(unspell(p), atime, mtime)
}
