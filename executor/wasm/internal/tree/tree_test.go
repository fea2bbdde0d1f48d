package tree

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero/experimental/sys"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(dir)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

// newTree makes a tree over the directory work, with bounds that a test may change.
func newTree(t testing.TB, work string, change func(*Config)) *FS {
	t.Helper()
	cfg := Config{Scratch: Numbered{openRoot(t, t.TempDir())}, WorkBytes: 1 << 20, TmpBytes: 1 << 20, MaxFiles: 1000, MaxOpen: 100}
	if work != "" {
		cfg.Work = Dir{Root: openRoot(t, work)}
	}
	clock := int64(0)
	cfg.Now = func() int64 { clock++; return clock }
	if change != nil {
		change(&cfg)
	}
	f, err := New(cfg)
	must(t, err)
	return f
}

// fill writes files, by path; a value of "/" makes a directory, "> TARGET" a link.
func fill(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for p, v := range files {
		p = filepath.Join(dir, p)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		if v == "/" {
			must(t, os.MkdirAll(p, 0o755))
		} else if target, ok := strings.CutPrefix(v, "> "); ok {
			must(t, os.Symlink(target, p))
		} else {
			must(t, os.WriteFile(p, []byte(v), 0o644))
		}
	}
}

// state is all that a directory of the machine holds.
func state(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprint(&b, p, " ", d.Type())
		if d.Type().IsRegular() {
			c, err := os.ReadFile(p)
			fmt.Fprintf(&b, " %q %v", c, err)
		}
		b.WriteString("\n")
		return nil
	}))
	return b.String()
}

func read(t testing.TB, f *FS, p string) (string, sys.Errno) {
	t.Helper()
	h, e := f.OpenFile(p, sys.O_RDONLY, 0)
	if e != 0 {
		return "", e
	}
	defer h.Close()
	var all []byte
	b := make([]byte, 7)
	for {
		n, e := h.Read(b)
		if all = append(all, b[:n]...); n == 0 || e != 0 {
			return string(all), e
		}
	}
}

func write(f *FS, p, content string, flag sys.Oflag) sys.Errno {
	h, e := f.OpenFile(p, flag|sys.O_WRONLY|sys.O_CREAT, 0)
	if e != 0 {
		return e
	}
	defer h.Close()
	_, e = h.Write([]byte(content))
	return e
}

func list(t testing.TB, f *FS, p string) string {
	t.Helper()
	h, e := f.OpenFile(p, sys.O_DIRECTORY, 0)
	if e != 0 {
		return e.Error()
	}
	defer h.Close()
	es, e := h.Readdir(-1)
	if e != 0 {
		return e.Error()
	}
	var names []string
	for _, x := range es {
		names = append(names, x.Name)
	}
	return strings.Join(names, " ")
}

