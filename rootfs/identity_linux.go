package rootfs

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// fileKey changes when a file does. Its zero value is no file.
type fileKey struct {
	dev, ino     uint64
	mode         uint32
	uid, gid     uint32
	size         int64
	mtime, ctime unix.Timespec
}

func keyOf(st unix.Stat_t) fileKey {
	return fileKey{
		dev: uint64(st.Dev), ino: st.Ino, mode: st.Mode, uid: st.Uid, gid: st.Gid, size: st.Size,
		mtime: st.Mtim, ctime: st.Ctim,
	}
}

// identify digests all that decides what the root shows.
func (r *Rootfs) identify() (string, error) {
	h := sha256.New()
	put(h, "sandboxd root 1", r.spec.Root != "")
	if err := r.hashSkeleton(h); err != nil {
		return "", err
	}
	recorded := false
	if r.spec.Root == "" {
		var err error
		if recorded, err = r.hashRecords(h); err != nil {
			return "", err
		}
	}
	w := &walk{hash: h, resolve: r.resolve, watch: r.watch, foreign: r.spec.Root != ""}
	for _, m := range r.mounts {
		p := m.Target[1:]
		put(h, "mount", p, m.Dir)
		switch {
		case !m.Dir && r.spec.Root == "":
			if err := hashContent(h, m.FD); err != nil {
				return "", fmt.Errorf("root: %w", explain(p, err))
			}
		case recorded && slices.Contains(hostTop, p):
			// The records tell.
		default:
			if err := w.mount(m); err != nil {
				return "", err
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// put adds values so that no two lists of them are the same bytes.
func put(h hash.Hash, values ...any) {
	for _, v := range values {
		s := fmt.Sprint(v)
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
}

// hashSkeleton digests the skeleton but for resolv.conf: it tells of the network
// that the machine is in, not of the root.
func (r *Rootfs) hashSkeleton(h hash.Hash) error {
	return filepath.WalkDir(r.dir, func(p string, d fs.DirEntry, err error) error {
		rel, e := filepath.Rel(r.dir, p)
		if err := errors.Join(err, e); err != nil {
			return fmt.Errorf("skeleton: %w", err)
		}
		content := ""
		switch {
		case rel == "etc/resolv.conf":
		case d.Type() == fs.ModeSymlink:
			content, err = os.Readlink(p)
		case d.Type().IsRegular():
			var b []byte
			b, err = os.ReadFile(p)
			content = string(b)
		}
		st, e := d.Info()
		if err := errors.Join(err, e); err != nil {
			return fmt.Errorf("skeleton: %w", err)
		}
		put(h, rel, st.Mode(), content)
		return nil
	})
}

// hashRecords digests what tells of the host's programs, and reports whether a
// package manager does.
func (r *Rootfs) hashRecords(h hash.Hash) (found bool, err error) {
	for i, p := range append(slices.Clone(packageRecords), osRelease) {
		f, err := openBeneath(r.src, p, unix.O_PATH, beneath)
		if err == unix.ENOENT || err == unix.ELOOP || err == unix.ENOTDIR {
			if i < len(packageRecords) && err == unix.ENOENT {
				r.seen[p] = fileKey{}
			}
			continue
		}
		if err != nil {
			return false, fmt.Errorf("root: %w", explain(p, err))
		}
		put(h, "record", p)
		st, err := fstat(f)
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			r.seen[p] = keyOf(st)
			err = hashContent(h, f)
			found = found || i < len(packageRecords)
		}
		f.Close()
		if err != nil {
			return false, fmt.Errorf("root: %w", explain(p, err))
		}
	}
	if err != nil {
		return found, err
	}
	// Watched before it is listed, so that no change is missed in between.
	deep, err := r.hashHandMade()
	if err != nil {
		return found, err
	}
	r.listed, err = r.listHandMade()
	put(h, "hand made", hex.EncodeToString(r.listed), hex.EncodeToString(deep))
	return found, err
}

// hashHandMade digests the trees of the handMade directories and watches them. Where they are too
// large it does neither, and what they list must do.
func (r *Rootfs) hashHandMade() ([]byte, error) {
	w := &walk{hash: sha256.New(), resolve: inMount, watch: r.watch, most: maxHandMade}
	err := r.walkHandMade(w, "tree", func(p string) bool { return p == "usr/local" }) // of which the others are parts
	var large *EntryError
	if errors.As(err, &large) {
		if r.watch != nil {
			r.watch.partial = true
		}
		return nil, nil
	}
	return w.hash.Sum(nil), err
}

// hashContent digests a regular file opened with O_PATH.
func hashContent(h hash.Hash, f *os.File) error {
	in, err := reopen(f, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer in.Close()
	c := sha256.New()
	n, err := io.Copy(c, io.LimitReader(in, maxRecord+1))
	if err == nil && n > maxRecord {
		err = fmt.Errorf("is longer than %d bytes, which no file of its kind is", maxRecord)
	}
	put(h, n, hex.EncodeToString(c.Sum(nil)))
	return err
}

// listHandMade digests the names in the handMade directories, and what each is.
func (r *Rootfs) listHandMade() ([]byte, error) {
	w := &walk{hash: sha256.New(), resolve: r.resolve}
	err := r.walkHandMade(w, "directory", func(string) bool { return true })
	return w.hash.Sum(nil), err
}

// walkHandMade has w digest those of the handMade directories that are there, the flat ones
// without what is in their directories.
func (r *Rootfs) walkHandMade(w *walk, kind string, flat func(p string) bool) error {
	for _, p := range handMade {
		d, err := openBeneath(r.src, p, unix.O_RDONLY|unix.O_DIRECTORY, beneath)
		if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
			continue
		}
		if err != nil {
			return fmt.Errorf("root: %w", explain(p, err))
		}
		put(w.hash, kind, p)
		w.flat = flat(p)
		err = w.dir(d, p, 0)
		d.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// walk digests what a tree holds but not what its files contain.
type walk struct {
	hash    hash.Hash
	resolve uint64
	foreign bool // the tree is not the host's own
	flat    bool // only the names, not what is in directories
	watch   *watcher
	most    int64 // entries; 0 is DefaultMaxEntries
	n       int64
	buf     []byte
}

// mount digests the tree below a mount.
func (w *walk) mount(m Mount) error {
	st, err := fstat(m.FD)
	if err != nil {
		return fmt.Errorf("root: %w", explain(m.Target[1:], err))
	}
	w.entry(".", st)
	if !m.Dir {
		return nil
	}
	d, err := openBeneath(m.FD, ".", unix.O_RDONLY|unix.O_DIRECTORY, w.resolve)
	if err != nil {
		return fmt.Errorf("root: %w", explain(m.Target[1:], err))
	}
	defer d.Close()
	return w.dir(d, m.Target[1:], 0)
}

// entry adds a name and all that keyOf knows of it but for the device, whose number
// may change when the machine starts.
func (w *walk) entry(name string, st unix.Stat_t) {
	b := append(w.buf[:0], name...)
	b = append(b, 0)
	for _, n := range []int64{int64(st.Ino), int64(st.Mode), int64(st.Uid), int64(st.Gid), st.Size, st.Mtim.Nano(), st.Ctim.Nano()} {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	w.hash.Write(b)
	w.buf = b
}

func (w *walk) dir(d *os.File, at string, depth int) error {
	if err := w.watch.add(d); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	names, err := w.list(d, at)
	if err != nil {
		return err
	}
	for _, name := range names {
		p := path.Join(at, name)
		st, err := lstat(d, name)
		if err == unix.ENOENT {
			continue // as it would be a moment later
		}
		if err != nil {
			return fmt.Errorf("root: %w", explain(p, err))
		}
		w.entry(name, st)
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFDIR || w.flat:
		case w.foreign && st.Mode&othersSearch == 0:
			// No task finds what is in there, nor may who named the root find out.
		case depth >= DefaultMaxDepth:
			return tooMany(p, DefaultMaxDepth, "levels of directories")
		default:
			if err := w.enter(d, name, p, depth+1); err != nil {
				return err
			}
		}
	}
	w.hash.Write([]byte{0}) // no entry has an empty name
	return nil
}

func (w *walk) enter(parent *os.File, name, p string, depth int) error {
	d, err := openBeneath(parent, name, unix.O_RDONLY|unix.O_DIRECTORY, w.resolve)
	if w.watch != nil && (err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP || err == unix.EXDEV) {
		return nil // it was changed, which is noticed; or has another mount, which a task sees and the root need not know
	}
	if err != nil {
		return fmt.Errorf("root: %w", explain(p, err))
	}
	defer d.Close()
	return w.dir(d, p, depth)
}

func (w *walk) list(d *os.File, at string) ([]string, error) {
	var names []string
	for {
		batch, err := d.Readdirnames(dirBatch)
		names = append(names, batch...)
		if w.n += int64(len(batch)); w.n > cmp.Or(w.most, DefaultMaxEntries) {
			return nil, tooMany(at, cmp.Or(w.most, DefaultMaxEntries), "entries in all")
		}
		if err == io.EOF {
			slices.Sort(names)
			return names, nil
		}
		if err != nil {
			return nil, fmt.Errorf("root: %w", explain(at, err))
		}
	}
}
