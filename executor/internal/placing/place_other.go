//go:build !linux

package placing

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
)

// Journal is for Linux, and nil elsewhere.
type Journal struct{}

// Open is for Linux.
func Open(string, logrus.FieldLogger) (*Journal, int, error) { return nil, 0, nil }

// Close does nothing here.
func (*Journal) Close() error { return nil }

// Check refuses nothing here: Place does.
func Check(executor.Caller, *os.File, []string) error { return nil }

// Place puts files, which are what the outputs are, into a work directory of the caller's: each output is made beside
// its place, whole, and then takes it. The files' content is in the cache. Without a work directory nothing is done.
func (*Journal) Place(ctx context.Context, from *cache.Cache, c executor.Caller, work *os.File, outputs []string, all []executor.OutputFile) error {
	if work == nil || len(all) == 0 {
		return nil
	}
	return caller.As(c, func() error {
		root, err := os.OpenRoot(work.Name())
		if err != nil {
			return executor.FieldErrorf("workdir", "%w", err)
		}
		defer root.Close()
		p := placer{from, root}
		for _, o := range outputs {
			var files []executor.OutputFile
			for _, f := range all {
				if f.Path == o || strings.HasPrefix(f.Path, o+"/") {
					files = append(files, f)
				}
			}
			if len(files) == 0 {
				continue
			}
			if err := p.place(ctx, o, files); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return executor.FieldErrorf("outputs", "%q cannot be put into the work directory: %w", o, err)
			}
		}
		return nil
	})
}

type placer struct {
	from *cache.Cache
	root *os.Root
}

// place puts one declared output in place.
func (p placer) place(ctx context.Context, output string, files []executor.OutputFile) (err error) {
	dir := path.Dir(output)
	if err := p.root.MkdirAll(filepath.FromSlash(dir), 0o777); err != nil {
		return err
	}
	token := ".sandboxd-" + rand.Text()
	fresh, old := path.Join(dir, token), path.Join(dir, token+".old")
	defer func() { err = errors.Join(err, remove(p.root, fresh), remove(p.root, old)) }()
	for _, f := range files {
		if err := p.make(ctx, fresh+f.Path[len(output):], f); err != nil {
			return err
		}
	}
	// Modes of directories last, since they may forbid what was made in them.
	for i := len(files) - 1; i >= 0; i-- {
		if f := files[i]; f.Kind == executor.KindDir {
			if err := p.root.Chmod(fresh+f.Path[len(output):], fs.FileMode(f.Mode)); err != nil {
				return err
			}
		}
	}
	if err := p.root.Rename(output, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := p.root.Rename(fresh, output); err != nil {
		// Rather the old one than none.
		if back := p.root.Rename(old, output); back != nil && !errors.Is(back, fs.ErrNotExist) {
			err = errors.Join(err, back)
		}
		return err
	}
	return nil
}

// make makes one entry of an output at a path.
func (p placer) make(ctx context.Context, at string, f executor.OutputFile) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	switch f.Kind {
	case executor.KindDir:
		return p.root.Mkdir(at, 0o700)
	case executor.KindSymlink:
		return p.root.Symlink(f.Target, at)
	}
	b, err := p.from.Open(cache.Digest(f.Digest))
	if err != nil {
		return err
	}
	defer b.Close()
	h, err := p.root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = b.WriteTo(h)
	if err := errors.Join(err, h.Chmod(fs.FileMode(f.Mode)), h.Close()); err != nil {
		return fmt.Errorf("%s: %w", f.Path, err)
	}
	return nil
}

// remove removes what there is, if there is anything, also of directories that forbid it.
func remove(root *os.Root, name string) error {
	err := root.RemoveAll(name)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = fs.WalkDir(root.FS(), name, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = root.Chmod(p, 0o700)
		}
		return nil
	})
	return root.RemoveAll(name)
}