// TestNothingEscapes: no link, of the machine's or the task's, leads out of the task's tree, and
// nothing that it does changes the machine's.
func TestNothingEscapes(t *testing.T) {
	machine := t.TempDir()
	fill(t, machine, map[string]string{
		"secret/s": "secret", "secret/victim": "v", "work/in": "in", "work/dir/f": "f",
		"work/up": "> ../secret", "work/abs": "> " + filepath.Join(machine, "secret"), "work/etc": "> /etc", "work/file": "> ../secret/s",
		"work/loop": "> loop", "work/inner": "> dir/f", "work/far": "> /build/dir", "work/out": "> ../../../../../../../../etc",
	})
	before := state(t, machine)
	f := newTree(t, filepath.Join(machine, "work"), nil)
	for _, made := range [][2]string{{"../secret", "build/g1"}, {filepath.Join(machine, "secret"), "build/g2"}, {"../../../../../../../..", "build/g3"}, {"..", "build/dir/g4"}} {
		if e := f.Symlink(made[0], made[1]); e != 0 {
			t.Errorf("symlink %v: %v", made, e)
		}
	}
	for _, p := range []string{
		"build/up/s", "build/abs/s", "build/etc/passwd", "build/file", "build/out/passwd", "build/g1/s", "build/g2/s",
		"build/g3" + machine + "/secret/s", "build/dir/g4/../secret/s", "build/../secret/s", "../secret/s", "secret/s", "etc/passwd",
	} {
		if s, e := read(t, f, p); e == 0 {
			t.Errorf("read %s: %q", p, s)
		}
		if e := write(f, p, "pwned", 0); e == 0 && !strings.Contains(p, "file") && p != "build/../secret/s" {
			t.Errorf("wrote %s", p)
		}
		if _, e := f.Stat(p); e == 0 {
			t.Errorf("stat %s", p)
		}
		for what, do := range map[string]func() sys.Errno{
			"rename": func() sys.Errno { return f.Rename("build/in", p+"/stolen") },
			"mkdir":  func() sys.Errno { return f.Mkdir(p+"/new", 0) },
			"link":   func() sys.Errno { return f.Link(p+"/x", "build/hard") },
			"unlink": func() sys.Errno { return f.Unlink(p + "/x") },
		} {
			if e := do(); e == 0 {
				t.Errorf("%s by %s", what, p)
			}
		}
	}
	if _, e := read(t, f, "build/loop"); e != sys.ELOOP {
		t.Errorf("a link to itself: %v", e)
	}
	// Those that stay are followed.
	for p, want := range map[string]string{"build/inner": "f", "build/far/f": "f", "build/dir/g4/in": "in", "/build/g3/build/in": "in"} {
		if s, e := read(t, f, p); s != want {
			t.Errorf("%s: %q, %v", p, s, e)
		}
	}
	if after := state(t, machine); after != before {
		t.Errorf("the machine had\n%s\nand has\n%s", before, after)
	}
}

// TestOverlay: the task's own lies above the machine's.
func TestOverlay(t *testing.T) {
	work := t.TempDir()
	fill(t, work, map[string]string{"a": "lower", "d/x": "x", "d/y": "y", "e/z": "z", "empty": "/", "big": strings.Repeat("b", 100_000)})
	before := state(t, work)
	f := newTree(t, work, nil)
	ok := func(e sys.Errno) {
		t.Helper()
		if e != 0 {
			t.Error(e)
		}
	}
	is := func(p, want string) {
		t.Helper()
		if s, e := read(t, f, p); e != 0 || s != want {
			t.Errorf("%s: %.20q, %v; want %.20q", p, s, e, want)
		}
	}
	lists := func(p, want string) {
		t.Helper()
		if s := list(t, f, p); s != want {
			t.Errorf("%s has %q; want %q", p, s, want)
		}
	}
	ok(write(f, "build/a", "up", 0))
	is("build/a", "upwer")
	ok(write(f, "build/a", "!", sys.O_APPEND))
	is("build/a", "upwer!")
	ok(write(f, "build/big", "B", 0))
	is("build/big", "B"+strings.Repeat("b", 99_999))
	ok(write(f, "build/big", "", sys.O_TRUNC))
	is("build/big", "")

	ok(f.Rename("build/d", "build/e/moved"))
	is("build/e/moved/x", "x")
	ok(write(f, "build/e/moved/x", "X", 0))
	is("build/e/moved/x", "X")
	lists("build", "a big e empty")
	lists("build/e", "moved z")
	ok(f.Mkdir("build/d", 0))
	lists("build/d", "")
	if e := f.Rmdir("build/e"); e != sys.ENOTEMPTY {
		t.Errorf("rmdir: %v", e)
	}
	if e := f.Rename("build/e", "build/e/moved/below"); e != sys.EINVAL {
		t.Errorf("rename below itself: %v", e)
	}
	if e := f.Rename("build/a", "build/e"); e != sys.EISDIR {
		t.Errorf("file over directory: %v", e)
	}
	if e := f.Rename("build/empty", "build/a"); e != sys.ENOTDIR {
		t.Errorf("directory over file: %v", e)
	}
	ok(f.Rename("build/empty", "build/d"))
	lists("build", "a big d e")

	ok(f.Link("build/a", "build/hard"))
	ok(write(f, "build/hard", "U", 0))
	is("build/a", "Upwer!")
	ok(f.Unlink("build/a"))
	is("build/hard", "Upwer!")
	if st, e := f.Stat("build/hard"); e != 0 || st.Nlink != 1 || st.Size != 6 {
		t.Errorf("%+v, %v", st, e)
	}
	ok(f.Rename("build/hard", "tmp/away"))
	is("tmp/away", "Upwer!")
	if e := f.Unlink("build/e"); e != sys.EISDIR {
		t.Errorf("unlink a directory: %v", e)
	}
	if e := f.Rmdir("build"); e == 0 {
		t.Error("removed /build")
	}
	if e := f.Rename("tmp", "build/t"); e == 0 {
		t.Error("moved /tmp")
	}
	var undeclared []string
	f.Undeclared(nil, func(p string) { undeclared = append(undeclared, p) })
	if want := []string{"a (deleted)", "big", "d/", "e/moved/", "e/moved/x", "empty (deleted)"}; !slices.Equal(undeclared, want) {
		t.Errorf("undeclared %q, want %q", undeclared, want)
	}
	if after := state(t, work); after != before {
		t.Errorf("the machine had\n%s\nand has\n%s", before, after)
	}
}

