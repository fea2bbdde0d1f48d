package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
)

// maxBlob bounds what a component fetches or stores at once: its memory, and a frame, have to hold it.
const maxBlob = 32 << 20

// blobs are what of the cache is visible to a component's task: what it stored, and the files that it is given.
type blobs struct {
	*task
	ctx    context.Context
	stored map[string]cache.Digest // by hash
	bytes  int64
	given  map[string]given // by hash; nil before anybody asked
}

// given is a file of the task's.
type given struct {
	machine int // see files
	path    string
	cache.Digest
}

// refusal is an error that a component is told of.
type refusal struct{ text string }

// Error implements error.
func (r *refusal) Error() string { return r.text }

func refusef(format string, args ...any) error { return &refusal{fmt.Sprintf(format, args...)} }

// store keeps content, and returns its hash.
func (b *blobs) store(content []byte) ([]byte, error) {
	if len(content) > maxBlob {
		return nil, refusef("a file of %d bytes; at most %d may be stored at once", len(content), maxBlob)
	}
	if b.bytes += int64(len(content)); b.bytes > b.granted.OutputBytes || len(b.stored) >= b.cfg.files {
		return nil, refusef("what is stored is more than %d bytes or %d files", b.granted.OutputBytes, b.cfg.files)
	}
	d, err := b.cfg.Cache.Put(b.ctx, bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	if b.stored == nil {
		b.stored = map[string]cache.Digest{}
	}
	b.stored[d.Hash] = d
	return []byte(d.Hash), nil
}

// fetch returns the content of what is visible.
func (b *blobs) fetch(hash string) ([]byte, error) {
	if d, ok := b.stored[hash]; ok {
		return b.cfg.Cache.Bytes(d, maxBlob)
	}
	g, err := b.find(hash)
	if err != nil {
		return nil, err
	}
	if g.Size > maxBlob {
		return nil, refusef("%s has %d bytes; at most %d are fetched at once", g.path, g.Size, maxBlob)
	}
	h, err := b.open(g)
	if err != nil {
		return nil, changed(g, err)
	}
	defer h.Close()
	content, err := io.ReadAll(io.LimitReader(h, g.Size+1))
	if err != nil || cache.DigestOf(content) != g.Digest {
		return nil, changed(g, err)
	}
	return content, nil
}

// name is the digest of what is visible, which is in the cache then.
func (b *blobs) name(hash string) (executor.Digest, error) {
	if d, ok := b.stored[hash]; ok {
		return executor.Digest(d), nil
	}
	g, err := b.find(hash)
	if err != nil {
		return executor.Digest{}, err
	}
	h, err := b.open(g)
	if err != nil {
		return executor.Digest{}, changed(g, err)
	}
	defer h.Close()
	d, err := b.cfg.Cache.Put(b.ctx, io.LimitReader(h, g.Size+1))
	if err == nil && d != g.Digest {
		err = changed(g, nil)
	}
	return executor.Digest(d), err
}

// changed blames whoever owns a file.
func changed(g given, err error) error {
	return errors.Join(executor.FieldErrorf("workdir", "%s changed while the task ran; let nothing else change it", g.path), err)
}

// find finds a file of the task's by its hash.
func (b *blobs) find(hash string) (given, error) {
	if b.given == nil {
		b.given = map[string]given{}
		if err := b.look(); err != nil {
			return given{}, err
		}
	}
	g, ok := b.given[hash]
	if !ok {
		return g, refusef("%.100q is neither one of the task's inputs nor stored by it", hash)
	}
	return g, nil
}

// look hashes all files that the task is given.
func (b *blobs) look() error {
	for n := range 1 + len(b.paths.Inputs) {
		if n == 0 && b.paths.Work == nil {
			continue
		}
		err := b.files.machine(b.ctx, n, func(m tree.Machine) error {
			var hide []string
			if n == 0 {
				hide = b.spec.Outputs
			}
			i, err := m.Lstat(".")
			if err != nil {
				return err
			}
			return b.walk(given{machine: n, path: "."}, m, i, hide)
		})
		if err != nil {
			return blame(n, err)
		}
	}
	return nil
}

// walk hashes a file, or all that a directory holds.
func (b *blobs) walk(g given, m tree.Machine, i tree.Info, hide []string) error {
	switch {
	case b.ctx.Err() != nil:
		return b.ctx.Err()
	case slices.Contains(hide, g.path):
	case i.Mode.IsRegular():
		return b.hash(g, m)
	case i.Mode.IsDir():
		entries, err := m.List(g.path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			at := given{machine: g.machine, path: path.Join(g.path, e.Name)}
			if e.Bare {
				if e, err = m.Lstat(at.path); err != nil {
					return err
				}
			}
			if err := b.walk(at, m, e, hide); err != nil {
				return err
			}
		}
	}
	return nil
}

// hash notes one file.
func (b *blobs) hash(g given, m tree.Machine) error {
	h, err := m.Open(g.path)
	if err != nil {
		return err
	}
	defer h.Close()
	n, _, err := b.cfg.Cache.HashFile(b.ctx, h, cache.TreeOptions{Reader: b.caller.UID})
	if err != nil {
		return err
	}
	g.Digest = n.Digest
	b.given[n.Digest.Hash] = g
	return nil
}

// open opens the file, if it is one yet.
func (b *blobs) open(g given) (*os.File, error) {
	var h *os.File
	err := b.files.machine(b.ctx, g.machine, func(m tree.Machine) (err error) {
		h, err = m.Open(g.path)
		return err
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}
