package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
)

// TestManyOutputsAreTheCallers: of many files, which several threads collect and put in place, each is the caller's, has its
// own content, and comes out of the cache again.
func TestManyOutputsAreTheCallers(t *testing.T) {
	e := newExecutor(t)
	before := runtime.GOMAXPROCS(4)
	defer runtime.GOMAXPROCS(before)
	dir := openDir(t)
	write(t, dir, map[string]string{"f": "alice's\n"})
	own(t, alice, dir, ".", "f")
	spec := executor.TaskSpec{
		Workdir: dir, Outputs: []string{"out"},
		Script: "for d in a b c; do mkdir -p out/$d; for i in $(seq 100); do echo $d $i >out/$d/$i; done; done; chmod 755 out/b/7",
	}
	for _, cached := range []bool{false, true} {
		must(t, os.RemoveAll(dir+"/out"))
		out, err := e.Execute(by(t, alice), &spec)
		if err != nil || !out.Success() || out.Cached != cached || len(out.OutputFiles) != 304 {
			t.Fatalf("%d files, %+v, %v", len(out.OutputFiles), out, err)
		}
		for _, f := range out.OutputFiles {
			fi, err := os.Lstat(filepath.Join(dir, f.Path))
			must(t, err)
			if st := fi.Sys().(*syscall.Stat_t); st.Uid != alice.UID || st.Gid != alice.GID || uint32(fi.Mode().Perm()) != f.Mode {
				t.Errorf("%s is of %d:%d, mode %v", f.Path, st.Uid, st.Gid, fi.Mode())
			}
			if f.Kind != executor.KindFile {
				continue
			}
			want := fmt.Sprintln(strings.Split(f.Path, "/")[1], strings.Split(f.Path, "/")[2])
			if got := read(t, filepath.Join(dir, f.Path)); got != want {
				t.Errorf("%s holds %q", f.Path, got)
			}
		}
	}
}

// TestOutputsAreAdopted: what a task wrote becomes the blobs themselves, where nobody else can have it open; what cannot, or what has
// several names, is copied. The outputs are the same.
func TestOutputsAreAdopted(t *testing.T) {
	e := newExecutor(t)
	dir := openDir(t)
	write(t, dir, map[string]string{"below": "the caller's\n", "old/f": "older\n"})
	own(t, alice, dir, ".", "below", "old", "old/f")
	const script = "mkdir out; echo new >out/f; sed s,caller,task, below >out/copy; echo linked >out/a; ln out/a out/b; ln below out/below; chmod 4755 out/f; stat -c '%i %n' out/*"
	for _, c := range []struct {
		name    string
		network executor.NetworkPolicy
		adopted map[string]bool
	}{
		{"isolated", executor.NetworkIsolated, map[string]bool{"out/f": true, "out/copy": true}},
		{"full", executor.NetworkFull, nil},
	} {
		out, err := e.Execute(by(t, executor.Caller{}), &executor.TaskSpec{Workdir: dir, Outputs: []string{"out"}, Script: script, Network: c.network})
		if err != nil || !out.Success() {
			t.Fatalf("%s: %+v, %v", c.name, out, err)
		}
		text := out.Stdout.Inline
		inodes := map[string]string{}
		for line := range strings.Lines(string(text)) {
			n, name, _ := strings.Cut(strings.TrimSpace(line), " ")
			inodes[name] = n
		}
		want := map[string]string{"out/f": "new\n", "out/copy": "the task's\n", "out/a": "linked\n", "out/b": "linked\n", "out/below": "the caller's\n"}
		for _, f := range out.OutputFiles {
			if f.Kind != executor.KindFile {
				continue
			}
			if got := read(t, filepath.Join(dir, f.Path)); got != want[f.Path] {
				t.Errorf("%s: %s holds %q", c.name, f.Path, got)
			}
			b, err := e.cfg.Cache.Open(cache.Digest(f.Digest))
			must(t, err)
			fi, err := b.File().Stat()
			must(t, errors.Join(err, b.Close()))
			st := fi.Sys().(*syscall.Stat_t)
			if st.Nlink != 1 || st.Uid != 0 || fi.Mode() != 0o400 {
				t.Errorf("%s: the blob of %s has %d names, owner %d, mode %v", c.name, f.Path, st.Nlink, st.Uid, fi.Mode())
			}
			if adopted := inodes[f.Path] == fmt.Sprint(st.Ino); adopted != c.adopted[f.Path] {
				t.Errorf("%s: %s adopted: %v", c.name, f.Path, adopted)
			}
			delete(want, f.Path)
		}
		if len(want) > 0 {
			t.Errorf("%s: no %v", c.name, want)
		}
	}
	if got := read(t, dir+"/below"); got != "the caller's\n" {
		t.Errorf("the caller's own file holds %q", got)
	}
}