// TestReadonly: inputs, and what holds the parts together, are not written.
func TestReadonly(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, map[string]string{"in/f": "f", "in/d/g": "g", "work/w": "w"})
	f := newTree(t, filepath.Join(dir, "work"), func(c *Config) {
		c.WorkReadonly = true
		c.Inputs = []Input{{"/src/in", Dir{Root: openRoot(t, filepath.Join(dir, "in")), Name: "."}}, {"/src/one", Dir{Root: openRoot(t, filepath.Join(dir, "in")), Name: "f"}},
			{"/src/in/d/deep", Dir{Root: openRoot(t, filepath.Join(dir, "in")), Name: "d"}}, {"/tmp/there", Dir{Root: openRoot(t, filepath.Join(dir, "in")), Name: "."}}}
	})
	for _, p := range []string{"src/in/f", "src/one", "tmp/there/f"} {
		if s, e := read(t, f, p); s != "f" {
			t.Errorf("%s: %q, %v", p, s, e)
		}
		if e := write(f, p, "x", 0); e != sys.EROFS {
			t.Errorf("write %s: %v", p, e)
		}
		if e := f.Chmod(p, 0o777); e != sys.EROFS {
			t.Errorf("chmod %s: %v", p, e)
		}
		if e := f.Utimens(p, 0, 0); e != sys.EROFS {
			t.Errorf("touch %s: %v", p, e)
		}
		if e := f.TouchLink(p, 0); e != sys.EROFS {
			t.Errorf("touch %s itself: %v", p, e)
		}
	}
	if s, e := read(t, f, "src/in/d/deep/g"); s != "g" {
		t.Errorf("an input in another: %q, %v", s, e)
	}
	for _, p := range []string{"src/in/new", "src/new", "new", "build/new", "dev/new"} {
		if e := write(f, p, "x", 0); e != sys.EROFS {
			t.Errorf("make %s: %v", p, e)
		}
		if e := f.Mkdir(p, 0); e != sys.EROFS {
			t.Errorf("mkdir %s: %v", p, e)
		}
	}
	for _, p := range []string{"src/in/f", "build/w", "dev/null"} {
		if e := f.Unlink(p); e != sys.EROFS {
			t.Errorf("unlink %s: %v", p, e)
		}
	}
	if s := list(t, f, "/"); s != "build dev home src tmp" {
		t.Errorf("the root has %s", s)
	}
	_, err := New(Config{Now: func() int64 { return 0 }, Inputs: []Input{{"/a", Dir{Root: openRoot(t, filepath.Join(dir, "in")), Name: "f"}}, {"/a/b", Dir{Root: openRoot(t, filepath.Join(dir, "in")), Name: "f"}}}})
	if _, ok := err.(*TargetError); !ok {
		t.Errorf("an input below a file: %v", err)
	}
}

