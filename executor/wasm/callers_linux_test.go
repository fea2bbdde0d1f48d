package wasm

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/access"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// Users that no account belongs to, and nothing on this machine.
var (
	alice = executor.Caller{UID: 4001, GID: 4001, Groups: []uint32{4100}}
	bob   = executor.Caller{UID: 4002, GID: 4002}
)

func by(t *testing.T, c executor.Caller) context.Context { return executor.WithCaller(t.Context(), c) }

// neighbours makes a directory of alice's and one of bob's, in a directory that all pass through.
func neighbours(t *testing.T) func(string) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o711))
	}
	at := func(p string) string { return filepath.Join(dir, p) }
	for _, d := range []string{"alice/sub", "alice/bobs", "bob/closed", "bob/open"} {
		must(t, os.MkdirAll(at(d), 0o755))
	}
	for p, mode := range map[string]os.FileMode{
		"alice/f": 0o600, "alice/sub/f": 0o600, "alice/secret": 0o600, "alice/group": 0o640, "bob/closed/f": 0o644, "bob/open/f": 0o644, "bob/open/secret": 0o600,
	} {
		must(t, os.WriteFile(at(p), []byte(filepath.Base(p)+"\n"), mode))
	}
	for _, p := range []string{"alice", "alice/f", "alice/sub", "alice/sub/f"} {
		must(t, os.Chown(at(p), int(alice.UID), int(alice.GID)))
	}
	for _, p := range []string{"alice/bobs", "alice/secret", "alice/group", "bob", "bob/closed", "bob/closed/f", "bob/open", "bob/open/f", "bob/open/secret"} {
		must(t, os.Chown(at(p), int(bob.UID), int(bob.GID)))
	}
	must(t, os.Chown(at("alice/group"), int(bob.UID), int(alice.Groups[0])))
	must(t, os.Chmod(at("bob/closed"), 0o700))
	must(t, os.Symlink("../bob/closed", at("alice/link")))
	must(t, os.Symlink(at("bob/closed/f"), at("alice/sub/link")))
	return at
}

// TestPathsAreTheCallers: nobody reads or writes by an executor of root's what they could not themselves.
func TestPathsAreTheCallers(t *testing.T) {
	testutil.RequireRoot(t)
	e := openShell(t, Config{})
	at := neighbours(t)
	in := func(p string) []executor.Input {
		return []executor.Input{{Host: at(p), Sandbox: "/inputs/i"}}
	}
	for name, c := range map[string]struct {
		spec        executor.TaskSpec
		field, text string
	}{
		"closed workdir":           {executor.TaskSpec{Workdir: at("bob/closed")}, "workdir", "permission denied"},
		"workdir by a link":        {executor.TaskSpec{Workdir: at("alice/link")}, "workdir", "permission denied"},
		"input in a closed one":    {executor.TaskSpec{Inputs: in("bob/closed/f")}, "inputs", "permission denied"},
		"input that is secret":     {executor.TaskSpec{Inputs: in("bob/open/secret")}, "inputs", "permission denied"},
		"input by /proc":           {executor.TaskSpec{Inputs: []executor.Input{{Host: "/proc/1/root/etc", Sandbox: "/inputs/i"}}}, "inputs", ""},
		"secret below the workdir": {executor.TaskSpec{Workdir: at("alice")}, "workdir", "secret"},
		"secret below an input":    {executor.TaskSpec{Inputs: in("bob/open")}, "inputs", "secret"},
		"output in another's":      {executor.TaskSpec{Workdir: at("bob/open"), Outputs: []string{"o"}, Cache: executor.CacheOff}, "outputs", "may not write to"},
		"output below another's":   {executor.TaskSpec{Workdir: at("alice"), Outputs: []string{"bobs/o"}, Cache: executor.CacheOff}, "outputs", "may not write to"},
		"output by a link":         {executor.TaskSpec{Workdir: at("alice"), Outputs: []string{"link/o"}, Cache: executor.CacheOff}, "outputs", "link"},
	} {
		spec := c.spec
		spec.Script = "true"
		out, err := e.Execute(by(t, alice), &spec)
		if x := executor.AsError(err); err == nil || x.Kind != executor.Invalid || x.Field != c.field || !strings.Contains(x.Text, c.text) {
			t.Errorf("%s: %+v, %v", name, out, err)
		}
	}
	spec := uncached("cat f sub/f group; for f in secret sub/link link/f /inputs/i/secret bobs/none; do if cat $f 2>/dev/null; then echo $f; fi; done; cat /inputs/i/f; mkdir -p o/d; cat f >o/d/f")
	spec.Workdir, spec.Inputs, spec.Outputs = at("alice"), in("bob/open"), []string{"o"}
	out, err := e.Execute(by(t, alice), spec)
	must(t, err)
	if got, want := string(out.Stdout.Inline), "f\nf\ngroup\nf\n"; got != want || !out.Success() {
		t.Errorf("the task read %q, want %q: %+v %s", got, want, out, out.Stderr.Inline)
	}
	for _, p := range []string{"o", "o/d", "o/d/f"} {
		var st unix.Stat_t
		if err := unix.Stat(at("alice/"+p), &st); err != nil || st.Uid != alice.UID || st.Gid != alice.GID {
			t.Errorf("%s is user %d's: %v", p, st.Uid, err)
		}
	}
}

