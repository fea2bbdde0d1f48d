package local

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
	"github.com/sandboxd/sandboxd/rootfs"
)

func (t *task) collectOutputs(ctx context.Context, work *os.File, out *executor.TaskOutput) error {
	lim := rootfs.Limits{MaxBytes: t.granted.outputBytes}
	entries, missing, err := rootfs.Collect(ctx, work, t.spec.Outputs, lim, t.keep)
	var entry *rootfs.EntryError
	var limit *rootfs.LimitError
	switch {
	case errors.As(err, &entry), errors.As(err, &limit):
		return executor.FieldErrorf("outputs", "%w", err)
	case err != nil:
		return err
	}
	out.MissingOutputs = missing[:min(len(missing), executor.MaxListed)]
	for _, x := range entries {
		f := executor.OutputFile{Path: x.Path, Mode: x.Mode, Target: x.Target, Kind: kinds[x.Kind]}
		if x.Kind == 'f' {
			if f.Digest, err = executor.ParseDigest(x.Blob); err != nil {
				return err
			}
		}
		out.OutputFiles = append(out.OutputFiles, f)
	}
	if len(missing) > 0 {
		out.OutputFiles = nil
	}
	return nil
}

var kinds = map[byte]executor.FileKind{'f': executor.KindFile, 'd': executor.KindDir, 'l': executor.KindSymlink}

// keep is a rootfs.Store.
func (t *task) keep(ctx context.Context, path string, f *os.File, size int64) (string, error) {
	d, err := t.cfg.Cache.PutFile(ctx, f, size)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "", &rootfs.EntryError{Path: path, Reason: "became shorter while it was read; let nothing else change it"}
	}
	if err != nil {
		return "", err
	}
	return d.String(), nil
}

// checkPlaces refuses outputs that place could not put where they belong, before anything is run for them.
func (t *task) checkPlaces() error {
	if t.paths.Work == nil || t.spec.WorkdirMode != executor.WorkdirOverlay || len(t.spec.Outputs) == 0 {
		return nil
	}
	err := caller.As(t.caller, func() error { return rootfs.Placeable(t.paths.Work, t.spec.Outputs) })
	if err != nil {
		return executor.FieldErrorf("outputs", "could not be put into the work directory: %w; make it your own, or copy it", err)
	}
	return nil
}

// place puts outputs into the caller's tree, with the caller's rights.
func (t *task) place(ctx context.Context, files []executor.OutputFile) error {
	if t.paths.Work == nil || len(files) == 0 {
		return nil
	}
	entries := make([]rootfs.Entry, len(files))
	for i, f := range files {
		entries[i] = rootfs.Entry{Path: f.Path, Mode: f.Mode, Target: f.Target, Size: f.Digest.Size, Blob: f.Digest.String()}
		for k, kind := range kinds {
			if kind == f.Kind {
				entries[i].Kind = k
			}
		}
	}
	blobs := newOpener(t.cfg.Cache)
	defer close(blobs)
	page, err := t.journal.begin()
	if err != nil {
		return err
	}
	var ours error // which is no mistake of the caller's
	err = caller.As(t.caller, func() error {
		return rootfs.Place(ctx, t.paths.Work, t.spec.Outputs, entries, blobs.open, func(pl rootfs.Placing) error {
			ours = page.write(t.caller, t.paths.Work, pl)
			return ours
		}, func(work func() error) error { return caller.As(t.caller, work) })
	})
	t.journal.end(page)
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