// TestQuotas: no way of writing goes beyond them, and what is removed is given back.
func TestQuotas(t *testing.T) {
	work := t.TempDir()
	fill(t, work, map[string]string{"lower": strings.Repeat("x", 600)})
	f := newTree(t, work, func(c *Config) { c.WorkBytes, c.TmpBytes, c.MaxFiles, c.MaxOpen = 1000, 500, 5, 4 })
	if e := write(f, "build/a", strings.Repeat("a", 1001), 0); e != sys.EIO {
		t.Errorf("beyond the quota: %v", e)
	}
	if e := write(f, "build/a", strings.Repeat("a", 1000), 0); e != 0 {
		t.Error(e)
	}
	if e := write(f, "build/lower", "y", 0); e != sys.EIO {
		t.Errorf("copied up beyond the quota: %v", e)
	}
	if e := f.Rename("build/a", "tmp/a"); e != sys.EIO {
		t.Errorf("moved beyond the quota: %v", e)
	}
	h, e := f.OpenFile("build/a", sys.O_RDWR, 0)
	if e != 0 {
		t.Fatal(e)
	}
	if e := h.Truncate(1 << 40); e != sys.EIO {
		t.Errorf("truncated beyond the quota: %v", e)
	}
	if _, e := h.Pwrite([]byte("x"), 1<<40); e != sys.EIO {
		t.Errorf("a hole beyond the quota: %v", e)
	}
	if _, e := h.Pwrite([]byte("x"), 1<<63-1); e != sys.EINVAL {
		t.Errorf("written where nothing is: %v", e)
	}
	// What is open has its content, whoever removed its name.
	if e := f.Unlink("build/a"); e != 0 {
		t.Error(e)
	}
	if e := write(f, "build/b", "b", 0); e != sys.EIO {
		t.Errorf("beside what is open yet: %v", e)
	}
	h.Close()
	if e := write(f, "build/b", strings.Repeat("b", 1000), 0); e != 0 {
		t.Errorf("what was removed is not given back: %v", e)
	}
	if e := write(f, "build/b", "", sys.O_TRUNC); e != 0 {
		t.Error(e)
	}
	if f.work.used != 0 {
		t.Errorf("%d bytes are in use of an empty file", f.work.used)
	}
	for i := range 4 {
		if e := f.Mkdir(fmt.Sprintf("build/d%d", i), 0); e != 0 {
			t.Errorf("directory %d: %v", i, e)
		}
	}
	for what, e := range map[string]sys.Errno{
		"mkdir": f.Mkdir("build/more", 0), "file": write(f, "tmp/more", "", 0), "symlink": f.Symlink("x", "build/more"), "link": f.Link("build/b", "build/more"),
	} {
		if e != sys.EIO {
			t.Errorf("%s beyond the number of files: %v", what, e)
		}
	}
	if e := f.Rmdir("build/d0"); e != 0 {
		t.Error(e)
	}
	if e := f.Link("build/b", "build/more"); e != 0 {
		t.Errorf("what was removed still counts: %v", e)
	}
	var open []sys.File
	for range 4 {
		h, e := f.OpenFile("build/b", 0, 0)
		if e != 0 {
			t.Fatal(e)
		}
		open = append(open, h)
	}
	if _, e := f.OpenFile("build/b", 0, 0); e != sys.EBADF {
		t.Errorf("beyond the number of open files: %v", e)
	}
	for _, h := range open {
		h.Close()
		h.Close() // does nothing
	}
	if h, e := f.OpenFile("build/b", 0, 0); e != 0 || f.open != 1 {
		t.Errorf("%d are open, %v", f.open, e)
	} else {
		h.Close()
	}
	if !strings.Contains(f.Refused(), "work directory") {
		t.Errorf("refused: %q", f.Refused())
	}
}

