package local

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

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
