package rootfs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

var recoverEntries = []Entry{
	file("a", "new a", 0o644), file("new/deep/b", "new b", 0o644), file("new/c", "new c", 0o644),
	{Path: "out", Kind: 'd', Mode: 0o555}, {Path: "out/sub", Kind: 'd', Mode: 0}, file("out/sub/x", "new x", 0o644),
}

// errCut is where a Place is cut short, as by SIGKILL: nothing is undone.
var errCut = errors.New("cut short")

// cutShort does the first steps of a Place, of which it returns the plan and whether it came
// to its end. swap is false for a file system that cannot.
func cutShort(t *testing.T, dir string, steps int, swap bool) (pl Placing, ended bool) {
	t.Helper()
	groups, err := plan([]string{"a", "new/deep/b", "new/c", "out"}, recoverEntries)
	must(t, err)
	step := func() error {
		if steps--; steps < 0 {
			return errCut
		}
		return nil
	}
	get := opener(t)
	p := &placer{
		ctx: context.Background(), work: open(t, dir), token: tokenPrefix + strings.Repeat("T", 26) + "-", parents: map[string]*os.File{},
		open: func(e Entry) (*os.File, error) {
			if err := step(); err != nil {
				return nil, err
			}
			return get(e)
		},
	}
	p.parents["."] = p.work
	defer p.close()
	pl = p.placing(groups)
	for _, g := range groups {
		if p.stage(g) != nil {
			return pl, false
		}
	}
	for _, s := range p.staged {
		if step() != nil {
			return pl, false
		}
		if swap {
			must(t, p.commit(s))
			continue
		}
		// replace in two steps.
		err := rename(s.dir, filepath.Base(s.path), s.dir, oldName(s.temp), 0)
		if err != unix.ENOENT {
			must(t, err)
			s.old = oldName(s.temp)
		}
		if step() != nil {
			return pl, false
		}
		must(t, rename(s.dir, s.temp, s.dir, filepath.Base(s.path), 0))
	}
	for _, s := range p.staged {
		if step() != nil {
			return pl, false
		}
		must(t, s.discard())
	}
	return pl, true
}

// versions returns which version of each output is in dir, and fails if there is anything else.
func versions(t *testing.T, dir string) map[string]string {
	t.Helper()
	if st, err := os.Stat(dir + "/out/sub"); err == nil && st.Mode().Perm() == 0 {
		must(t, os.Chmod(dir+"/out/sub", 0o755))
	}
	got := snapshot(t, dir)
	known := map[string]map[string]string{
		"a old": {"a": "-rw-r--r-- a"}, "a new": {"a": "-rw-r--r-- new a"},
		"out old": {"out": "drwxr-xr-x ", "out/old": "-rw-r--r-- out/old"},
		"out new": {"out": "dr-xr-xr-x ", "out/sub": "drwxr-xr-x ", "out/sub/x": "-rw-r--r-- new x"},
		"b new":   {"new/deep": "drwxr-xr-x ", "new/deep/b": "-rw-r--r-- new b"}, "c new": {"new/c": "-rw-r--r-- new c"},
		"keep old": {"keep": "-rw-r--r-- keep"}, "new new": {"new": "drwxr-xr-x "},
	}
	found := map[string]string{}
	for k, files := range known {
		all := true
		for f, content := range files {
			all = all && got[f] == content
		}
		if all {
			output, version, _ := strings.Cut(k, " ")
			found[output] = version
			maps.DeleteFunc(got, func(f, _ string) bool { _, ok := files[f]; return ok })
		}
	}
	if len(got) > 0 || found["a"] == "" || found["out"] == "" || found["keep"] == "" {
		t.Errorf("the tree has %q, and beside it %q", found, got)
	}
	if found["new"] != "" && found["b"] == "" && found["c"] == "" {
		t.Errorf("a directory is left that was made for what is not there: %q", found)
	}
	return found
}

// TestRecover: wherever a Place is cut short, each output is old or new afterwards, and
// nothing else is left.
func TestRecover(t *testing.T) {
	testutil.CheckLeaks(t)
	for _, swap := range []bool{true, false} {
		seen := map[string]int{}
		for steps, ended := 0, false; !ended; steps++ {
			dir := tree(t, "a", "out/old", "keep")
			var pl Placing
			pl, ended = cutShort(t, dir, steps, swap)
			dealt, err := Recover(open(t, dir), pl, nil)
			must(t, err)
			if (dealt > 0) == (steps == 0 || ended) {
				t.Errorf("after %d steps %d entries were dealt with", steps, dealt)
			}
			seen[fmt.Sprint(versions(t, dir))]++
			if n, err := Recover(open(t, dir), pl, nil); n != 0 || err != nil {
				t.Errorf("the second time: %d, %v", n, err)
			}
			must(t, os.Chmod(dir+"/out", 0o755))
		}
		if len(seen) < 5 {
			t.Errorf("the places where it was cut short made no difference: %v", seen)
		}
	}
}

