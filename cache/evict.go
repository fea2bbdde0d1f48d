package cache

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Stats says what a cache holds.
type Stats struct {
	// Blobs is their number.
	Blobs int64 `json:"blobs"`
	// Results is the number of results in all namespaces.
	Results int64 `json:"results"`
	// Bytes is the size of all of them.
	Bytes int64 `json:"bytes"`
	// MaxBytes is what GC brings Bytes below.
	MaxBytes int64 `json:"max_bytes"`
}

// GCReport says what GC did.
type GCReport struct {
	// Results, Blobs and Bytes are what was evicted.
	Results int64 `json:"results"`
	Blobs   int64 `json:"blobs"`
	Bytes   int64 `json:"bytes"`
	// Left is the size of what remains. It is more than the cache's size if the
	// rest was used within the grace period.
	Left int64 `json:"left"`
}

// Stats counts what is there, by walking all of it.
func (c *Cache) Stats() (Stats, error) {
	s := Stats{MaxBytes: c.MaxBytes()}
	err := c.eachBlob(func(_ Digest, fi fs.FileInfo) error {
		s.Blobs++
		s.Bytes += fi.Size()
		return nil
	})
	if err == nil {
		err = c.eachResult(func(r resultFile) error {
			s.Results++
			s.Bytes += r.fi.Size()
			return nil
		})
	}
	if err != nil {
		return Stats{}, fmt.Errorf("count the cache: %w", err)
	}
	return s, nil
}

// GC evicts until blobs and results take less than Config.MaxBytes: of results and of
// blobs that none needs, that which was used longest ago first; with a result go
// the blobs that no other needs. What was used within the grace period stays, or within
// a twentieth of it where there is more than twice of Config.MaxBytes. It
// waits for a GC of another process, and other uses go on meanwhile. When it ends early,
// the report says how far it came.
func (c *Cache) GC(ctx context.Context) (GCReport, error) {
	s := &sweeper{c: c, blobs: map[blobID]*blobUse{}}
	if err := s.run(ctx); err != nil {
		return s.report, fmt.Errorf("collect garbage: %w", err)
	}
	return s.report, nil
}

// hurry is what the grace period is divided by when the cache is twice its size.
const hurry = 20

// sweeper is one GC. What it saw in scan may be in use by now, so each deletion
// looks again under the lock. It is made to be small, for there may be millions of blobs.
type sweeper struct {
	c      *Cache
	blobs  map[blobID]*blobUse
	items  []item
	report GCReport
	grace  time.Duration
}

type blobID struct {
	sum  [sha256.Size]byte
	size int64
}

func (d Digest) id() blobID { return blobID{d.sum(), d.Size} }

func (id blobID) digest() Digest { return digest(id.sum, id.size) }

type blobUse struct {
	used int64 // mtime in nanoseconds
	refs int   // results that need it
}

// item is a result, or if that has no name, a blob that none needs.
type item struct {
	used   int64 // mtime in nanoseconds
	size   int64
	result resultFile // without fi
	blob   blobID
}

func (s *sweeper) run(ctx context.Context) error {
	unlock, err := s.c.lockGC(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.scan(ctx); err != nil {
		return err
	}
	if s.enough() {
		return nil
	}
	if s.grace = s.c.cfg.Grace; s.report.Left > 2*s.c.MaxBytes() {
		s.grace /= hurry // else whoever stores fast enough fills the disk
	}
	if err := s.order(ctx); err != nil {
		return err
	}
	return s.evict(ctx)
}

// lockGC waits for a GC of another process.
func (c *Cache) lockGC(ctx context.Context) (unlock func(), err error) {
	f, err := c.root.OpenFile("gc.lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for !tryFlock(f) {
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-poll.C:
		}
	}
	return func() { _ = f.Close() }, nil
}

func (s *sweeper) enough() bool { return s.report.Left < s.c.MaxBytes() }

