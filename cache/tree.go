package cache

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// DefaultMaxEntries is how many files, directories and links HashTree takes
	// unless TreeOptions says.
	DefaultMaxEntries = 1_000_000
	// DefaultMaxTreeBytes is how large the files of a tree may be together.
	DefaultMaxTreeBytes = 64 << 30
	// DefaultMaxDepth is how many names the path of a file may have.
	DefaultMaxDepth = maxDepth

	// maxDepth bounds how deep trees are. One that is being hashed may hold as many
	// descriptors for each worker.
	maxDepth = 256
)

// TreeOptions says how HashTree and HashFile read. The zero TreeOptions reads all
// with the rights of this process.
type TreeOptions struct {
	// Exclude are paths in the tree, slash-separated and clean, that have no
	// influence on its digest, nor has anything beneath them; they are not looked at.
	// A directory above one of them that holds nothing else counts as absent, so that
	// the digest is the same before an excluded file is made and after.
	Exclude []string
	// Credential is called once in each goroutine that reads the tree, and must call
	// work once and return its error; it may lock the thread and take on the rights of
	// another user meanwhile. Work touches nothing but the tree. nil means to read with
	// the rights of this process.
	Credential func(work func() error) error
	// Reader is the uid whose rights Credential takes on. What is known of a file
	// without reading it is known to the reader for whom it was read, and to no other,
	// who perhaps may not read it.
	Reader uint32
	// MaxEntries bounds files, directories and links together, each of which takes some
	// 150 bytes of memory and its name meanwhile. 0 means DefaultMaxEntries.
	MaxEntries int
	// MaxBytes bounds the sum of the files' sizes, holes included. 0 means
	// DefaultMaxTreeBytes.
	MaxBytes int64
	// MaxDepth bounds how many names a path has. 0 means DefaultMaxDepth, which is also the
	// most.
	MaxDepth int
}

// Tree says what HashTree found.
type Tree struct {
	// Digest is that of the root's Directory message.
	Digest Digest
	// Files is how many files there are, and Bytes how large they are together.
	Files int64
	Bytes int64
	// Read is how many of the files were not known and had to be read.
	Read int64
	// Changed is the latest time at which the state of anything in the tree changed, its
	// directories and links included (ctime), in nanoseconds since 1970. A tree that has the
	// same Digest and another Changed was perhaps something else in between.
	Changed int64
}

// ErrChanged says that a file or directory was changed while it was hashed, so
// that there is no one state to name. It comes in a TreeError.
var ErrChanged = errors.New("changed while it was read: try again when nothing writes there")

// TreeError says which file stands against the hashing of a tree, and why. Who
// owns the tree has to act.
type TreeError struct {
	// Path is relative to the tree, in bytes as they are in the file system. It is
	// the file's name in errors of HashFile.
	Path string
	Err  error
}

// Error quotes the path, for it may hold anything.
func (e *TreeError) Error() string { return fmt.Sprintf("hash %.1000q: %v", e.Path, e.Err) }

// Unwrap is what stands against it.
func (e *TreeError) Unwrap() error { return e.Err }

// HashTree is the digest of a directory tree: of the Directory message of the Remote
// Execution API for it. Names, contents, the owner's executable bit and the targets of
// symbolic links are part of it; owners, times and other permissions are not. Links are
// not followed.
//
// Everything is opened beneath dir, which stays open and is not used at its offset. A
// file that is known by its device, inode, size, mtime and ctime is not read; the
// others are, by up to 16 goroutines. What has no place in the API is refused by a
// TreeError that names it: sockets, FIFOs, devices, names and links that are not UTF-8, other
// mounts; and so is what cannot be read, changes meanwhile or exceeds the bounds.
//
// The tree may change once HashTree returns. Who stores a result under this
// digest should hash again after the run, and store nothing if Digest or Changed is another.
func (c *Cache) HashTree(ctx context.Context, dir *os.File, opt TreeOptions) (Tree, error) {
	opt, err := opt.withDefaults()
	if err != nil {
		return Tree{}, fmt.Errorf("hash tree: %w", err)
	}
	ex, err := newExclusion(opt.Exclude)
	if err != nil {
		return Tree{}, fmt.Errorf("hash tree: %w", err)
	}
	if fi, err := dir.Stat(); err != nil || !fi.IsDir() {
		return Tree{}, fmt.Errorf("hash tree: %q is not an open directory: %w", dir.Name(), cmp.Or(err, error(syscall.ENOTDIR)))
	}
	c.index.loaded()
	tree, err := newHasher(ctx, &c.index, opt).run(dir, ex)
	c.index.saveSoon()
	if err != nil {
		return Tree{}, fmt.Errorf("hash tree: %w", err)
	}
	return tree, nil
}

