package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm"
)

// backendWasm is the value of --backend that has a task run in WebAssembly, in this process.
const backendWasm = "wasm"

// backendAuto has it run in WebAssembly where there is no sandbox to be had.
const backendAuto = "auto"

// maxModuleBytes bounds a module's file.
const maxModuleBytes = 256 << 20

// wasmHost is an Executor with its cache.
type wasmHost struct {
	*wasm.Executor
	store *cache.Cache
}

func (h wasmHost) reconfigure(c config) {
	h.Reconfigure(c.rules)
	h.store.SetMaxBytes(int64(c.CacheMaxBytes))
}

// Close implements executor.Executor.
func (h wasmHost) Close(ctx context.Context) error {
	return errors.Join(h.Executor.Close(ctx), h.store.Close())
}

func openWasm(_ context.Context, c config, module string, log logrus.FieldLogger) (wasmHost, error) {
	cfg := wasm.Config{
		StateDir: c.StateDir, CodeDir: c.Wasm.CodeDir, MaxParallel: c.MaxParallel, RealClock: c.Wasm.RealClock, Access: c.rules, Logger: log, Version: buildVersion(),
	}
	var err error
	if module != "" {
		if cfg.Module, err = readModule(module); err != nil {
			return wasmHost{}, err
		}
	}
	if cfg.CodeDir == "" {
		cfg.CodeDir = filepath.Join(c.CacheDir, "wasm")
	}
	if cfg.Cache, err = openCache(c, log); err != nil {
		return wasmHost{}, err
	}
	e, err := wasm.New(cfg)
	if err != nil {
		return wasmHost{}, errors.Join(err, cfg.Cache.Close())
	}
	return wasmHost{e, cfg.Cache}, nil
}

// checkWasm runs a task in the embedded shell, which it compiles.
func checkWasm(ctx context.Context, c config) []finding {
	f := finding{Name: "task in WebAssembly", Required: true}
	took, lacks, err := trialWasm(ctx, c)
	if err != nil {
		f.Detail, f.Remedy = err.Error(), "mend what is named"
		return []finding{f}
	}
	f.OK, f.Detail = true, fmt.Sprintf("ran in %v", took.Round(time.Millisecond))
	walls := finding{Name: "what keeps WebAssembly workers from the machine", OK: lacks == "", Detail: "all stands"}
	if lacks != "" {
		walls.Detail, walls.Remedy = "missing: "+lacks, "run it on Linux, as root or where users may make user namespaces; meanwhile tasks of other users are refused"
	}
	return []finding{f, walls}
}

// trialWasm also returns what workers lack.
func trialWasm(ctx context.Context, c config) (took time.Duration, lacks string, err error) {
	dir, err := os.MkdirTemp("", "sandboxd-check-")
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c.StateDir, c.CacheDir, c.Wasm.CodeDir, c.MaxParallel = "", filepath.Join(dir, "cache"), "", 1
	h, err := openWasm(ctx, c, "", logrus.StandardLogger())
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, closeWithin(cleanupTime, h.Close)) }()
	began := time.Now()
	out, err := h.Execute(ctx, &executor.TaskSpec{Name: "check", Script: "echo done"})
	if err == nil && !out.Success() {
		err = fmt.Errorf("a task ended with %s, exit code %d: %s", out.Cause, out.ExitCode, out.Stderr.Inline)
	}
	return time.Since(began), h.Lacks(), err
}

// readModule reads a file that is WebAssembly, by its first bytes at least.
func readModule(file string) ([]byte, error) {
	b, err := moduleBytes(file)
	if err != nil {
		return nil, executor.FieldErrorf("component", "%w; name a WebAssembly module or component", err)
	}
	return b, nil
}

func moduleBytes(file string) ([]byte, error) {
	fi, err := os.Stat(file) // who opens a FIFO may wait for good
	switch {
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file", file)
	case fi.Size() > maxModuleBytes:
		return nil, fmt.Errorf("%s is larger than %d bytes", file, maxModuleBytes)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxModuleBytes))
	switch text := bytes.TrimLeft(b[:min(len(b), 100)], " \t\r\n"); {
	case err != nil:
		return nil, err
	case len(b) == 0:
		return nil, fmt.Errorf("%s is empty", file)
	case bytes.HasPrefix(text, []byte("(module")), bytes.HasPrefix(text, []byte("(component")):
		return nil, fmt.Errorf("%s is WebAssembly as text, of which wat2wasm or wasm-tools make what runs", file)
	case !bytes.HasPrefix(b, []byte("\x00asm")):
		return nil, fmt.Errorf("%s is no WebAssembly module", file)
	}
	return b, nil
}

// openRunWasm is openLocal in WebAssembly, for any user: whose cache is their own.
func (e *env) openRunWasm(ctx context.Context, how runFlags) (backend, error) {
	c, err := readConfig(how.configFile, e.configFile)
	if err != nil {
		return nil, err
	}
	if how.cacheDir == "" && !e.root {
		if how.cacheDir, err = userCacheDir(); err != nil {
			return nil, err
		}
	}
	if how.cacheDir != "" {
		if c.CacheDir, err = filepath.Abs(how.cacheDir); err != nil {
			return nil, err
		}
	}
	if err := c.validateCaches(); err != nil {
		return nil, err
	}
	c.StateDir = "" // which is one daemon's
	c.MaxParallel = 1
	if how.clockSaid {
		c.Wasm.RealClock = how.realClock
	}
	h, err := e.parts.openWasm(ctx, c, how.component, e.logger(logrus.WarnLevel))
	if err != nil {
		return nil, err
	}
	return localBackend{h}, nil
}

// userCacheDir is where a user's own cache is.
func userCacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return "", fmt.Errorf("%w; name a directory with --cache-dir", err)
	}
	return filepath.Join(dir, "sandboxd"), nil
}
