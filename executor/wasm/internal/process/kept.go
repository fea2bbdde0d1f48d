package process

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// kept is the directory of one module's compiled code, which is in it as if it were of the module's stub: so one who finds it there needs nothing of
// the module's functions, that are most of what there is to read, to validate and to keep in memory.
//
// wazero has a checksum of the code in its files there, and none of what says where in it functions begin. So each has checksums beside it, of the
// whole and of the code, against disks that lose what was written, and against what is really compiled of a stub, if ever that got there: the directory is
// nobody's but ours. Errors here leave a file that is compiled anew, sooner or later.
type kept struct{ dir string }

// files are wazero's.
func (k kept) files() []string {
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

// check removes the files that are not what they were, fails where one stays, and returns the marks of the code in the others.
func (k kept) check() (marks []string, err error) {
	for _, name := range k.files() {
		want, err := os.ReadFile(k.sumOf(name))
		if err == nil {
			var got string
			if got, err = checksum(name); err == nil {
				if of, code, _ := strings.Cut(string(want), " "); of == got && code != "" {
					marks = append(marks, code)
					continue
				}
			}
		}
		if err := k.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return marks, nil
}

// remove removes a file, and first what is noted of it.
func (k kept) remove(name string) error {
	_ = os.Remove(k.sumOf(name))
	return os.Remove(name)
}

// making is how the names of directories begin in which code is made, abandoned is how old one is that nobody works in any more.
const (
	making    = "new-"
	abandoned = time.Hour
)

// begin makes a directory to make code in, and removes those that workers left that were killed.
func (k kept) begin() (string, error) {
	all, err := os.ReadDir(k.dir)
	if err != nil {
		return "", err
	}
	for _, d := range all {
		if fi, err := d.Info(); err == nil && strings.HasPrefix(d.Name(), making) && time.Since(fi.ModTime()) > abandoned {
			if err := os.RemoveAll(filepath.Join(k.dir, d.Name())); err != nil {
				return "", err
			}
		}
	}
	return os.MkdirTemp(k.dir, making)
}

// put moves what was compiled of the module, wazero's only file in from, to where it is found for the stub, whose file is as that in as. Mark is the code's.
func (k kept) put(from, as kept, mark string) error {
	files, names := from.files(), as.files()
	if len(files) != 1 || len(names) != 1 {
		return fmt.Errorf("wazero made %d files of the module, and %d of its stub", len(files), len(names))
	}
	name, err := filepath.Rel(as.dir, names[0])
	if err != nil {
		return err
	}
	name = filepath.Join(k.dir, name)
	if _, err := os.Lstat(name); err == nil {
		return nil // another worker was faster
	}
	if err := os.Mkdir(filepath.Dir(name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	sum, err := checksum(files[0])
	if err == nil {
		err = os.WriteFile(k.sumOf(name), []byte(sum+" "+mark), 0o600)
	}
	if err == nil {
		err = os.Rename(files[0], name)
	}
	if err != nil {
		_ = os.Remove(k.sumOf(name))
	}
	return err
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
	return fmt.Sprintf("%d-%08x", n, h.Sum32()), err
}
