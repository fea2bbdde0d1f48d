package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// several has four files stored at once, whatever the machine has.
func several(t *testing.T) {
	t.Helper()
	before := runtime.GOMAXPROCS(4)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

// numbered are files that hold their own names.
func numbered(t *testing.T, n int) string {
	t.Helper()
	dir := tree(t, "out/")
	for i := range n {
		name := fmt.Sprintf("out/%d/%02d", i/10, i%10)
		must(t, os.MkdirAll(fmt.Sprintf("%s/out/%d", dir, i/10), 0o755))
		must(t, os.WriteFile(dir+"/"+name, []byte(name), 0o644))
	}
	return dir
}

// TestCollectSeveral: though several are stored at once, the order of entries is that of names, and each has its own blob.
func TestCollectSeveral(t *testing.T) {
	testutil.CheckLeaks(t)
	several(t)
	dir := numbered(t, 200)
	var now, most atomic.Int32
	entries, _, err := Collect(t.Context(), open(t, dir), nil, []string{"out"}, Limits{}, func(ctx context.Context, path string, f *os.File, size int64) (string, error) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		runtime.Gosched()
		return blobs(ctx, path, f, size)
	})
	must(t, err)
	files := 0
	for i, e := range entries {
		if i > 0 && comparePaths(entries[i-1].Path, e.Path) >= 0 {
			t.Errorf("%s comes after %s", e.Path, entries[i-1].Path)
		}
		if e.Kind == 'f' {
			files++
			if e.Blob != e.Path {
				t.Errorf("%s has the content of %s", e.Path, e.Blob)
			}
		}
	}
	if files != 200 || most.Load() > 4 {
		t.Errorf("%d files, %d at once", files, most.Load())
	}
}

// TestCollectFirstError: of files that fail at the same time the first is named, and when Collect
// returns none is being stored.
func TestCollectFirstError(t *testing.T) {
	testutil.CheckLeaks(t)
	several(t)
	dir := numbered(t, 100)
	// Collect closes a file when it has noted its failure; the others wait for this of the third.
	var third *os.File
	opened := make(chan struct{})
	noted := func() {
		<-opened
		for _, err := third.Stat(); !errors.Is(err, os.ErrClosed); _, err = third.Stat() {
			runtime.Gosched()
		}
	}
	var now, stored atomic.Int32
	_, _, err := Collect(t.Context(), open(t, dir), nil, []string{"out"}, Limits{}, func(_ context.Context, path string, f *os.File, _ int64) (string, error) {
		now.Add(1)
		defer now.Add(-1)
		stored.Add(1)
		switch {
		case path == "out/0/01":
			noted()
			return "", errors.New("no room")
		case path == "out/0/03":
			third = f
			close(opened)
			return "", errors.New("no room")
		case path > "out/0/03":
			noted()
		}
		return "", nil
	})
	if err == nil || !strings.Contains(err.Error(), "store out/0/01: no room") {
		t.Errorf("error is %v", err)
	}
	if n := now.Load(); n != 0 {
		t.Errorf("%d files are still being stored", n)
	}
	if n := stored.Load(); n > 8 {
		t.Errorf("%d files were stored after the first had failed", n)
	}
}

// TestCollectCanceled: in the middle of files.
func TestCollectCanceled(t *testing.T) {
	testutil.CheckLeaks(t)
	several(t)
	dir := numbered(t, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var now, stored atomic.Int32
	_, _, err := Collect(ctx, open(t, dir), nil, []string{"out"}, Limits{}, func(ctx context.Context, _ string, _ *os.File, _ int64) (string, error) {
		now.Add(1)
		defer now.Add(-1)
		if stored.Add(1) == 20 {
			cancel()
		}
		return "", ctx.Err()
	})
	if !errors.Is(err, context.Canceled) || now.Load() != 0 {
		t.Errorf("%v, %d files are still being stored", err, now.Load())
	}
}