// TestResultsAreOneUsers: a result is its user's, and another's task runs.
func TestResultsAreOneUsers(t *testing.T) {
	testutil.RequireRoot(t)
	e := openShell(t, Config{})
	for _, c := range []executor.Caller{alice, bob} {
		for n, cached := range []bool{false, true} {
			out, err := e.Execute(by(t, c), &executor.TaskSpec{Script: "echo hi"})
			if err != nil || out.Cached != cached {
				t.Errorf("user %d, time %d: %+v, %v", c.UID, n, out, err)
			}
		}
	}
}

// TestAccessIsEnforced: what a rule does not allow is refused, and what it bounds is bounded.
func TestAccessIsEnforced(t *testing.T) {
	testutil.RequireRoot(t)
	e := openShell(t, Config{Module: []byte(nothing), Access: access.Rules{{Name: "alice", User: &alice.UID, Most: executor.ResourceLimits{MemoryBytes: 256 << 20}}}})
	spec := uncached("true")
	out, err := e.Execute(by(t, alice), spec)
	must(t, err)
	if got := out.Applied.Limits["linear memory"]; got != "268435456" {
		t.Errorf("it may have %s", got)
	}
	spec.Limits.MemoryBytes = 512 << 20
	if _, err := e.Execute(by(t, alice), spec); executor.KindOf(err) != executor.Denied || executor.AsError(err).Field != "limits.memory_bytes" {
		t.Errorf("more than the rule allows: %v", err)
	}
	e.Reconfigure(nil)
	if _, err := e.Execute(by(t, alice), spec); err != nil {
		t.Errorf("without the rule: %v", err)
	}
	if _, err := e.Execute(by(t, executor.Caller{UID: nobody, GID: nobody}), uncached("true")); executor.KindOf(err) != executor.Denied {
		t.Errorf("nobody: %v", err)
	}
}

// TestStrangers: who cannot take on another's rights runs none of their tasks.
func TestStrangers(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root can: see TestPathsAreTheCallers; TestUnprivileged runs this")
	}
	e := openShell(t, Config{})
	if _, err := e.Execute(by(t, alice), uncached("true")); executor.KindOf(err) != executor.Denied {
		t.Errorf("%v", err)
	}
}

