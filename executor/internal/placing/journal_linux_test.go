package placing

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
	"github.com/sandboxd/sandboxd/rootfs"
)

const testToken = ".sandboxd-AAAAAAAAAAAAAAAAAAAAAAAAAA-"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openDir is t.TempDir, for others to pass through.
func openDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o711))
	}
	return dir
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		must(t, os.WriteFile(p, []byte(content), 0o644))
	}
}

// logTo is a logger and what it said.
func logTo() (*logrus.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	l := logrus.New()
	l.SetOutput(&b)
	return l, &b
}

// notePlacing writes a page as if its executor was killed after it, and returns the journal's directory.
func notePlacing(t *testing.T, c executor.Caller, work string, pl rootfs.Placing) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "placing")
	log, _ := logTo()
	j, _, err := Open(dir, log)
	must(t, err)
	p, err := j.begin()
	must(t, err)
	w, err := os.Open(work)
	must(t, err)
	must(t, p.write(c, w, pl))
	must(t, w.Close())
	must(t, p.f.Close())
	return dir
}

// replayed opens a journal anew, and returns how many entries it dealt with and what was logged.
func replayed(t *testing.T, dir string) (int, string) {
	t.Helper()
	log, said := logTo()
	j, n, err := Open(dir, log)
	must(t, err)
	must(t, j.Close())
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("pages are left: %v, %v", left, err)
	}
	return n, said.String()
}

// TestJournalAsCaller: what is cleaned up is cleaned up with the rights of the caller, below the
// directory that the placing was in.
func TestJournalAsCaller(t *testing.T) {
	testutil.RequireRoot(t)
	const uid = 4711
	caller := executor.Caller{UID: uid, GID: uid, Groups: []uint32{uid}}
	pl := rootfs.Placing{Token: testToken, Outputs: []string{"o", "theirs/p"}, Missing: []int{0, 0}}
	newWork := func() string {
		dir := openDir(t)
		work := filepath.Join(dir, "work")
		write(t, work, map[string]string{testToken + "0": "half", testToken + "1": "not for output 1", "theirs/" + testToken + "1": "root's"})
		for _, p := range []string{dir, work, work + "/" + testToken + "0"} {
			must(t, os.Chown(p, uid, uid))
		}
		return work
	}
	has := func(p string) bool {
		_, err := os.Lstat(p)
		return err == nil
	}

	work := newWork()
	n, said := replayed(t, notePlacing(t, caller, work, pl))
	if n != 2 || !strings.Contains(said, "permission denied") || !strings.Contains(said, work) {
		t.Errorf("%d entries, %s", n, said)
	}
	if has(work+"/"+testToken+"0") || !has(work+"/"+testToken+"1") || !has(work+"/theirs/"+testToken+"1") {
		t.Error("the wrong files were removed")
	}

	// The directory has become a link to a root's one, or another directory, or is gone.
	victim := openDir(t)
	write(t, victim, map[string]string{testToken + "0": "precious"})
	moved := ""
	for name, replace := range map[string]func(work string){
		"link": func(work string) { must(t, os.Symlink(victim, work)) },
		"link above": func(work string) {
			must(t, os.Remove(filepath.Dir(work)))
			must(t, os.Symlink(victim, filepath.Dir(work)))
		},
		"other directory": func(work string) {
			must(t, os.Mkdir(work, 0o777))
			write(t, work, map[string]string{testToken + "0": "x"})
		},
		"link to itself": func(work string) { must(t, os.Symlink(moved, work)) },
		"gone":           func(string) {},
		"file":           func(work string) { must(t, os.WriteFile(work, nil, 0o644)) },
	} {
		for _, c := range []executor.Caller{caller, {}} {
			work := newWork()
			dir := notePlacing(t, c, work, pl)
			moved = openDir(t) + "/moved"
			must(t, os.Rename(work, moved))
			replace(work)
			n, said := replayed(t, dir)
			if n != 0 || (said == "") != (name == "gone") && name != "link above" {
				t.Errorf("%s, user %d: %d entries, %s", name, c.UID, n, said)
			}
			if !has(victim+"/"+testToken+"0") || !has(moved+"/"+testToken+"0") || name == "other directory" && !has(work+"/"+testToken+"0") {
				t.Errorf("%s: what is another's was removed", name)
			}
		}
	}
}

// TestJournalPages: a page is used again, and what has ended or was not written to its end is not replayed.
func TestJournalPages(t *testing.T) {
	work := openDir(t)
	write(t, work, map[string]string{testToken + "0": "kept"})
	pl := rootfs.Placing{Token: testToken, Outputs: []string{"o"}, Missing: []int{0}}
	dir := filepath.Join(t.TempDir(), "placing")
	log, _ := logTo()
	j, _, err := Open(dir, log)
	must(t, err)
	w, err := os.Open(work)
	must(t, err)
	defer w.Close()
	for range 3 {
		p, err := j.begin()
		must(t, err)
		must(t, p.write(executor.Caller{}, w, pl))
		j.end(p)
	}
	if pages, err := os.ReadDir(dir); err != nil || len(pages) != 1 {
		t.Errorf("%v, %v", pages, err)
	}
	for name, page := range map[string][]byte{"77": {}, "78": bytes.Repeat([]byte{255}, 100)} {
		must(t, os.WriteFile(filepath.Join(dir, name), page, 0o600))
	}
	must(t, unix.Mkfifo(filepath.Join(dir, "79"), 0o600))
	var st unix.Stat_t
	must(t, unix.Stat(work, &st))
	b, err := encodePage(&placement{Workdir: []byte(work), Inode: st.Ino, Placing: pl})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "80"), b[:len(b)-1], 0o600))
	b[8] ^= 1
	must(t, os.WriteFile(filepath.Join(dir, "81"), b, 0o600))
	if n, said := replayed(t, dir); n != 0 || said != "" {
		t.Errorf("%d entries, %s", n, said)
	}
	if got, err := os.ReadFile(work + "/" + testToken + "0"); err != nil || string(got) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
}

// FuzzPage: what is read is what was written, and nothing else.
func FuzzPage(f *testing.F) {
	good, err := encodePage(&placement{UID: 1, Workdir: []byte("/w\xff"), Inode: 7, Placing: rootfs.Placing{Token: testToken, Outputs: []string{"a/b"}, Missing: []int{1}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(append(good, "the rest of a longer one"...))
	f.Add(good[:len(good)-3])
	f.Add(make([]byte, pageHead))
	f.Add(binary.BigEndian.AppendUint64(nil, 1<<63))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := decodePage(b)
		if !ok {
			return
		}
		again, err := encodePage(&p)
		if err != nil {
			t.Fatal(err)
		}
		if q, ok := decodePage(again); !ok || !reflect.DeepEqual(p, q) {
			t.Errorf("%+v became %+v", p, q)
		}
	})
}