// HashFile is the node of one file, which must be open for reading; its offset is neither
// used nor changed. changed is as in Tree. Of the options Reader and MaxBytes matter. Errors are
// those of HashTree.
func (c *Cache) HashFile(ctx context.Context, f *os.File, opt TreeOptions) (n Node, changed int64, err error) {
	opt, err = opt.withDefaults()
	if err != nil {
		return n, 0, fmt.Errorf("hash file: %w", err)
	}
	c.index.loaded()
	h := newHasher(ctx, &c.index, opt)
	e, err := h.file(f)
	c.index.saveSoon()
	if err != nil {
		return n, 0, fmt.Errorf("hash file: %w", treeError(f.Name(), err))
	}
	return Node{Digest: digest(e.sum, e.size), Executable: e.executable}, h.changed.Load(), nil
}

func (o TreeOptions) withDefaults() (TreeOptions, error) {
	if o.MaxEntries < 0 || o.MaxBytes < 0 || o.MaxDepth < 0 || o.MaxDepth > maxDepth {
		return o, fmt.Errorf("bounds of %d entries, %d bytes, depth %d: want none below 0, and a depth of at most %d", o.MaxEntries, o.MaxBytes, o.MaxDepth, maxDepth)
	}
	o.MaxEntries = cmp.Or(o.MaxEntries, DefaultMaxEntries)
	o.MaxBytes = cmp.Or(o.MaxBytes, DefaultMaxTreeBytes)
	o.MaxDepth = cmp.Or(o.MaxDepth, DefaultMaxDepth)
	return o, nil
}

// exclusion is what of a directory is excluded: by the name of an entry, nil if all
// of that, else what beneath it.
type exclusion map[string]exclusion

func newExclusion(paths []string) (exclusion, error) {
	var root exclusion
	for _, p := range paths {
		if !fs.ValidPath(p) || p == "." || strings.Count(p, "/") >= maxDepth || strings.Contains(p, "\x00") {
			return nil, fmt.Errorf("excluded path %.200q: want a clean relative UTF-8 path of at most %d names", p, maxDepth)
		}
		if root == nil {
			root = exclusion{}
		}
		root.add(strings.Split(p, "/"))
	}
	return root, nil
}

func (e exclusion) add(names []string) {
	name := names[0]
	below, there := e[name]
	switch {
	case there && below == nil: // all of it is excluded already
	case len(names) == 1:
		e[name] = nil
	default:
		if below == nil {
			below = exclusion{}
			e[name] = below
		}
		below.add(names[1:])
	}
}

type kind uint8

const (
	kindAbsent kind = iota // a directory that counts as absent
	kindFile
	kindDir
	kindLink
)

// dirent is what stands at a name in a directory.
type dirent struct {
	name       string
	target     string // of a link
	sum        [sha256.Size]byte
	size       int64
	kind       kind
	executable bool
}

// appendDirectory appends the Directory message of entries, which must be sorted by
// name. It is what proto.MarshalOptions{Deterministic: true} makes of the message,
// which to build first takes most of the time that hashing an unchanged tree takes.
func appendDirectory(b []byte, entries []dirent) []byte {
	for _, pass := range [...]struct {
		kind  kind
		field protowire.Number
	}{{kindFile, 1}, {kindDir, 2}, {kindLink, 3}} {
		for i := range entries {
			if e := &entries[i]; e.kind == pass.kind {
				b = protowire.AppendTag(b, pass.field, protowire.BytesType)
				b = protowire.AppendVarint(b, uint64(e.nodeSize()))
				b = e.appendNode(b)
			}
		}
	}
	return b
}

// nodeSize is how many bytes appendNode appends.
func (e *dirent) nodeSize() int {
	n := 1 + protowire.SizeBytes(len(e.name))
	if e.kind == kindLink {
		if e.target == "" {
			return n
		}
		return n + 1 + protowire.SizeBytes(len(e.target))
	}
	n += 1 + protowire.SizeBytes(e.digestSize())
	if e.executable {
		n += 2
	}
	return n
}

func (e *dirent) digestSize() int {
	n := 1 + protowire.SizeBytes(2*sha256.Size)
	if e.size != 0 {
		n += 1 + protowire.SizeVarint(uint64(e.size))
	}
	return n
}

// appendNode appends a FileNode, DirectoryNode or SymlinkNode. As ever in protobuf,
// fields that are zero are left out.
func (e *dirent) appendNode(b []byte) []byte {
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendString(b, e.name)
	if e.kind == kindLink {
		if e.target != "" {
			b = protowire.AppendTag(b, 2, protowire.BytesType)
			b = protowire.AppendString(b, e.target)
		}
		return b
	}
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(e.digestSize()))
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendVarint(b, 2*sha256.Size)
	b = hex.AppendEncode(b, e.sum[:])
	if e.size != 0 {
		b = protowire.AppendTag(b, 2, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(e.size))
	}
	if e.executable {
		b = protowire.AppendTag(b, 4, protowire.VarintType)
		b = protowire.AppendVarint(b, 1)
	}
	return b
}

func sortEntries(entries []dirent) {
	slices.SortFunc(entries, func(a, b dirent) int { return cmp.Compare(a.name, b.name) })
}
