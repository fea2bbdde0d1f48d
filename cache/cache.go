package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultMaxBytes is the size GC keeps a cache below unless Config says.
	DefaultMaxBytes = 20 << 30
	// DefaultGrace is how long what was written or used stays in any case.
	DefaultGrace = 10 * time.Minute
)

// ErrCorrupt says that a blob was not what its name says and has been removed.
// It is an fs.ErrNotExist, for that is what the blob now is.
var ErrCorrupt = fmt.Errorf("blob was damaged on disk and is removed: %w", fs.ErrNotExist)

// Config says how a Cache behaves. The zero Config is a good one.
type Config struct {
	// MaxBytes is what GC brings blobs and results below; no single blob may be larger.
	// 0 means DefaultMaxBytes.
	MaxBytes int64
	// Grace is how long what was written or used is safe from GC, while there is no more
	// than twice MaxBytes, and else a twentieth of it; of uses, only one in a fortieth is
	// noted. A task that runs longer between storing an output and its result may have to
	// store the output again. 0 means DefaultGrace, negative none.
	Grace time.Duration
	// OnCorrupt is told of each damaged blob that is met, and then removed, outside of Verify: whoever asked for
	// it hears no more than that it is not there, and the disk may be failing. It may be called by several goroutines. nil is nobody.
	OnCorrupt func(Digest)
}

// Cache is an open cache directory. Its methods may be called by any number of
// goroutines, until Close.
type Cache struct {
	root  *os.Root
	dir   *os.File // the same
	cfg   Config
	max   atomic.Int64 // what Config.MaxBytes is now
	own   string       // tmp/<random>, this process's
	alive *os.File     // holds the lock that says own is in use
	index index
	left  int          // files that dead processes were writing, which Open removed
	apart atomic.Bool  // of files to Adopt some were on another file system or mount
	local sync.RWMutex // the lock, between goroutines; flock knows only open files

	mu       sync.Mutex
	verified map[string]verification // by hash; guarded by mu
	synced   map[string]bool         // blobs that are on disk, by hash; guarded by mu
	locks    []*os.File              // free lockFiles; guarded by mu
	dirs     map[string]bool         // directories of which the names are on disk; guarded by mu
}

// Open opens the cache in dir, which is made with mode 0700 if it is not there;
// its parent must be. It sweeps what dead processes were writing. The caller must
// Close the Cache.
func Open(dir string, cfg Config) (*Cache, error) {
	if cfg.MaxBytes < 0 {
		return nil, fmt.Errorf("cache size %d: want a positive number of bytes, or 0 for %d", cfg.MaxBytes, int64(DefaultMaxBytes))
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.Grace == 0 {
		cfg.Grace = DefaultGrace
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make cache directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open cache directory: %w", err)
	}
	c := &Cache{root: root, cfg: cfg, verified: map[string]verification{}, synced: map[string]bool{}, dirs: map[string]bool{}}
	c.max.Store(cfg.MaxBytes)
	c.index.init(root)
	if err := c.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("open cache %s: %w", dir, explain(root, err)), c.Close())
	}
	return c, nil
}

// Close saves the index and removes what was being written. Blobs that are open
// stay readable.
func (c *Cache) Close() error {
	err := c.index.close()
	if c.alive != nil {
		err = errors.Join(err, c.root.RemoveAll(c.own), c.root.Remove(c.own+".lock"), c.alive.Close())
		c.alive = nil
	}
	c.mu.Lock()
	for _, f := range c.locks {
		err = errors.Join(err, f.Close())
	}
	c.locks = nil
	c.mu.Unlock()
	if c.dir != nil {
		err = errors.Join(err, c.dir.Close())
	}
	return errors.Join(err, c.root.Close())
}

// Left is how many files that dead processes had been writing Open removed.
func (c *Cache) Left() int { return c.left }

// MaxBytes is the size below which GC brings the cache.
func (c *Cache) MaxBytes() int64 { return c.max.Load() }

// SetMaxBytes changes Config.MaxBytes, which must be positive. What is stored already
// goes with the next GC.
func (c *Cache) SetMaxBytes(n int64) { c.max.Store(n) }

// prepare makes the directories, so that nothing later has to but those of namespaces.
func (c *Cache) prepare() error {
	var err error
	if c.dir, err = c.root.Open("."); err != nil {
		return err
	}
	fi, err := c.dir.Stat()
	if err != nil {
		return err
	}
	if err := checkPrivate(fi); err != nil {
		return err
	}
	if err := c.ours(); err != nil {
		return err
	}
	unlock, err := c.lock("lock", true)
	if err != nil {
		return err
	}
	defer unlock()
	if err := errors.Join(c.ours(), c.tag()); err != nil {
		return err
	}
	for _, d := range []string{"cas", "ac", "tmp"} {
		if err := c.mkdir(d); err != nil {
			return err
		}
	}
	if err := c.makeBlobDirs(); err != nil {
		return err
	}
	c.sweep()
	return c.claim()
}

