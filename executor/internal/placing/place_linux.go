package placing

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
	"github.com/sandboxd/sandboxd/rootfs"
)

// kinds are those of a file, as package rootfs has them.
var kinds = map[executor.FileKind]byte{executor.KindFile: 'f', executor.KindDir: 'd', executor.KindSymlink: 'l'}

// Check refuses outputs that Place could not put where they belong in a work directory, before anything is run for them.
func Check(c executor.Caller, work *os.File, outputs []string) error {
	if work == nil || len(outputs) == 0 {
		return nil
	}
	err := caller.As(c, func() error { return rootfs.Placeable(work, outputs) })
	if err != nil {
		return executor.FieldErrorf("outputs", "could not be put into the work directory: %w; make it your own, or copy it", err)
	}
	return nil
}

// Place puts files, which are what the outputs are, into a work directory of the caller's, with the caller's
// rights: each output is the old or the new one, whole. That holds if this process is killed, too, unless the journal is nil.
// The files' content is in the cache. Without a work directory nothing is done.
func (j *Journal) Place(ctx context.Context, from *cache.Cache, c executor.Caller, work *os.File, outputs []string, files []executor.OutputFile) error {
	if work == nil || len(files) == 0 {
		return nil
	}
	entries := make([]rootfs.Entry, len(files))
	for i, f := range files {
		entries[i] = rootfs.Entry{Path: f.Path, Mode: f.Mode, Target: f.Target, Size: f.Digest.Size, Blob: f.Digest.String(), Kind: kinds[f.Kind]}
	}
	blobs := newOpener(from)
	defer close(blobs)
	note := func(rootfs.Placing) error { return nil }
	var ours error // which is no mistake of the caller's
	if j != nil {
		page, err := j.begin()
		if err != nil {
			return err
		}
		defer j.end(page)
		note = func(pl rootfs.Placing) error {
			ours = page.write(c, work, pl)
			return ours
		}
	}
	err := caller.As(c, func() error {
		return rootfs.Place(ctx, work, outputs, entries, blobs.open, note, func(work func() error) error { return caller.As(c, work) })
	})
	if ours != nil {
		return ours
	}
	if err != nil {
		return executor.FieldErrorf("outputs", "cannot be put into the work directory: %w", err)
	}
	return nil
}

// opener has blobs opened by a goroutine with the daemon's rights, for those without. It ends
// when it is closed.
type opener chan wantedBlob

type wantedBlob struct {
	cache.Digest
	answer chan<- blobFile
}

type blobFile struct {
	f   *os.File
	err error
}

func newOpener(c *cache.Cache) opener {
	o := make(opener)
	go func() {
		for want := range o {
			if b, err := c.Open(want.Digest); err != nil {
				want.answer <- blobFile{err: err}
			} else {
				want.answer <- blobFile{f: b.File()}
			}
		}
	}()
	return o
}

// open is for rootfs.Place.
func (o opener) open(e rootfs.Entry) (*os.File, error) {
	d, err := executor.ParseDigest(e.Blob)
	if err != nil {
		return nil, err
	}
	answer := make(chan blobFile)
	o <- wantedBlob{cache.Digest(d), answer}
	a := <-answer
	return a.f, a.err
}

// Full says of an error which of our directories has no room left and what to do, if that is
// what it comes from: ENOSPC alone may be another bound of the kernel's.
func Full(err error, what, dir string) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	var st unix.Statfs_t
	if e := unix.Statfs(dir, &st); e != nil || errors.Is(err, unix.ENOSPC) && st.Bfree*uint64(st.Bsize) > 1<<20 && (st.Files == 0 || st.Ffree > 16) {
		return err
	}
	return fmt.Errorf("the file system of the %s %s is full; free some space there: %w", what, dir, err)
}
