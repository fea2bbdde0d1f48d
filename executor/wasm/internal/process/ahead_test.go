package process

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// executorStub opens files named by a path, by nobody asked; it counts the questions.
type executorStub struct {
	t         *testing.T
	dir       string
	questions int
	opened    []*os.File
}

func (e *executorStub) file(name string) *os.File {
	f, err := os.CreateTemp(e.dir, "")
	if err != nil {
		e.t.Fatal(err)
	}
	if _, err := f.WriteString(name); err != nil {
		e.t.Fatal(err)
	}
	e.opened = append(e.opened, f)
	return f
}

// open is what asked.Open does.
func (e *executorStub) open(a *ahead, place int, name string) {
	e.t.Helper()
	f, o, more := a.open(place, name)
	if f == nil {
		e.questions++
		f = e.file(name)
		var files []*os.File
		for _, m := range more {
			files = append(files, e.file(m))
		}
		if o != nil {
			o.add(files)
		}
	}
	b := make([]byte, 100)
	n, _ := f.ReadAt(b, 0)
	if string(b[:n]) != name {
		e.t.Errorf("%s is %s", name, b[:n])
	}
	_ = f.Close()
}

// unclosed is how many of the files are open.
func (e *executorStub) unclosed() (n int) {
	for _, f := range e.opened {
		if _, err := f.Stat(); err == nil {
			n++
		}
	}
	return n
}

// TestAhead: who opens files in order asks for few of them, who does not for each, and nothing is left open.
func TestAhead(t *testing.T) {
	var all []tree.Info
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("f%04d", i))
		all = append(all, tree.Info{Name: names[i]})
	}
	slices.Reverse(all)
	all = append(all, tree.Info{Name: "directory", Mode: fs.ModeDir}, tree.Info{Name: "link", Mode: fs.ModeSymlink}, tree.Info{Name: "bare", Bare: true})
	in := func(dir string, names []string) (in []string) {
		for _, n := range names {
			in = append(in, strings.TrimPrefix(dir+"/"+n, "./"))
		}
		return in
	}
	backwards := slices.Clone(names)
	slices.Reverse(backwards)
	var third, both []string
	for i, n := range names {
		if i%3 == 0 {
			third = append(third, n)
		}
		both = append(both, "a/"+n, "b/"+n)
	}
	for name, c := range map[string]struct {
		dirs  []string
		open  []string
		least int // questions
		most  int
	}{
		"in order":                     {[]string{"."}, names, 16, 25},
		"in order below":               {[]string{"a/b"}, in("a/b", names), 16, 25},
		"from the middle":              {[]string{"."}, names[500:], 9, 20},
		"with a gap":                   {[]string{"."}, slices.Delete(slices.Clone(names), 500, 510), 16, 30},
		"two directories at once":      {[]string{"a", "b"}, both, 32, 50},
		"backwards":                    {[]string{"."}, backwards, 1000, 1000},
		"each third":                   {[]string{"."}, third, len(third), len(third)},
		"again and again":              {[]string{"."}, slices.Repeat(names[:1], 10), 10, 10},
		"not listed":                   {[]string{"a"}, names, 1000, 1000},
		"what was no file when listed": {[]string{"."}, []string{"bare", "directory", "link"}, 3, 3},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			a, e := &ahead{}, &executorStub{t: t, dir: t.TempDir()}
			for _, d := range c.dirs {
				a.listed(directory{1, d}, all)
			}
			for _, n := range c.open {
				e.open(a, 1, n)
				if a.files > maxAhead {
					t.Fatalf("%d files are open ahead", a.files)
				}
			}
			if n := e.unclosed(); n != a.files {
				t.Errorf("%d files are open ahead, counted as %d", n, a.files)
			}
			if e.questions < c.least || e.questions > c.most {
				t.Errorf("%d questions; want %d to %d", e.questions, c.least, c.most)
			}
			a.forget()
			if n := e.unclosed(); n != 0 || a.files != 0 || a.names != 0 {
				t.Errorf("%d files are open, %+v", n, a)
			}
		})
	}
	t.Run("bounds", func(t *testing.T) {
		a, e := &ahead{}, &executorStub{t: t, dir: t.TempDir()}
		for d := range 20 { // left in the midst of them
			dir := fmt.Sprint(d)
			a.listed(directory{0, dir}, all)
			for _, n := range in(dir, names[:140]) {
				e.open(a, 0, n)
			}
			if a.files > maxAhead || e.unclosed() != a.files {
				t.Fatalf("%d files are open ahead, counted as %d", e.unclosed(), a.files)
			}
		}
		a.listed(directory{0, "0"}, all) // anew
		for d := range 200 {
			if a.listed(directory{1, fmt.Sprint(d)}, all); a.names > maxOrdered {
				t.Fatalf("%d names are known", a.names)
			}
		}
		if e.unclosed() != a.files || a.files > maxAhead {
			t.Errorf("%d files are open ahead, counted as %d", e.unclosed(), a.files)
		}
		a.forget()
		a.listed(directory{0, "large"}, slices.Repeat(all, maxOrdered/1000+1))
		if a.names != 0 || len(a.dirs) != 0 {
			t.Errorf("%d names of a large directory are known", a.names)
		}
		if wire.MaxAhead >= maxAhead {
			t.Error("one directory may have all")
		}
	})
}
