package rootfs

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzOutputs: whatever is let through leads below a directory, by itself and
// joined to it, and no output lies in another.
func FuzzOutputs(f *testing.F) {
	for _, s := range []string{"a", "a\nb", "a/b\na", "..", "../a", "a/../b", "/a", "a//b", ".", "", "a\x00", "a\xff", "...", "..a/b", "a/...", "a-b\na/b\na"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		outputs := strings.Split(s, "\n")
		err := checkOutputs(outputs)
		var entry *EntryError
		if err != nil {
			if !errors.As(err, &entry) || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
				t.Fatalf("error is %q", err)
			}
			return
		}
		for i, o := range outputs {
			if !filepath.IsLocal(o) || !utf8.ValidString(o) || strings.ContainsRune(o, 0) || filepath.Join("/w", o) != "/w/"+o || filepath.Dir("/w/"+o) == "/" {
				t.Errorf("%q was let through", o)
			}
			for j, other := range outputs {
				if i != j && (o == other || strings.HasPrefix(o, other+"/")) {
					t.Errorf("%q lies in %q", o, other)
				}
			}
		}
	})
}

func TestComparePaths(t *testing.T) {
	want := []string{"a", "a/b", "a/b/c", "a/b-c", "a-b", "a.b/c", "b"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, comparePaths)
	if !slices.Equal(got, want) {
		t.Errorf("order is %q", got)
	}
}