// TestHide: a task does not see what its last run left, nor directories that held nothing else.
func TestHide(t *testing.T) {
	work := t.TempDir()
	fill(t, work, map[string]string{"out/a/f": "f", "out/b": "b", "only/deep/o": "o", "kept/o": "o", "kept/k": "k", "link": "> out"})
	f := newTree(t, work, func(c *Config) {
		c.Hide = []string{"out/a", "out/b", "only/deep/o", "kept/o", "none/x", "kept/k/below", "link/c"}
	})
	if s := list(t, f, "build"); s != "kept link" {
		t.Errorf("the work directory has %q", s)
	}
	if s := list(t, f, "build/kept"); s != "k" {
		t.Errorf("kept has %q", s)
	}
	if e := f.Mkdir("build/out", 0); e != 0 {
		t.Error(e)
	}
	if s := list(t, f, "build/out"); s != "" {
		t.Errorf("out has %q", s)
	}
}

// TestOutputs: what is declared comes out whole, whoever had it first.
func TestOutputs(t *testing.T) {
	work := t.TempDir()
	fill(t, work, map[string]string{"src/a": "a", "src/d/b": strings.Repeat("b", 100_000)})
	f := newTree(t, work, nil)
	if e := f.Rename("build/src", "build/out"); e != 0 {
		t.Fatal(e)
	}
	if e := write(f, "build/out/c", "c", 0); e != 0 {
		t.Fatal(e)
	}
	f.Symlink("a", "build/out/l")
	f.Chmod("build/out/c", 0o755)
	var got []string
	missing, err := f.Outputs([]string{"out", "gone", "out2/x"}, func(e Entry) error {
		s := fmt.Sprint(e.Path, " ", e.Mode, e.Target)
		if e.Mode.IsRegular() {
			b := e.Content
			if e.Number != 0 {
				h, err := f.cfg.Scratch.Open(e.Number)
				must(t, err)
				defer h.Close()
				b, err = io.ReadAll(h)
				must(t, err)
			}
			if int64(len(b)) != e.Size {
				t.Errorf("%s has %d bytes of %d", e.Path, len(b), e.Size)
			}
			s += fmt.Sprintf(" %.3s", b)
		}
		got = append(got, s)
		return nil
	})
	must(t, err)
	want := []string{"out drwxr-xr-x", "out/a -rw-r--r-- a", "out/c -rwxr-xr-x c", "out/d drwxr-xr-x", "out/d/b -rw-r--r-- bbb", "out/l Lrwxrwxrwxa"}
	if !slices.Equal(got, want) || !slices.Equal(missing, []string{"gone", "out2/x"}) {
		t.Errorf("%q, missing %q", got, missing)
	}
}

// TestMoved: what is moved counts where it is, and nowhere else; what has other names, or would get them elsewhere, stays.
func TestMoved(t *testing.T) {
	f := newTree(t, "", func(c *Config) { c.WorkBytes, c.TmpBytes = 1000, 1000 })
	used := func(work, tmp int64) {
		t.Helper()
		if f.work.used != work || f.scratch.used != tmp {
			t.Errorf("%d and %d bytes are in use; want %d and %d", f.work.used, f.scratch.used, work, tmp)
		}
	}
	for _, e := range []sys.Errno{
		f.Mkdir("build/d", 0), write(f, "build/d/a", strings.Repeat("a", 300), 0), write(f, "build/d/b", strings.Repeat("b", 400), 0), f.Rename("build/d", "tmp/d"),
	} {
		if e != 0 {
			t.Error(e)
		}
	}
	used(0, 700)
	if e := f.Link("tmp/d/a", "build/a"); e != sys.ENOSYS {
		t.Errorf("a name elsewhere: %v", e)
	}
	if e := f.Link("tmp/d/a", "tmp/a"); e != 0 {
		t.Error(e)
	}
	if e := f.Rename("tmp/d", "build/d"); e != sys.ENOSYS {
		t.Errorf("moved what has another name: %v", e)
	}
	used(0, 700)
	if e := f.Unlink("tmp/a"); e != 0 {
		t.Error(e)
	}
	if e := f.Rename("tmp/d", "build/d"); e != 0 {
		t.Error(e)
	}
	used(700, 0)
}