// scan adds up what there is.
func (s *sweeper) scan(ctx context.Context) error {
	err := s.c.eachBlob(func(d Digest, fi fs.FileInfo) error {
		s.blobs[d.id()] = &blobUse{used: fi.ModTime().UnixNano()}
		s.report.Left += fi.Size()
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	return s.c.eachResult(func(r resultFile) error {
		it := item{used: r.fi.ModTime().UnixNano(), size: r.fi.Size(), result: r}
		it.result.fi = nil
		s.items = append(s.items, it)
		s.report.Left += it.size
		return ctx.Err()
	})
}

// order sorts what can go by its last use, which of the blobs are those that no
// result needs.
func (s *sweeper) order(ctx context.Context) error {
	for _, it := range s.items {
		if err := ctx.Err(); err != nil {
			return err
		}
		needs, err := s.needs(it.result)
		if err != nil {
			return err
		}
		for _, d := range needs {
			if b := s.blobs[d.id()]; b != nil {
				b.refs++
			}
		}
	}
	for id, b := range s.blobs {
		if b.refs == 0 {
			s.items = append(s.items, item{used: b.used, size: id.size, blob: id})
		}
	}
	slices.SortFunc(s.items, func(a, b item) int { return cmp.Compare(a.used, b.used) })
	return nil
}

// needs are the blobs of a result, each once. One that is gone needs none; one that is
// damaged is dropped.
func (s *sweeper) needs(r resultFile) ([]Digest, error) {
	e, fi, err := s.c.readEntry(r.name, r.namespace, r.action)
	if errors.Is(err, errEntry) {
		return nil, s.c.drop(r.name, fi)
	}
	return unique(e.blobs), absent(err)
}

func (s *sweeper) evict(ctx context.Context) error {
	for _, it := range s.items {
		if s.enough() {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		if it.result.name == "" {
			err = s.c.locked(true, func() error { return s.dropBlob(it.blob) })
		} else {
			err = s.dropResult(it)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dropResult removes a result before its blobs, so that nobody finds one without.
func (s *sweeper) dropResult(it item) error {
	needs, err := s.needs(it.result)
	if err != nil {
		return err
	}
	return s.c.locked(true, func() error {
		gone, err := s.removeUnused(it.result.name, it.used, it.size)
		if err != nil || !gone {
			return err
		}
		s.report.Results++
		for _, d := range needs {
			b := s.blobs[d.id()]
			if b == nil {
				continue
			}
			if b.refs--; b.refs == 0 {
				err = errors.Join(err, s.dropBlob(d.id()))
			}
		}
		return err
	})
}

func (s *sweeper) dropBlob(id blobID) error {
	d := id.digest()
	gone, err := s.removeUnused(blobPath(d), s.blobs[id].used, id.size)
	if gone {
		s.c.distrust(d)
		s.report.Blobs++
	}
	return err
}

// removeUnused removes a file unless it was used since the scan or within the
// grace period. The caller holds the lock exclusively.
func (s *sweeper) removeUnused(name string, used, size int64) (bool, error) {
	fi, err := s.c.root.Lstat(name)
	if err != nil {
		return false, absent(err)
	}
	if fi.ModTime().UnixNano() != used || fi.Size() != size || time.Since(fi.ModTime()) < s.grace {
		return false, nil
	}
	if err := s.c.root.Remove(name); err != nil {
		return false, err
	}
	s.report.Bytes += size
	s.report.Left -= size
	return true, nil
}

func unique(ds []Digest) []Digest {
	seen := make(map[Digest]bool, len(ds))
	return slices.DeleteFunc(slices.Clone(ds), func(d Digest) bool {
		was := seen[d]
		seen[d] = true
		return was
	})
}

// eachBlob calls f for every blob, by what its name and size say.
func (c *Cache) eachBlob(f func(Digest, fs.FileInfo) error) error {
	for i := range 256 {
		dir := fmt.Sprintf("cas/%02x", i)
		err := c.eachFile(dir, func(name string, fi fs.FileInfo) error {
			d := Digest{Hash: name, Size: fi.Size()}
			if d.check() != nil || !strings.HasPrefix(name, path.Base(dir)) {
				return nil // not ours
			}
			return f(d, fi)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// resultFile is a result by what its name says.
type resultFile struct {
	name, namespace string
	action          Digest
	fi              fs.FileInfo
}

func (c *Cache) eachResult(f func(resultFile) error) error {
	spaces, err := c.names("ac")
	if err != nil {
		return err
	}
	for _, ns := range spaces {
		prefixes, err := c.names("ac/" + ns)
		if err != nil {
			return err
		}
		for _, p := range prefixes {
			dir := "ac/" + ns + "/" + p
			err := c.eachFile(dir, func(name string, fi fs.FileInfo) error {
				hash, size, _ := strings.Cut(name, "_")
				n, err := strconv.ParseInt(size, 10, 64)
				r := resultFile{name: dir + "/" + name, namespace: ns, action: Digest{Hash: hash, Size: n}, fi: fi}
				if want, err2 := resultPath(ns, r.action); err != nil || err2 != nil || want != r.name {
					return nil // not ours
				}
				return f(r)
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// eachFile calls f for the regular files of a directory, which may come and go
// meanwhile.
func (c *Cache) eachFile(dir string, f func(name string, fi fs.FileInfo) error) error {
	names, err := c.names(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		fi, err := c.root.Lstat(dir + "/" + name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.Mode().IsRegular() {
			continue
		}
		if err == nil {
			err = f(name, fi)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// names lists a directory; one that is not there, or none, has no names.
func (c *Cache) names(dir string) ([]string, error) {
	d, err := c.root.OpenFile(dir, os.O_RDONLY, 0)
	if err != nil {
		return nil, absent(err)
	}
	fi, err := d.Stat()
	if err != nil || !fi.IsDir() {
		return nil, errors.Join(err, d.Close())
	}
	names, err := d.Readdirnames(-1)
	return names, errors.Join(err, d.Close())
}
