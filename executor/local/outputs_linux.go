package local

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/rootfs"
)

func (t *task) collectOutputs(ctx context.Context, work, upper *os.File, out *executor.TaskOutput) error {
	lim := rootfs.Limits{MaxBytes: t.granted.OutputBytes}
	var layer *rootfs.Layer
	// Who has the host's network can hand descriptors out, by its abstract sockets.
	if upper != nil && t.spec.Network != executor.NetworkFull {
		layer = &rootfs.Layer{Dir: upper, Take: func(ctx context.Context, path string, f *os.File, _ int64) (string, error) {
			d, err := t.cfg.Cache.Adopt(ctx, upper, path, f)
			return stored(path, d, err)
		}}
	}
	entries, missing, err := rootfs.Collect(ctx, work, layer, t.spec.Outputs, lim, t.keep)
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
	return stored(path, d, err)
}

// stored is what a rootfs.Store returns for a file.
func stored(path string, d cache.Digest, err error) (string, error) {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "", &rootfs.EntryError{Path: path, Reason: "became shorter while it was read; let nothing else change it"}
	case errors.Is(err, cache.ErrChanged):
		return "", &rootfs.EntryError{Path: path, Reason: "changed while it was read; let nothing else change it"}
	case err != nil:
		return "", err
	}
	return d.String(), nil
}

// place puts the outputs of a success into the caller's tree, with the caller's rights.
func (t *task) place(ctx context.Context, out *executor.TaskOutput) error {
	if t.spec.WorkdirMode != executor.WorkdirOverlay || !out.Success() {
		return nil
	}
	return t.journal.Place(ctx, t.cfg.Cache, t.caller, t.paths.Work, t.spec.Outputs, out.OutputFiles)
}
