package wasm

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sandboxd/sandboxd/cache"
)

// unused is for how long compiled code is kept that nobody asks for.
const unused = 30 * 24 * time.Hour

// openCode makes the directory for a module's compiled code in dir, sees that nobody else can have put anything there, and
// removes what was not used for long.
func openCode(dir string, module cache.Digest) (string, error) {
	if err := makePrivate(dir); err != nil {
		return "", err
	}
	own := filepath.Join(dir, module.Hash)
	if err := makePrivate(own); err != nil {
		return "", err
	}
	// By now nobody else can put anything there. What was there before is looked at.
	err := filepath.WalkDir(own, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another executor's worker has replaced it
		}
		if err == nil && !fi.IsDir() && !fi.Mode().IsRegular() {
			err = fmt.Errorf("%s is no file; remove %s", p, own)
		}
		if err == nil {
			err = private(p, fi)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	now := time.Now()
	if err := os.Chtimes(own, now, now); unwritable(err) {
		return own, nil // what is needed may be there already
	} else if err != nil {
		return "", err
	}
	all, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, d := range all {
		if b, err := hex.DecodeString(d.Name()); err != nil || len(b) != sha256.Size {
			continue // it is not ours
		}
		if fi, err := d.Info(); err == nil && now.Sub(fi.ModTime()) > unused {
			if err := os.RemoveAll(filepath.Join(dir, d.Name())); err != nil && !unwritable(err) {
				return "", err
			}
		}
	}
	return own, nil
}

// makePrivate makes a directory, or sees that one that is there is ours alone.
func makePrivate(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is no directory; choose another", dir)
	}
	return private(dir, fi)
}
