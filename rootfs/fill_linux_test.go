package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// helped counts who helps.
type helped struct{ n atomic.Int32 }

func (h *helped) help(work func() error) error {
	h.n.Add(1)
	return work()
}

// written are entries of files that hold their own names, and what opens them.
func written(t *testing.T, n int) ([]Entry, func(Entry) (*os.File, error)) {
	t.Helper()
	dir := t.TempDir()
	entries := []Entry{{Path: "out", Kind: 'd', Mode: 0o500}}
	for i := range n {
		if i%10 == 0 {
			entries = append(entries, Entry{Path: fmt.Sprintf("out/%d", i/10), Kind: 'd', Mode: 0o555})
		}
		name := fmt.Sprintf("out/%d/%02d", i/10, i%10)
		entries = append(entries, file(name, name, 0o640))
	}
	return entries, func(e Entry) (*os.File, error) {
		f, err := os.CreateTemp(dir, "")
		if err == nil {
			_, err = io.WriteString(f, e.Blob)
		}
		return f, errors.Join(err, os.Remove(f.Name()))
	}
}

// TestPlaceSeveral: files that several write are each what they are to be, whichever directory they are in.
func TestPlaceSeveral(t *testing.T) {
	testutil.CheckLeaks(t)
	several(t)
	dir := tree(t, "out/old")
	entries, get := written(t, 205)
	var h helped
	must(t, Place(t.Context(), open(t, dir), []string{"out"}, entries, get, nil, h.help))
	want := map[string]string{}
	for _, e := range entries {
		if want[e.Path] = fmt.Sprintf("-rw-r----- %s", e.Blob); e.Kind == 'd' {
			want[e.Path] = map[string]string{"out": "dr-x------ "}[e.Path]
			if want[e.Path] == "" {
				want[e.Path] = "dr-xr-xr-x "
			}
		}
	}
	wantTree(t, dir, want)
	if n := h.n.Load(); n < 1 || n > 3 {
		t.Errorf("%d helped", n)
	}
}

// TestPlaceSeveralFail: of files that fail at the same time the first is named, all is as it was, and nobody is still
// writing.
func TestPlaceSeveralFail(t *testing.T) {
	testutil.CheckLeaks(t)
	several(t)
	dir := tree(t, "out/old")
	before := snapshot(t, dir)
	entries, get := written(t, 205)
	second, once := make(chan struct{}), sync.Once{}
	var now atomic.Int32
	err := Place(t.Context(), open(t, dir), []string{"out"}, entries, func(e Entry) (*os.File, error) {
		now.Add(1)
		defer now.Add(-1)
		switch e.Path {
		case "out/2/03":
			<-second
			return nil, errors.New("no such blob")
		case "out/2/05":
			once.Do(func() { close(second) })
			return nil, errors.New("no such blob")
		}
		return get(e)
	}, nil, new(helped).help)
	if err == nil || !strings.Contains(err.Error(), "out/2/03: no such blob") || now.Load() != 0 {
		t.Errorf("error is %v, %d are still being opened", err, now.Load())
	}
	wantTree(t, dir, before)
}

// TestPlaceSeveralCanceled: in the middle of the files.
func TestPlaceSeveralCanceled(t *testing.T) {
	testutil.CheckLeaks(t)
	several(t)
	dir := tree(t, "out/old")
	before := snapshot(t, dir)
	entries, get := written(t, 205)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := Place(ctx, open(t, dir), []string{"out"}, entries, func(e Entry) (*os.File, error) {
		if e.Path == "out/7/00" {
			cancel()
		}
		return get(e)
	}, nil, new(helped).help)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	wantTree(t, dir, before)
}

// TestPlaceHelpFails: who cannot help, for want of the caller's rights, fails the whole.
func TestPlaceHelpFails(t *testing.T) {
	testutil.CheckLeaks(t)
	several(t)
	dir := tree(t, "out/old")
	before := snapshot(t, dir)
	entries, get := written(t, 205)
	err := Place(t.Context(), open(t, dir), []string{"out"}, entries, get, nil, func(func() error) error { return errors.New("no rights") })
	wantErr(t, err, "no rights")
	wantTree(t, dir, before)
}