// TestTakenOver: a worker that a task has taken over gets what its caller may read of what the task is given, and else nothing.
func TestTakenOver(t *testing.T) {
	testutil.RequireRoot(t)
	at := neighbours(t)
	execute := func(asks ...wire.File) (*executor.TaskOutput, error) {
		arg, err := json.Marshal(asks)
		must(t, err)
		e := openShell(t, Config{program: []string{"/proc/self/exe", "liar", string(arg)}, Module: []byte("x"), files: 20})
		s := <-e.seats
		<-s.ready
		s.worker.missing = nil // it raises no walls
		e.seats <- s
		spec := uncached("x")
		spec.Workdir, spec.Inputs = at("alice"), []executor.Input{{Host: at("bob/open"), Sandbox: "/i"}, {Host: at("bob/open/f"), Sandbox: "/f"}}
		return e.Execute(by(t, alice), spec)
	}
	for _, c := range []struct {
		ask  wire.File
		want string
	}{
		{wire.File{Do: wire.FileOpen, Path: []byte("f")}, `done "f\n" write: write file: bad file descriptor`},
		{wire.File{Do: wire.FileOpen, Path: []byte("sub/f")}, `done "f\n" write: write file: bad file descriptor`},
		{wire.File{Do: wire.FileOpen, Path: []byte("group")}, `done "group\n" write: write file: bad file descriptor`},
		{wire.File{Do: wire.FileOpen, Place: 1, Path: []byte("f")}, `done "f\n" write: write file: bad file descriptor`},
		{wire.File{Do: wire.FileOpen, Place: 2, Path: []byte(".")}, `done "f\n" write: write file: bad file descriptor`},
		{wire.File{Do: wire.FileLstat, Path: []byte("secret")}, "done  600"},
		{wire.File{Do: wire.FileCreate, Number: 1}, `done "" write: <nil>`},
		// Nothing else.
		{wire.File{Do: wire.FileOpen, Path: []byte("secret")}, "error"},
		{wire.File{Do: wire.FileOpen, Place: 1, Path: []byte("secret")}, "error"},
		{wire.File{Do: wire.FileOpen, Place: 2, Path: []byte("../secret")}, "error"},
		{wire.File{Do: wire.FileOpen, Path: []byte(".")}, "error"},
		{wire.File{Do: wire.FileOpen, Path: []byte("sub/../../bob/open/f")}, "error"},
		{wire.File{Do: wire.FileOpen, Path: []byte("../bob/open/f")}, "error"},
		{wire.File{Do: wire.FileOpen, Path: []byte("/etc/passwd")}, "error"},
		{wire.File{Do: wire.FileOpen, Path: []byte("link/f")}, "error"},
		{wire.File{Do: wire.FileOpen, Path: []byte("sub/link")}, "error"},
		{wire.File{Do: wire.FileOpen, Path: []byte("f\x00")}, "error"},
		{wire.File{Do: wire.FileOpen, Path: []byte("")}, "error"},
		{wire.File{Do: wire.FileLstat, Path: []byte("..")}, "error"},
		{wire.File{Do: wire.FileList, Path: []byte("..")}, "error"},
		{wire.File{Do: wire.FileList, Path: []byte("link")}, "error"},
		{wire.File{Do: wire.FileList, Path: []byte("f")}, "error"},
		{wire.File{Do: wire.FileOpen, Place: 3, Path: []byte(".")}, "error"},
		{wire.File{Do: wire.FileOpen, Place: -1, Path: []byte(".")}, "error"},
		{wire.File{Do: "chmod", Path: []byte("f")}, "error"},
		{wire.File{Do: wire.FileScratch, Number: 7}, "error"},
		{wire.File{Do: wire.FileScratch}, "error"},
		{wire.File{Do: wire.FileRemove, Number: 7}, "error"},
	} {
		out, err := execute(c.ask)
		must(t, err)
		_, got, _ := strings.Cut(string(out.Stdout.Inline), ": ")
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("%s %q of %d: %s, want %s", c.ask.Do, c.ask.Path, c.ask.Place, got, c.want)
		}
	}
	// It has no more of the kernel's memory than goes with its task.
	for ask, want := range map[string]string{"map": "map: cannot allocate memory\n", "events": "events: true\n"} {
		out, err := execute(wire.File{Do: ask})
		must(t, err)
		if got := string(out.Stdout.Inline); got != want {
			t.Errorf("%s: %s", ask, got)
		}
	}
	// Nor does it get more by what it asks for ahead: up to what it may not have.
	ahead := func(names ...string) []byte {
		out, err := execute(wire.File{Do: wire.FileOpen, Path: []byte("f"), Ahead: wire.Bytes(names)})
		must(t, err)
		return out.Stdout.Inline
	}
	const closed = " write: write file: bad file descriptor"
	for _, no := range []string{"secret", "../bob/open/f", "link/f", ".", strings.Repeat("x", executor.MaxPathBytes+1)} {
		if got, want := string(ahead("sub/f", "group", no, "f")), `open f: done "f\n"`+closed+` "f\n"`+closed+` "group\n"`+closed+"\n"; got != want {
			t.Errorf("ahead up to %.20s: %s, want %s", no, got, want)
		}
	}
	if got := ahead(slices.Repeat([]string{"f"}, wire.MaxAhead)...); strings.Count(string(got), closed) != 1+wire.MaxAhead {
		t.Errorf("as many ahead as may be: %s", got)
	}
	if out, err := execute(wire.File{Do: wire.FileOpen, Path: []byte("f"), Ahead: make([][]byte, wire.MaxAhead+1)}); err == nil {
		t.Errorf("more ahead than may be: %+v", out)
	}
	// Nor more scratch files than its task may have files, unless it removes some.
	var scratch []wire.File
	for n := range 21 {
		scratch = append(scratch, wire.File{Do: wire.FileCreate, Number: n + 1})
	}
	scratch = append(scratch, wire.File{Do: wire.FileRemove, Number: 7}, wire.File{Do: wire.FileCreate, Number: 22}, wire.File{Do: wire.FileCreate, Number: 23})
	out, err := execute(scratch...)
	must(t, err)
	const one, refused = "create : done \"\" write: <nil>\n", "create : error"
	if got := string(out.Stdout.Inline); !strings.HasPrefix(got, strings.Repeat(one, 20)+refused) || strings.Count(got, one) != 21 || strings.Count(got, refused) != 2 {
		t.Errorf("scratch files: %s", got)
	}
	// Who does not take what it is sent does not have the executor wait, nor keep many files open.
	asks := make([]wire.File, 20)
	for i := range asks {
		asks[i] = wire.File{Do: wire.FileOpen, Path: []byte("f"), Number: -1}
	}
	if out, err := execute(asks...); err == nil {
		t.Errorf("%+v", out)
	}
	if _, err := execute(wire.File{Do: wire.FileOpen, Path: make([]byte, executor.MaxPathBytes+1)}); err == nil {
		t.Error("a path without end was taken")
	}
	if b, err := os.ReadFile(at("alice/f")); err != nil || string(b) != "f\n" {
		t.Errorf("%q, %v", b, err)
	}
}
