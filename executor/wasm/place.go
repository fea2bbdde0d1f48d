package wasm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
)

// place puts the outputs of a success into the work directory, each whole: it is made beside
// its place, and then takes it.
func (t *task) place(ctx context.Context, out *executor.TaskOutput) error {
	if t.spec.Workdir == "" || t.spec.WorkdirMode != executor.WorkdirOverlay || !out.Success() || len(out.OutputFiles) == 0 {
		return nil
	}
	root, err := os.OpenRoot(t.spec.Workdir)
	if err != nil {
		return executor.FieldErrorf("workdir", "%w", err)
	}
	defer root.Close()
	for _, o := range t.spec.Outputs {
		var files []executor.OutputFile
		for _, f := range out.OutputFiles {
			if f.Path == o || below(f.Path, o) {
				files = append(files, f)
			}
		}
		if err := t.placeOne(ctx, root, o, files); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return executor.FieldErrorf("outputs", "%q cannot be put into the work directory: %w", o, err)
		}
	}
	return nil
}

// placeOne puts one declared output in place.
func (t *task) placeOne(ctx context.Context, root *os.Root, output string, files []executor.OutputFile) (err error) {
	dir := path.Dir(output)
	if err := root.MkdirAll(filepath.FromSlash(dir), 0o777); err != nil {
		return err
	}
	token := ".sandboxd-" + rand.Text()
	fresh, old := path.Join(dir, token), path.Join(dir, token+".old")
	defer func() { err = errors.Join(err, remove(root, fresh), remove(root, old)) }()
	for _, f := range files {
		if err := t.make(ctx, root, fresh+f.Path[len(output):], f); err != nil {
			return err
		}
	}
	// Modes of directories last, since they may forbid what was made in them.
	for i := len(files) - 1; i >= 0; i-- {
		if f := files[i]; f.Kind == executor.KindDir {
			if err := root.Chmod(fresh+f.Path[len(output):], fs.FileMode(f.Mode)); err != nil {
				return err
			}
		}
	}
	if err := root.Rename(output, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.Rename(fresh, output); err != nil {
		// Rather the old one than none.
		if back := root.Rename(old, output); back != nil && !errors.Is(back, fs.ErrNotExist) {
			err = errors.Join(err, back)
		}
		return err
	}
	return nil
}

// make makes one entry of an output at a path.
func (t *task) make(ctx context.Context, root *os.Root, at string, f executor.OutputFile) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	switch f.Kind {
	case executor.KindDir:
		return root.Mkdir(at, 0o700)
	case executor.KindSymlink:
		return root.Symlink(f.Target, at)
	}
	b, err := t.cfg.Cache.Open(cache.Digest(f.Digest))
	if err != nil {
		return err
	}
	defer b.Close()
	h, err := root.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
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