// A cache directory is known by its tag, which also keeps backups out of it
// (https://bford.info/cachedir/).
const (
	tagName = "CACHEDIR.TAG"
	tagText = "Signature: 8a477f597d28d172789f06886806bc55\n# This is a cache of sandboxd. All in it may be deleted, and is.\n"
)

// ours refuses a directory that holds something and is not a cache: what is in it would be
// taken for leftovers and deleted.
func (c *Cache) ours() error {
	// The names before the tag: another process may be making the cache, and tags it first.
	names, err := c.names(".")
	if err != nil {
		return err
	}
	b, err := c.root.ReadFile(tagName)
	if err == nil && string(b) == tagText {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, n := range names {
		if n != "lock" && n != tagName { // another process may be about to tag it
			return fmt.Errorf("the directory holds %q and is no cache of sandboxd: choose a new or an empty one", n)
		}
	}
	return nil
}

// tag marks the directory as a cache, for good before there is anything else in it: one that
// lost its tag would be refused.
func (c *Cache) tag() error {
	if b, err := c.root.ReadFile(tagName); err == nil && string(b) == tagText {
		return nil
	}
	f, err := c.root.OpenFile(tagName, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(tagText)
	return errors.Join(err, f.Sync(), f.Close(), c.syncName("."))
}

// makeBlobDirs makes those of cas/00 to cas/ff that are missing.
func (c *Cache) makeBlobDirs() error {
	names, err := c.names("cas")
	if err != nil || len(names) >= 256 {
		return err
	}
	for i := range 256 {
		if err := c.mkdir(fmt.Sprintf("cas/%02x", i)); err != nil {
			return err
		}
	}
	return errors.Join(c.syncName("cas"), c.syncName("."))
}

func (c *Cache) mkdir(name string) error {
	if err := c.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// sweep removes what dead processes were writing: their lock is free. That no
// process is between making its directory and locking it is what the exclusive
// lock in prepare ensures.
func (c *Cache) sweep() {
	es, err := fs.ReadDir(c.root.FS(), "tmp")
	if err != nil {
		return
	}
	for _, e := range es {
		dir := path.Join("tmp", strings.TrimSuffix(e.Name(), ".lock"))
		f, err := c.root.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			continue
		}
		if tryFlock(f) {
			if names, err := c.names(dir); err == nil {
				c.left += len(names)
			}
			_ = c.root.RemoveAll(dir)
			_ = c.root.Remove(dir + ".lock")
		}
		_ = f.Close()
	}
}

// claim makes the directory in which this process writes.
func (c *Cache) claim() error {
	own := "tmp/" + randomName()
	f, err := c.root.OpenFile(own+".lock", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if !tryFlock(f) {
		return errors.Join(fmt.Errorf("lock %s.lock: held by another", own), f.Close())
	}
	c.own, c.alive = own, f
	return c.root.Mkdir(own, 0o700)
}

// lock takes one of the lock files, waiting for others; gc.lock may be held then, and
// no other.
func (c *Cache) lock(name string, exclusive bool) (unlock func(), err error) {
	f, err := c.root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, exclusive); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the cache: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// locked runs f while no other process deletes, or if exclusive, relies on
// anything.
func (c *Cache) locked(exclusive bool, f func() error) error {
	if exclusive {
		c.local.Lock()
		defer c.local.Unlock()
	} else {
		c.local.RLock()
		defer c.local.RUnlock()
	}
	file, err := c.lockFile()
	if err != nil {
		return err
	}
	if err := flock(file, exclusive); err != nil {
		return errors.Join(fmt.Errorf("lock the cache: %w", err), file.Close())
	}
	defer c.letGo(file)
	return f()
}

// lockFile is the file lock, open for one at a time: there is one such lock for each blob that is put.
func (c *Cache) lockFile() (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.locks); n > 0 {
		f := c.locks[n-1]
		c.locks = c.locks[:n-1]
		return f, nil
	}
	return c.root.OpenFile("lock", os.O_RDWR|os.O_CREATE, 0o600)
}

// maxLocks is how many open files are kept for locks to come.
const maxLocks = 8

// letGo ends the lock of a lockFile.
func (c *Cache) letGo(f *os.File) {
	err := funlock(f)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil || len(c.locks) >= maxLocks {
		_ = f.Close()
		return
	}
	c.locks = append(c.locks, f)
}

// syncName syncs a file or directory.
func (c *Cache) syncName(name string) error {
	f, err := c.root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(syncFile(f), f.Close())
}

// reader is r that ends with ctx.
type reader struct {
	ctx context.Context
	r   interface{ Read([]byte) (int, error) }
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
