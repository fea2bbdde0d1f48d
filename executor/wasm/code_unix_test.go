//go:build unix

package wasm

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/component"
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

// TestCodeOfTheStub: what was compiled of a module's stub, where the module's should be, is not run, nor what has no checksum.
func TestCodeOfTheStub(t *testing.T) {
	cfg := Config{Module: []byte(nothing), CodeDir: filepath.Join(t.TempDir(), "code"), MaxParallel: 1}
	run(t, openShell(t, cfg), uncached("x"))
	files, err := filepath.Glob(filepath.Join(cfg.CodeDir, "*", "wazero-*", "*"))
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("there are %q", files)
	}
	name := files[0]
	sum := filepath.Join(filepath.Dir(filepath.Dir(name)), filepath.Base(name)+".sum")
	good, err := os.ReadFile(name)
	must(t, err)
	sums, err := os.ReadFile(sum)
	must(t, err)

	stub, err := component.Stub(cfg.Module)
	must(t, err)
	other := t.TempDir()
	c, err := wazero.NewCompilationCacheWithDir(other)
	must(t, err)
	rt := wazero.NewRuntimeWithConfig(t.Context(), wazero.NewRuntimeConfig().WithMemoryLimitPages(65536).WithCompilationCache(c))
	_, err = rt.CompileModule(t.Context(), stub)
	must(t, errors.Join(err, rt.Close(t.Context()), c.Close(t.Context())))
	of, err := filepath.Glob(filepath.Join(other, "*", filepath.Base(name))) // the stub has this name
	must(t, err)
	bad, err := os.ReadFile(of[0])
	must(t, err)
	version := func(b []byte) int { return len("WAZEVO") + 1 + int(b[len("WAZEVO")]) } // is where wazero's version ends, which a test may have another of
	bad = slices.Concat(good[:version(good)], bad[version(bad):])
	_, mark, _ := strings.Cut(string(sums), " ")
	sumOfBad := fmt.Sprintf("%d-%08x", len(bad), crc32.Checksum(bad, crc32.MakeTable(crc32.Castagnoli)))
	for what, sums := range map[string]string{"with its checksum": sumOfBad + " " + mark, "with another's": string(sums), "with none of its code": sumOfBad} {
		must(t, os.WriteFile(name, bad, 0o600))
		must(t, os.WriteFile(sum, []byte(sums), 0o600))
		if out := run(t, openShell(t, cfg), uncached("x")); !out.Success() {
			t.Errorf("%s: %+v", what, out)
		}
		if is, err := os.ReadFile(name); err != nil || !bytes.Equal(is, good) {
			t.Errorf("%s: the module was not compiled anew: %v", what, err)
		}
	}
}

// TestCodeOfBoth: code for one clock and for the other are in one directory, and neither is made twice.
func TestCodeOfBoth(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "code")
	files := func() (all []os.FileInfo) {
		names, err := filepath.Glob(filepath.Join(dir, "*", "wazero-*", "*"))
		must(t, err)
		for _, name := range names {
			fi, err := os.Stat(name)
			must(t, err)
			all = append(all, fi)
		}
		return all
	}
	var first []os.FileInfo
	for range 2 {
		for _, realClock := range []bool{false, true} {
			run(t, openShell(t, Config{CodeDir: dir, RealClock: realClock}), uncached("echo fine"))
		}
		if first == nil {
			first = files()
		}
	}
	second := files()
	if len(first) != 2 || len(second) != 2 || !os.SameFile(first[0], second[0]) || !os.SameFile(first[1], second[1]) {
		t.Errorf("%v, then %v", first, second)
	}
}

// TestCodeHalfMade: what a worker that was killed left of its work goes, once nobody can be at it.
func TestCodeHalfMade(t *testing.T) {
	cfg := Config{Module: []byte(nothing), CodeDir: filepath.Join(t.TempDir(), "code")}
	e := openShell(t, cfg)
	run(t, e, uncached("x"))
	left, at := filepath.Join(e.cfg.code, "new-1"), filepath.Join(e.cfg.code, "new-2")
	for _, d := range []string{left, at} {
		must(t, os.MkdirAll(filepath.Join(d, "module", "wazero-0"), 0o700))
	}
	long := time.Now().Add(-2 * time.Hour)
	must(t, os.Chtimes(left, long, long))
	files, err := filepath.Glob(filepath.Join(e.cfg.code, "wazero-*", "*"))
	must(t, err)
	must(t, os.Remove(files[0])) // its checksum is there before it, too
	run(t, openShell(t, cfg), uncached("x"))
	if _, err := os.Stat(files[0]); err != nil {
		t.Error(err)
	}
	all, err := filepath.Glob(filepath.Join(e.cfg.code, "new-*"))
	must(t, err)
	if !slices.Equal(all, []string{at}) {
		t.Errorf("there are %q", all)
	}
}
