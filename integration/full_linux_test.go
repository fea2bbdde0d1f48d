package integration_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk is a file system of a few MiB, of the test's own.
func smallDisk(t *testing.T) string {
	t.Helper()
	at := filepath.Join(newDir(t), "small")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=8m,nr_inodes=4k,mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

// fill leaves no room in a directory's file system, until free is called.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for b := make([]byte, 64<<10); err == nil; {
		if _, err = f.Write(b); err != nil && len(b) > 1 {
			b, err = b[:len(b)/2], nil
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
}

// fillNames leaves no room for files of no size either.
func fillNames(t *testing.T, dir string) (free func()) {
	t.Helper()
	empty := filepath.Join(dir, "empty")
	err := os.Mkdir(empty, 0o755)
	for i := 0; err == nil; i++ {
		err = os.WriteFile(filepath.Join(empty, strconv.Itoa(i)), nil, 0o644)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.RemoveAll(empty); err != nil {
			t.Fatal(err)
		}
	}
}

// onSmallDisk is a daemon that has one of its directories on a small disk.
func onSmallDisk(t *testing.T, key, name string) (d *daemon, small string) {
	t.Helper()
	small = smallDisk(t)
	d = startDaemon(t, "")
	d.stop()
	d.reconfigure(key+" = \""+d.dir+"/", key+" = \""+small+"/")
	d.start()
	if name == "state" {
		d.state = small + "/state"
	}
	t.Cleanup(d.stop) // before the disk goes
	return d, small
}

// holds fails unless the files, and nothing else, are in a directory.
func holds(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(p)
		if content, ok := want[rel]; !ok || string(b) != content {
			t.Errorf("%s holds %.20q, %v", p, b, err)
		}
		delete(want, rel)
		return err
	})
	if err != nil || len(want) > 0 {
		t.Errorf("%s lacks %q, %v", dir, want, err)
	}
}

// TestStoryFullCache: where the cache has no room, tasks are answered all the same, what cannot be
// had is told, and nothing of it is in the caller's tree.
func TestStoryFullCache(t *testing.T) {
	rootAndClean(t)
	d, small := onSmallDisk(t, "cache_dir", "cache")
	work := newDir(t)
	writeFile(t, work+"/o", "old")
	writeFile(t, work+"/small", "old")
	for _, script := range []string{"echo new >small; head -c 20000000 /dev/urandom >o", "echo new >small; echo new >o; head -c 20000000 /dev/urandom"} {
		if o := d.run(work, "--output", "small", "--output", "o", "-c", script); o.code != 125 ||
			!strings.Contains(o.stderr, "the file system of the cache "+small+"/cache is full, free space there") {
			t.Errorf("%s: exit %d, %s", script, o.code, o.stderr)
		}
		holds(t, work, map[string]string{"o": "old", "small": "old"})
	}
	if left, err := filepath.Glob(small + "/cache/tmp/*/*"); err != nil || len(left) > 0 {
		t.Errorf("half blobs are left: %q, %v", left, err)
	}
	if r := d.runJSON(work, "--output", "p", "-c", "echo small >p; echo hello"); r.ExitCode != 0 || r.Stdout != "hello\n" {
		t.Errorf("after it: %+v", r)
	}
	d.stop()
	free := fill(t, small)
	defer d.start()
	defer free()
	if o := finish(t, d.as(0, d.dir, "serve", "--config", d.config, "--cache-dir", small+"/other")); o.code != 1 || !strings.Contains(o.stderr, small+"/other is full") {
		t.Errorf("at the start: %+v", o)
	}
}

// TestStoryFullWorkDirectory: outputs that do not fit are not in the caller's tree, none of them, and
// are once there is room.
func TestStoryFullWorkDirectory(t *testing.T) {
	rootAndClean(t)
	if !kernelSince(6, 3) {
		t.Skip("tmpfs can be id-mapped since Linux 6.3")
	}
	d := startDaemon(t, "")
	small := smallDisk(t)
	writeFile(t, small+"/a", "old")
	writeFile(t, small+"/z", "old")
	args := []string{"--output", "a", "--output", "dir/b", "--output", "z", "-c", "echo new >a; echo new >z; mkdir dir; head -c 5000000 /dev/zero | tr '\\0' x >dir/b"}
	free := fill(t, small)
	for range 2 { // run, and from the cache
		o := d.run(small, args...)
		if o.code != 125 || !strings.Contains(o.stderr, "the work directory's file system is full, nothing was placed; free some space") {
			t.Errorf("exit %d, %s", o.code, o.stderr)
		}
		b, err := os.ReadFile(small + "/ballast")
		if err != nil {
			t.Fatal(err)
		}
		holds(t, small, map[string]string{"a": "old", "z": "old", "ballast": string(b)})
		if _, err := os.Lstat(small + "/dir"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a directory was made for an output that is not there: %v", err)
		}
	}
	free()
	if o := d.run(small, args...); o.code != 0 {
		t.Errorf("with room: %+v", o)
	}
	holds(t, small, map[string]string{"a": "new\n", "z": "new\n", "dir/b": strings.Repeat("x", 5000000)})
}

// TestStoryFullState: a task that fills the state directory's disk sees that itself; one that cannot be
// made there is told which directory is full, and the daemon goes on.
func TestStoryFullState(t *testing.T) {
	rootAndClean(t)
	if !kernelSince(6, 3) {
		t.Skip("tmpfs can be id-mapped since Linux 6.3")
	}
	d, small := onSmallDisk(t, "state_dir", "state")
	work := newDir(t)
	hit := []string{"--output", "o", "-c", "echo hit >o"}
	if o := d.run(work, hit...); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	if o := d.run(work, "--cache", "off", "-c", "head -c 20000000 /dev/urandom >big"); o.code != 1 || !strings.Contains(o.stderr, "head: ") { // whose words differ
		t.Errorf("a task that needs more: %+v", o)
	}
	eventually(t, d.leftInState) // what it wrote goes after its answer
	full := "the file system of the state directory " + small + "/state is full; free some space there"
	free, freeNames := fill(t, small), fillNames(t, small)
	if o := d.run(work, "--cache", "off", "-c", "true"); o.code != 125 || !strings.Contains(o.stderr, full) {
		t.Errorf("without room: %+v", o)
	}
	// What is in the cache needs no room there: the page of the journal is used again.
	if err := os.Remove(work + "/o"); err != nil {
		t.Fatal(err)
	}
	if o := d.run(work, hit...); o.code != 0 || !strings.Contains(o.stderr, "cached") {
		t.Errorf("without room, from the cache: %+v", o)
	}
	holds(t, work, map[string]string{"o": "hit\n"})
	free()
	freeNames()
	for _, args := range [][]string{{"--cache", "off", "-c", "true"}, hit} {
		if o := d.run(work, args...); o.code != 0 {
			t.Errorf("with room: %q: %+v", args, o)
		}
	}
	d.stop()
	free, freeNames = fill(t, small), fillNames(t, small)
	if o := finish(t, d.as(0, d.dir, "serve", "--config", d.config)); o.code != 1 || !strings.Contains(o.stderr, full) {
		t.Errorf("at the start: %+v", o)
	}
	free()
	freeNames()
	d.start()
	if o := d.run(work, hit...); o.code != 0 || !strings.Contains(o.stderr, "cached") {
		t.Errorf("after it: %+v", o)
	}
}

// kernelSince tells whether this is a Linux of that version or later.
func kernelSince(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var a, b int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}