// TestTargets: what links lead to is bounded, together, and is given back.
func TestTargets(t *testing.T) {
	f := newTree(t, "", func(c *Config) { c.MaxFiles = 100_000 })
	target := strings.Repeat("t", maxPath-1)
	n := 0
	for ; ; n++ {
		if e := f.Symlink(target, fmt.Sprintf("build/l%d", n)); e == sys.EIO {
			break
		} else if e != 0 || n*len(target) > maxTargets {
			t.Fatalf("after %d links: %v", n, e)
		}
	}
	if n < maxTargets/len(target)-1 {
		t.Errorf("only %d links were possible", n)
	}
	if e := f.Unlink("build/l0"); e != 0 {
		t.Error(e)
	}
	if e := f.Symlink(target, "build/more"); e != 0 {
		t.Errorf("what was removed is not given back: %v", e)
	}
}

// TestModes: the owner's bits hold, and a listing is the same each time.
func TestModes(t *testing.T) {
	f := newTree(t, "", nil)
	must2 := func(e sys.Errno) {
		t.Helper()
		if e != 0 {
			t.Error(e)
		}
	}
	must2(write(f, "build/f", "f", 0))
	must2(f.Chmod("build/f", 0o444))
	if e := write(f, "build/f", "x", 0); e != sys.EACCES {
		t.Errorf("write what is read-only: %v", e)
	}
	must2(f.Chmod("build/f", 0o200))
	if _, e := read(t, f, "build/f"); e != sys.EACCES {
		t.Errorf("read what is not to be read: %v", e)
	}
	must2(f.Mkdir("build/d", 0))
	must2(write(f, "build/d/x", "", 0))
	must2(f.Chmod("build/d", 0o555))
	if e := f.Unlink("build/d/x"); e != sys.EACCES {
		t.Errorf("unlink in a read-only directory: %v", e)
	}
	must2(f.Chmod("build/d", 0o600))
	if _, e := f.Stat("build/d/x"); e != sys.EACCES {
		t.Errorf("stat in a directory that is not to be searched: %v", e)
	}
	if h, e := f.OpenFile("dev/null", sys.O_RDWR, 0); e != 0 {
		t.Error(e)
	} else if n, e := h.Write([]byte("xyz")); n != 3 || e != 0 {
		t.Errorf("/dev/null took %d, %v", n, e)
	}
	for p, want := range map[string]sys.Errno{
		"build/" + strings.Repeat("n", 256): sys.ENAMETOOLONG, "build/" + strings.Repeat("n/", 3000): sys.ENAMETOOLONG,
		"build/a\x00b": sys.EINVAL, "build/f/x": sys.ENOTDIR, "build/f/": sys.ENOTDIR, "build/none/x": sys.ENOENT,
	} {
		if _, e := f.Stat(p); e != want {
			t.Errorf("stat %.20q: %v, want %v", p, e, want)
		}
	}
}

