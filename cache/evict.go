package cache

import (
	"context"
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
	// Blobs is their number, and Bytes their size.
	Blobs int64 `json:"blobs"`
	Bytes int64 `json:"bytes"`
	// MaxBytes is what GC brings Bytes below.
	MaxBytes int64 `json:"max_bytes"`
	// Results is the number of results in all namespaces.
	Results int64 `json:"results"`
}

// GCReport says what GC did.
type GCReport struct {
	// Results, Blobs and Bytes are what was evicted.
	Results int64 `json:"results"`
	Blobs   int64 `json:"blobs"`
	Bytes   int64 `json:"bytes"`
	// Left is the size of the blobs that remain. It is more than the cache's
	// size if the rest was used within the grace period.
	Left int64 `json:"left"`
}

// Stats counts what is there, by walking all of it.
func (c *Cache) Stats() (Stats, error) {
	s := Stats{MaxBytes: c.cfg.MaxBytes}
	err := c.eachBlob(func(_ Digest, fi fs.FileInfo) error {
		s.Blobs++
		s.Bytes += fi.Size()
		return nil
	})
	if err == nil {
		err = c.eachResult(func(resultFile) error {
			s.Results++
			return nil
		})
	}
	if err != nil {
		return Stats{}, fmt.Errorf("count the cache: %w", err)
	}
	return s, nil
}

// GC evicts until the blobs take less than Config.MaxBytes: of results and of
// blobs that none needs, that which was used longest ago first; with a result go
// the blobs that no other needs. What was used within the grace period stays. It
// waits for a GC of another process, and other uses go on meanwhile.
func (c *Cache) GC(ctx context.Context) (GCReport, error) {
	unlock, err := c.lock("gc.lock", true)
	if err != nil {
		return GCReport{}, err
	}
	defer unlock()
	s := &sweeper{c: c, blobs: map[Digest]*blobUse{}}
	if err := s.scan(ctx); err != nil {
		return s.report, fmt.Errorf("collect garbage: %w", err)
	}
	if err := s.evict(ctx); err != nil {
		return s.report, fmt.Errorf("collect garbage: %w", err)
	}
	return s.report, nil
}

// sweeper is one GC. What it saw in scan may be in use by now, so each deletion
// looks again under the lock.
type sweeper struct {
	c      *Cache
	blobs  map[Digest]*blobUse
	items  []item
	report GCReport
}

type blobUse struct {
	fi   fs.FileInfo
	refs int // results that need it
}

// item is a result, or a blob that none needs.
type item struct {
	used   time.Time
	result resultFile
	needs  []Digest
	blob   Digest
}

func (s *sweeper) scan(ctx context.Context) error {
	err := s.c.eachBlob(func(d Digest, fi fs.FileInfo) error {
		s.blobs[d] = &blobUse{fi: fi}
		s.report.Left += fi.Size()
		return ctx.Err()
	})
	if err != nil || s.report.Left < s.c.cfg.MaxBytes {
		return err
	}
	err = s.c.eachResult(func(r resultFile) error {
		e, fi, err := s.c.readEntry(r.name, r.namespace, r.action)
		switch {
		case errors.Is(err, errEntry):
			return s.c.drop(r.name, fi)
		case err != nil:
			return absent(err)
		}
		r.fi = fi
		it := item{used: fi.ModTime(), result: r, needs: unique(e.blobs)}
		for _, d := range it.needs {
			if b := s.blobs[d]; b != nil {
				b.refs++
			}
		}
		s.items = append(s.items, it)
		return ctx.Err()
	})
	for d, b := range s.blobs {
		if b.refs == 0 {
			s.items = append(s.items, item{used: b.fi.ModTime(), blob: d})
		}
	}
	slices.SortFunc(s.items, func(a, b item) int { return a.used.Compare(b.used) })
	return err
}

func (s *sweeper) evict(ctx context.Context) error {
	for _, it := range s.items {
		if s.report.Left < s.c.cfg.MaxBytes {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		err := s.c.locked(true, func() error {
			if it.result.name == "" {
				return s.dropBlob(it.blob)
			}
			return s.dropResult(it)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *sweeper) dropResult(it item) error {
	gone, err := s.removeUnused(it.result.name, it.result.fi)
	if err != nil || !gone {
		return err
	}
	s.report.Results++
	for _, d := range it.needs {
		b := s.blobs[d]
		if b == nil {
			continue
		}
		if b.refs--; b.refs == 0 {
			err = errors.Join(err, s.dropBlob(d))
		}
	}
	return err
}

func (s *sweeper) dropBlob(d Digest) error {
	b := s.blobs[d]
	gone, err := s.removeUnused(blobPath(d), b.fi)
	if err != nil || !gone {
		return err
	}
	s.c.distrust(d)
	s.report.Blobs++
	s.report.Bytes += b.fi.Size()
	s.report.Left -= b.fi.Size()
	return nil
}

// removeUnused removes a file unless it was used since the scan or within the
// grace period. The caller holds the lock exclusively.
func (s *sweeper) removeUnused(name string, seen fs.FileInfo) (bool, error) {
	fi, err := s.c.root.Lstat(name)
	if err != nil {
		return false, absent(err)
	}
	if !sameFile(fi, seen) || time.Since(fi.ModTime()) < s.c.cfg.Grace {
		return false, nil
	}
	return true, s.c.root.Remove(name)
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