// TestRecoverHostile: what became of the tree since is not the way out of it, and only names with
// the token are touched.
func TestRecoverHostile(t *testing.T) {
	testutil.RequireRoot(t)
	outside := tree(t, "victim/precious", "precious")
	token := tokenPrefix + strings.Repeat("T", 26) + "-"
	pl := Placing{Token: token, Outputs: []string{"a", "d/b", "e/f", "g/h"}, Missing: []int{0, 1, 0, 1}}

	dir := tree(t, "a", token+"0-old/x", "d -> "+outside+"/victim", "e/.keep", "g -> "+outside, token+"9", ".sandboxd-other-0")
	must(t, os.Symlink(outside+"/precious", dir+"/"+token+"0"))
	must(t, os.Symlink(outside+"/victim", dir+"/e/"+token+"2"))
	must(t, os.WriteFile(outside+"/victim/"+token+"1", nil, 0o600))
	before := snapshot(t, outside)
	n, err := Recover(open(t, dir), pl, nil)
	wantErr(t, err, "symbolic link")
	if n != 3 {
		t.Errorf("%d entries", n)
	}
	wantTree(t, outside, before)
	for p := range snapshot(t, dir) {
		if strings.Contains(p, token) && p != token+"9" {
			t.Errorf("%s was left", p)
		}
	}
	if _, err := os.Stat(dir + "/.sandboxd-other-0"); err != nil {
		t.Error(err)
	}

	// For a caller that may remove everyone's, owners are what is left of the limits.
	dir = tree(t, token+"0/theirs", "e/"+token+"2", "e/f", "d/", "g/")
	for p, uid := range map[string]int{token + "0": 12345, "d": 12345} {
		must(t, os.Chown(filepath.Join(dir, p), uid, 0))
	}
	n, err = Recover(open(t, dir), pl, []uint32{0, 777})
	wantErr(t, err, "belongs to user 12345")
	if n != 2 {
		t.Errorf("%d entries", n)
	}
	wantTree(t, dir, map[string]string{token + "0": "drwxr-xr-x ", token + "0/theirs": "-rw-r--r-- " + token + "0/theirs", "e": "drwxr-xr-x ", "e/f": "-rw-r--r-- e/f", "d": "drwxr-xr-x "})

	for _, bad := range []Placing{
		{Token: ".sandboxd-", Outputs: []string{"a"}, Missing: []int{0}}, {Outputs: []string{"a"}, Missing: []int{0}}, {Token: token + "/../", Outputs: []string{"a"}, Missing: []int{0}},
		{Token: token, Outputs: []string{"../a"}, Missing: []int{0}}, {Token: token, Outputs: []string{"a/b"}, Missing: []int{2}}, {Token: token, Outputs: []string{"a"}, Missing: []int{-1}},
		{Token: token, Outputs: []string{"a"}}, {Token: token, Outputs: []string{"."}, Missing: []int{0}}, {Token: token, Outputs: []string{"/etc/x"}, Missing: []int{1}},
	} {
		if _, err := Recover(open(t, dir), bad, nil); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// TestPlaceNote: the plan is told before anything is made, and an error of it ends the Place.
func TestPlaceNote(t *testing.T) {
	dir := tree(t, "a", "out/old", "keep")
	before := snapshot(t, dir)
	var pl Placing
	note := func(p Placing) error {
		pl = p
		wantTree(t, dir, before)
		return errCut
	}
	err := Place(t.Context(), open(t, dir), []string{"a", "new/deep/b", "new/c", "out"}, recoverEntries, opener(t), note, nil)
	if !errors.Is(err, errCut) {
		t.Error(err)
	}
	wantTree(t, dir, before)
	if got := fmt.Sprint(pl.Outputs, pl.Missing); got != "[a new/c new/deep/b out] [0 1 2 0]" || pl.check() != nil {
		t.Errorf("%s, %v", got, pl.check())
	}
}
