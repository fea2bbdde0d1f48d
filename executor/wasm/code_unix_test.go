//go:build unix

package wasm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestCodeIsOurs: compiled code that somebody else may have written is not run.
func TestCodeIsOurs(t *testing.T) {
	c, err := cache.Open(filepath.Join(t.TempDir(), "cache"), cache.Config{})
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	dir := filepath.Join(t.TempDir(), "code")
	cfg := Config{Cache: c, CodeDir: dir, Module: guestModule(t), MaxParallel: 1}
	run(t, openExecutor(t, cfg), uncached("echo fine"))
	files, err := filepath.Glob(filepath.Join(dir, "*", "wazero-*", "*"))
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("there are %q", files)
	}
	file, sub := files[0], filepath.Dir(files[0])
	refused := func(what, want string) {
		t.Helper()
		if e, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want %q", what, e, err, want)
		}
	}
	for _, p := range []string{dir, filepath.Dir(sub), sub, file} {
		fi, err := os.Stat(p)
		must(t, err)
		for _, others := range []os.FileMode{0o020, 0o002} {
			must(t, os.Chmod(p, fi.Mode().Perm()|others))
			refused(p, p+" has mode")
		}
		must(t, os.Chmod(p, fi.Mode().Perm()))
	}
	must(t, os.Symlink(file, sub+"/link"))
	refused("a link", "is no file")
	must(t, os.Remove(sub+"/link"))
	t.Run("owner", func(t *testing.T) {
		testutil.RequireRoot(t)
		for _, p := range []string{dir, filepath.Dir(sub), sub, file} {
			must(t, os.Chown(p, 1234, -1))
			refused(p, p+" belongs to user 1234")
			must(t, os.Chown(p, 0, -1))
		}
	})
	if out := run(t, openExecutor(t, cfg), uncached("echo fine")); !out.Success() {
		t.Errorf("when all is well again: %+v", out)
	}
}

// TestCodeStaysOurs: that is looked at for each worker.
func TestCodeStaysOurs(t *testing.T) {
	e := openShell(t, Config{Module: []byte(nothing), CodeDir: filepath.Join(t.TempDir(), "code")})
	run(t, e, uncached("x"))
	must(t, os.Chmod(e.cfg.code, 0o777))
	s := <-e.seats
	s.worker.kill()
	e.seats <- s
	if out, err := e.Execute(t.Context(), uncached("x")); executor.KindOf(err) != executor.Unavailable || !strings.Contains(err.Error(), e.cfg.code+" has mode") {
		t.Errorf("%+v, %v", out, err)
	}
	must(t, os.Chmod(e.cfg.code, 0o700))
	for { // one may have been started before that
		if out, err := e.Execute(t.Context(), uncached("x")); err == nil {
			if !out.Success() {
				t.Errorf("%+v", out)
			}
			break
		} else if executor.KindOf(err) != executor.Unavailable {
			t.Fatal(err)
		}
	}
}

// TestCodeIsDamaged: what cannot be read is compiled anew.
func TestCodeIsDamaged(t *testing.T) {
	cfg := Config{CodeDir: filepath.Join(t.TempDir(), "code")}
	run(t, openExecutor(t, cfg), uncached("echo fine"))
	files, err := filepath.Glob(filepath.Join(cfg.CodeDir, "*", "wazero-*", "*"))
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("there are %q", files)
	}
	whole, err := os.ReadFile(files[0])
	must(t, err)
	flipped := append([]byte{}, whole...)
	flipped[len(flipped)/2] ^= 1
	zeros := append([]byte{}, whole...)
	clear(zeros[4096:8192]) // where functions begin
	for what, b := range map[string][]byte{"zeros": zeros, "cut short": whole[:len(whole)-1000], "cut shorter": whole[:20], "empty": nil, "a bit": flipped} {
		must(t, os.WriteFile(files[0], b, 0o600))
		if out := run(t, openExecutor(t, cfg), uncached("echo fine")); string(out.Stdout.Inline) != "fine\n" {
			t.Errorf("%s: %+v", what, out)
		}
		if again, err := os.ReadFile(files[0]); err != nil || len(again) != len(whole) {
			t.Errorf("%s: what is kept has %d bytes after it, and had %d: %v", what, len(again), len(whole), err)
		}
	}
}

// TestCodeIsForgotten: what nobody used for a month goes, and nothing else.
func TestCodeIsForgotten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "code")
	must(t, os.Mkdir(dir, 0o700))
	long := time.Now().Add(-unused - time.Hour)
	names := map[string]bool{strings.Repeat("0a", 32): false, strings.Repeat("0b", 32): true, "theirs": true}
	for name, stays := range names {
		must(t, os.MkdirAll(filepath.Join(dir, name, "wazero-0"), 0o700))
		if !stays || name == "theirs" {
			must(t, os.Chtimes(filepath.Join(dir, name), long, long))
		}
	}
	run(t, openExecutor(t, Config{CodeDir: dir}), uncached("echo fine"))
	for name, stays := range names {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCodeInUseStays: the code of an executor that is there is not old, whenever it was made.
func TestCodeInUseStays(t *testing.T) {
	e := openShell(t, Config{Module: []byte(nothing), CodeDir: filepath.Join(t.TempDir(), "code"), touching: time.Millisecond})
	run(t, e, uncached("x"))
	long := time.Now().Add(-unused - time.Hour)
	must(t, os.Chtimes(e.cfg.code, long, long))
	for {
		fi, err := os.Stat(e.cfg.code)
		must(t, err)
		if fi.ModTime().After(long.Add(unused)) {
			break
		}
	}
	other := openShell(t, Config{Module: tables, CodeDir: e.cfg.CodeDir})
	if other.cfg.code == e.cfg.code {
		t.Fatal("both have one directory")
	}
	if _, err := os.Stat(e.cfg.code); err != nil {
		t.Error(err)
	}
}