// FuzzTree does what its input says, and sees that the books are right: no bytes, files or handles are in use
// of which nothing is left, nothing is in the scratch directory that no file has, and the machine's files are what they were.
func FuzzTree(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"))
	f.Add([]byte("a0b1c2d3e4f5g6h7i8j9k0l1m2n3o4p5q6r7s8t9u0v1"))
	names := []string{
		"build/a", "build/d", "build/d/x", "build/d/y", "build/l", "build/e", "build/e/z", "tmp/t", "tmp/d", "tmp/d/u",
		"build/l/x", "build/d/../a", "build", "tmp", "build/new/", "src/f",
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		work := t.TempDir()
		fill(t, work, map[string]string{"a": "lower", "d/x": "x", "d/y": "y", "e/z": strings.Repeat("z", 70_000), "l": "> d"})
		before := state(t, work)
		scratch := t.TempDir()
		fs := newTree(t, work, func(c *Config) {
			c.Scratch = Numbered{openRoot(t, scratch)}
			c.WorkBytes, c.TmpBytes, c.MaxFiles, c.MaxOpen = 200_000, 100_000, 12, 6
			c.Inputs = []Input{{"/src", Dir{Root: openRoot(t, work)}}}
		})
		var open []sys.File
		for len(ops) >= 3 {
			op, a, b := ops[0], names[int(ops[1])%len(names)], names[int(ops[2])%len(names)]
			size := int64(ops[2]) << (ops[1] % 12)
			ops = ops[3:]
			switch op % 14 {
			case 0, 1:
				if h, e := fs.OpenFile(a, sys.Oflag(op)<<1&(sys.O_APPEND|sys.O_TRUNC|sys.O_EXCL)|sys.O_RDWR|sys.O_CREAT, 0); e == 0 {
					open = append(open, h)
				}
			case 2:
				if h, e := fs.OpenFile(a, sys.O_RDONLY, 0); e == 0 {
					open = append(open, h)
				}
			case 3:
				fs.Mkdir(a, 0)
			case 4:
				fs.Rename(a, b)
			case 5:
				fs.Link(a, b)
			case 6:
				fs.Symlink(b, a)
			case 7:
				fs.Unlink(a)
			case 8:
				fs.Rmdir(a)
			case 9:
				if len(open) > 0 {
					open[0].Close()
					open = open[1:]
				}
			case 10:
				if len(open) > 0 {
					open[len(open)-1].Pwrite(make([]byte, 100), size)
				}
			case 11:
				if len(open) > 0 {
					open[len(open)-1].Truncate(size)
				}
			case 12:
				if len(open) > 0 {
					open[len(open)-1].Read(make([]byte, 10))
					open[len(open)-1].Readdir(3)
				}
			case 13:
				fs.Chmod(a, 0o644)
				fs.Chmod(a, 0o755)
			}
		}
		for _, h := range open {
			h.Close()
		}
		if fs.open != 0 {
			t.Errorf("%d handles are open", fs.open)
		}
		used := map[*area]int64{}
		made, memory, targets := 0, int64(0), 0
		numbers := map[string]bool{}
		seen := map[*inode]int{}
		var walk func(*inode)
		walk = func(n *inode) {
			if seen[n]++; seen[n] > 1 {
				made++
				return
			}
			if n.counted {
				made++
			}
			if n.from == nil {
				targets += len(n.target)
			}
			if n.mode.IsRegular() && n.from == nil {
				used[n.area] += n.size
				memory += int64(len(n.content.small))
				if n.content.number != 0 {
					numbers[fmt.Sprint(n.content.number)] = true
				}
			}
			if n.opens != 0 || n.content.file != nil {
				t.Errorf("inode %d: %d handles", n.ino, n.opens)
			}
			for _, c := range n.children {
				if c != nil {
					walk(c)
				}
			}
		}
		walk(fs.root)
		for n, names := range seen {
			if n.links != names {
				t.Errorf("inode %d has %d names of %d", n.ino, names, n.links)
			}
		}
		if fs.work.used != used[&fs.work] || fs.scratch.used != used[&fs.scratch] || fs.readonly.used != 0 {
			t.Errorf("in use are %d and %d bytes, counted %d and %d", used[&fs.work], used[&fs.scratch], fs.work.used, fs.scratch.used)
		}
		if fs.made != made || fs.memory != memory || fs.targets != targets {
			t.Errorf("there are %d files and %d bytes in memory, counted %d and %d", made, memory, fs.made, fs.memory)
		}
		es, err := os.ReadDir(scratch)
		must(t, err)
		for _, e := range es {
			if !numbers[e.Name()] {
				t.Errorf("scratch file %s is no file's", e.Name())
			}
		}
		if after := state(t, work); after != before {
			t.Errorf("the machine had\n%s\nand has\n%s", before, after)
		}
	})
}
