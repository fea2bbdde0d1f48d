package process

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// kept is the directory of a module's compiled code. wazero has a checksum of the code in its files there, and none of what says where in it
// functions begin. So each has one beside it of the whole, against disks that lose what was written: the directory
// is nobody's but ours. Errors here leave a file that is compiled anew, sooner or later.
type kept struct{ dir string }

// half is the end of the name of a file of wazero's that is not whole yet: it is given another name then.
const half = ".tmp"

// abandoned is for how long nobody wrote to one whose worker is taken for dead. Else it does without, and compiles anew.
const abandoned = time.Minute

// files are wazero's that are whole.
func (k kept) files() []string {
	return slices.DeleteFunc(k.all(), func(name string) bool { return strings.HasSuffix(name, half) })
}

func (k kept) all() []string {
	if k.dir == "" {
		return nil
	}
	all, _ := fs.Glob(os.DirFS(k.dir), "wazero-*/*") // the pattern is right, and the directory's name none
	for i, name := range all {
		all[i] = filepath.Join(k.dir, filepath.FromSlash(name))
	}
	return all
}

// sumOf is where a file's checksum is.
func (k kept) sumOf(name string) string { return filepath.Join(k.dir, filepath.Base(name)+".sum") }

// check removes the files that are not what they were, and fails where one stays. What another worker writes is left to it.
func (k kept) check() error {
	for _, name := range k.all() {
		if strings.HasSuffix(name, half) {
			if fi, err := os.Stat(name); err == nil && time.Since(fi.ModTime()) > abandoned {
				_ = os.Remove(name) // it is in nobody's way
			}
			continue
		}
		want, err := os.ReadFile(k.sumOf(name))
		if err == nil {
			var got string
			if got, err = checksum(name); err == nil && got == string(want) {
				continue
			}
		}
		if err := k.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// remove removes a file, and first what is noted of it.
func (k kept) remove(name string) error {
	_ = os.Remove(k.sumOf(name))
	return os.Remove(name)
}

// sum notes what files are that have no checksum yet: without one, a file is of no use.
func (k kept) sum() error {
	for _, name := range k.files() {
		to := k.sumOf(name)
		if _, err := os.Stat(to); err == nil || !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		s, err := checksum(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another worker has removed it
		}
		if err == nil {
			err = os.WriteFile(to, []byte(s), 0o600)
		}
		if err != nil {
			_ = os.Remove(to)
			return err
		}
	}
	return nil
}

// forget removes all files.
func (k kept) forget() {
	for _, name := range k.files() {
		_ = k.remove(name)
	}
}

// castagnoli is the polynomial that processors know.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is a file's, with its length.
func checksum(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := crc32.New(castagnoli)
	n, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return fmt.Sprintf("%d %08x\n", n, h.Sum32()), err
}
