package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/pool"
)

// TestRunWasmModule: what is no module says so. What runs is in package integration.
func TestRunWasmModule(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"m.wasm is empty; name a": "", "m.wasm is no WebAssembly module; name a": "\x7fELF", "m.wasm is WebAssembly as text, of which wat2wasm": " \n(module)",
		"it does not begin as one": "\x00asm", "exports neither _start": "\x00asm\x01\x00\x00\x00",
	} {
		file := filepath.Join(dir, "m.wasm")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		e, _, errs := testEnv("run", "--backend", "wasm", "--cache-dir", filepath.Join(dir, "cache"), "--component", file, "--workdir", "none", "-c", "true")
		if code := run(context.Background(), e); code != exitSandboxd || !strings.Contains(errs.String(), name) {
			t.Errorf("exit %d, %q; want %s", code, errs, name)
		}
	}
}

// TestRunWasmNoFile: what is no file is not waited for, nor read to its end.
func TestRunWasmNoFile(t *testing.T) {
	dir := t.TempDir()
	huge := filepath.Join(dir, "huge")
	if err := os.WriteFile(huge, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(huge, 1<<40); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{dir: " is no file; name a", os.DevNull: " is no file; name a", huge: "huge is larger than 268435456 bytes", filepath.Join(dir, "none"): "none"} {
		e, _, errs := testEnv("run", "--backend", "wasm", "--cache-dir", filepath.Join(dir, "cache"), "--component", file, "--workdir", "none", "-c", "true")
		if code := run(context.Background(), e); code != exitSandboxd || !strings.Contains(errs.String(), "sandboxd: component: ") || !strings.Contains(errs.String(), want) {
			t.Errorf("exit %d, %q; want %s", code, errs, want)
		}
	}
}

// TestRunWasmNoHome: whoever has no directory of their own is told what to name.
func TestRunWasmNoHome(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"HOME", "XDG_CACHE_HOME", "LocalAppData"} {
		t.Setenv(k, filepath.Join(file, "none"))
	}
	e, _, errs := testEnv("run", "--backend", "wasm", "-c", "true")
	if code := run(context.Background(), e); code != exitSandboxd || !strings.Contains(errs.String(), "file") || !strings.Contains(errs.String(), "name a directory with --cache-dir") {
		t.Errorf("exit %d, %q", code, errs)
	}
}

// TestRunWasmClock: the flag goes before the configuration, whatever it says.
func TestRunWasmClock(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.toml")
	if err := os.WriteFile(file, []byte("[wasm]\nreal_clock = true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want bool
	}{
		{nil, false}, {[]string{"--wasm-real-clock"}, true},
		{[]string{"--config", file}, true}, {[]string{"--config", file, "--wasm-real-clock=false"}, false},
	} {
		e, _, errs := testEnv(append([]string{"run", "--backend", "wasm", "--cache-dir", filepath.Join(dir, "cache"), "-c", "x"}, c.args...)...)
		e.parts.openWasm = func(_ context.Context, got config, _ string, _ logrus.FieldLogger) (withBlobs, error) {
			if got.Wasm.RealClock != c.want {
				t.Errorf("%q: %t", c.args, got.Wasm.RealClock)
			}
			return &scripted{run: func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
				return &executor.TaskOutput{Cause: executor.CauseExited}, nil
			}}, nil
		}
		if code := run(context.Background(), e); code != 0 {
			t.Errorf("%q: exit %d, %s", c.args, code, errs)
		}
	}
}

// TestRunAuto: the daemon where one answers, else a sandbox of this process, else WebAssembly: which is allowed, and told.
func TestRunAuto(t *testing.T) {
	dir := socketDir(t)
	ran := func(where string) *scripted {
		return &scripted{run: func(_ context.Context, s *executor.TaskSpec) (*executor.TaskOutput, error) {
			if !slices.Equal(s.Platforms, []string{executor.PlatformNative, executor.PlatformWasm}) {
				t.Errorf("at %s: platforms %q", where, s.Platforms)
			}
			return &executor.TaskOutput{Cause: executor.CauseExited, Stdout: executor.Stream{Inline: []byte(where)}, Platform: map[string]string{"wasm": executor.PlatformWasm}[where]}, nil
		}}
	}
	d := startDaemon(t, ran("daemon"))
	none := filepath.Join(dir, "none")
	cannot := executor.Errorf(executor.Unsupported, "no sandboxes here")
	for name, c := range map[string]struct {
		socket string // of the environment
		root   bool
		local  error
		want   string
		said   string
	}{
		"a daemon":               {d.socket, false, nil, "daemon", ""},
		"a daemon, and root":     {d.socket, true, nil, "daemon", ""},
		"root":                   {none, true, nil, "local", ""},
		"root in a container":    {none, true, cannot, "wasm", "runs in WebAssembly: no sandboxes here"},
		"root with a full disk":  {none, true, errors.New("the disk is full"), "", "sandboxd: the disk is full"},
		"another user":           {none, false, nil, "wasm", "runs in WebAssembly: no daemon answers at " + none},
		"root, and no --backend": {"", true, cannot, "", "sandboxd: no sandboxes here"},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"run", "--backend", "auto", "--cache-dir", filepath.Join(t.TempDir(), "cache"), "-c", "x"}
			if c.socket == "" {
				args = slices.Delete(args, 1, 3)
			}
			e, out, errs := testEnv(args...)
			e.root = c.root
			e.getenv = func(k string) string { return map[string]string{socketEnv: c.socket}[k] }
			e.parts.openHost = func(_ context.Context, got config, _ logrus.FieldLogger) (host, error) {
				if got.Backend != pool.Local || got.Platforms != nil || got.Executors != nil {
					t.Errorf("%+v", got)
				}
				return ran("local"), c.local
			}
			e.parts.openWasm = func(context.Context, config, string, logrus.FieldLogger) (withBlobs, error) { return ran("wasm"), nil }
			code := run(context.Background(), e)
			if ok := c.want != ""; ok != (code == 0) || out.String() != c.want || !strings.Contains(errs.String(), c.said) {
				t.Errorf("exit %d, %q, %q", code, out, errs)
			}
			if told := strings.Contains(errs.String(), "wasip1/wasm, run)"); told != (c.want == "wasm") {
				t.Errorf("the closing line: %q", errs)
			}
		})
	}
}
