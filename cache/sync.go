package cache

import (
	"errors"
	"path"
	"sync"
)

// maxSyncs is how many files are synced at once: a file system does several in the
// time of one.
const maxSyncs = 16

// manySyncs is from how many files on the whole file system is synced, once: each sync of a file has the disk empty its
// own cache. What others have written there has to be waited for, too.
const manySyncs = 256

// sync brings blobs and their names onto the disk. Those of which it is known already
// cost nothing, which may be wrong if another process evicted and stored them meanwhile:
// after a crash they are then missing, and so is a result that needs them.
func (c *Cache) sync(ds []Digest) error {
	var todo, dirs []string
	seen := map[string]bool{}
	c.mu.Lock()
	for _, d := range ds {
		if c.synced[d.Hash] {
			continue
		}
		name := blobPath(d)
		todo = append(todo, name)
		if dir := path.Dir(name); !seen[dir] {
			seen[dir] = true
			dirs = append(dirs, dir)
		}
	}
	// Who made the directories may have been killed before their names were on disk.
	if !c.dirs["cas"] {
		dirs = append(dirs, "cas", ".")
	}
	c.mu.Unlock()
	if err := c.syncNames(todo, dirs); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirs["cas"] = true
	for _, d := range ds {
		makeRoom(c.synced)
		c.synced[d.Hash] = true
	}
	return nil
}

// syncNames syncs files, and the directories that hold their names.
func (c *Cache) syncNames(files, dirs []string) error {
	if len(files) >= manySyncs {
		if err := c.syncWhole(); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	if err := c.syncAll(files); err != nil {
		return err
	}
	return c.syncAll(dirs)
}

// syncWhole syncs the cache's file system. It has an error of the disk even if that came before: of an open file
// the kernel tells what nobody was told yet.
func (c *Cache) syncWhole() error {
	f, err := c.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(syncFileSystem(f), f.Close())
}

// syncAll syncs files or directories. The error is that of any.
func (c *Cache) syncAll(names []string) error {
	errs := make(chan error, min(len(names), maxSyncs))
	next := make(chan string)
	var wg sync.WaitGroup
	for range cap(errs) {
		wg.Go(func() {
			var first error
			for name := range next {
				if first == nil {
					first = c.syncName(name)
				}
			}
			errs <- first
		})
	}
	for _, name := range names {
		next <- name
	}
	close(next)
	wg.Wait()
	close(errs)
	var err error
	for e := range errs {
		if err == nil {
			err = e
		}
	}
	return err
}

// makeRoom forgets any of what is known of blobs when that is too much: it costs only
// finding out once more.
func makeRoom[V any](known map[string]V) {
	for hash := range known {
		if len(known) < maxVerified {
			return
		}
		delete(known, hash)
	}
}
