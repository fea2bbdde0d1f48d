package wasm

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/cache"
)

// unused is for how long compiled code is kept that nobody asks for.
const unused = 30 * 24 * time.Hour

// openCode makes the directory for a module's compiled code in dir, sees that nobody else can have put anything there, and
// removes what was not used for long.
func openCode(dir string, module cache.Digest) (string, error) {
	own := filepath.Join(dir, module.Hash)
	if err := lookAbove(dir); err != nil {
		return "", err
	}
	for _, d := range []string{dir, own} {
		if err := os.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		if err := lookAt(d); err != nil {
			return "", err
		}
	}
	if err := lookWithin(own); err != nil {
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

// lookAtCode sees that nobody else can have put anything into a module's directory for compiled code, or could put another in its place. That is
// for each time before it is used: what was so at the start need not be so any more.
func lookAtCode(own string) error {
	if err := lookAbove(filepath.Dir(own)); err != nil {
		return err
	}
	for _, d := range []string{filepath.Dir(own), own} {
		if err := lookAt(d); err != nil {
			return err
		}
	}
	return lookWithin(own)
}

// lookWithin looks at what is in a directory where nobody else can put anything any more: some may be from before.
func lookWithin(own string) error {
	return filepath.WalkDir(own, func(p string, d fs.DirEntry, err error) error {
		var fi fs.FileInfo
		if err == nil {
			fi, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) && p != own {
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
}

// lookAbove looks at what is above dir from the top, so that each is where nobody can change it by when it is looked at.
func lookAbove(dir string) error {
	for _, d := range above(dir) {
		fi, err := os.Lstat(d)
		if err != nil {
			return err
		}
		if err := unmovable(d, fi); err != nil {
			return &aboveError{err}
		}
	}
	return nil
}

// lookAt looks at one directory for compiled code.
func lookAt(dir string) error {
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is no directory; choose another", dir)
	}
	return private(dir, fi)
}

// aboveError says that somebody else can put another directory in the place of the one for compiled code.
type aboveError struct{ error }

// above are the directories above dir, from the root on.
func above(dir string) (all []string) {
	for up := filepath.Dir(dir); up != dir; dir, up = up, filepath.Dir(up) {
		all = append(all, up)
	}
	slices.Reverse(all)
	return all
}
