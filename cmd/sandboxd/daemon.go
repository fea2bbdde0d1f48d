package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/local"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/pool"
)

// parts are what the commands are put together from. Only systemParts knows
// which they are.
type parts struct {
	// openHost makes what runs tasks here. Its Close unmakes all of it.
	openHost func(ctx context.Context, c config, log logrus.FieldLogger) (host, error)
	// openWasm makes what runs tasks in WebAssembly, by a module's file or where that is empty by the
	// embedded shell. Its Close unmakes all of it.
	openWasm func(ctx context.Context, c config, module string, log logrus.FieldLogger) (withBlobs, error)
	// newServer offers a host on a socket.
	newServer func(h host, log logrus.FieldLogger) server
	// dial reaches a server.
	dial func(ctx context.Context, socket string) (backend, error)
	// check looks at what this machine can do.
	check func(ctx context.Context, c config) []finding
}

// host runs tasks on this machine and holds their blobs.
type host interface {
	withBlobs
	// Healthy returns an error where no task can be started, and does not return where
	// that would hang.
	Healthy() error
	// Reconfigure takes over what of c can change while tasks run.
	Reconfigure(c config)
	// Refuse answers the tasks that wait, and all that come later, with Unavailable.
	Refuse()
}

// withBlobs runs tasks and holds their blobs.
type withBlobs interface {
	executor.Executor
	OpenBlob(ctx context.Context, d executor.Digest) (io.ReadCloser, error)
}

// server is an rpc.Server.
type server interface {
	// Serve answers connections to l, which it closes, until Shutdown.
	Serve(l net.Listener) error
	// Shutdown lets tasks end until ctx does, then cancels them.
	Shutdown(ctx context.Context) error
}

// backend runs tasks somewhere and brings back their blobs.
type backend interface {
	executor.Executor
	ReadBlob(ctx context.Context, d executor.Digest, w io.Writer) error
}

func systemParts() parts {
	return parts{openHost: openHost, openWasm: openWasmAlone, newServer: newServer, dial: dial, check: check}
}

func openWasmAlone(ctx context.Context, c config, module string, log logrus.FieldLogger) (withBlobs, error) {
	return openWasm(ctx, c, module, log)
}

// A task's way, from the socket to the sandbox and back:
//
//	rpc.Server → executor.Serve → logged → pool.Pool → local.Executor → cache, sandbox

func openHost(ctx context.Context, c config, log logrus.FieldLogger) (host, error) {
	h := &pooled{config: c, log: log, open: map[string]member{}}
	p, err := pool.New(ctx, pool.Config{Executors: c.executors(), Platforms: c.Platforms, Open: h.openExecutor, MayRaise: h.mayRaise, Logger: log})
	if err != nil {
		return nil, err
	}
	h.Pool = p
	return h, nil
}

// pooled is a Pool of what the configuration says.
type pooled struct {
	*pool.Pool
	log logrus.FieldLogger

	mu     sync.Mutex
	config config
	open   map[string]member // by name, the last that was opened
}

// member is one of a pool's executors, with its cache.
type member interface {
	executor.Executor
	reconfigure(c config)
}

// openExecutor opens a backend.
func (h *pooled) openExecutor(ctx context.Context, e pool.ExecutorConfig) (executor.Executor, error) {
	c := h.current()
	c.StateDir, c.CacheDir, c.MaxParallel = e.StateDir, e.CacheDir, e.MaxParallel
	var m member
	var err error
	switch e.Backend {
	case pool.Local:
		m, err = openLocal(c, h.log)
	case pool.Wasm:
		m, err = openWasm(ctx, c, e.ComponentPath, h.log)
	default:
		return nil, executor.Errorf(executor.Unsupported, "this version has no backend %s; use local or wasm, or remove the executor from the configuration", e.Backend)
	}
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open[e.Name] = m
	m.reconfigure(h.config) // which may have changed meanwhile
	return m, nil
}

func openLocal(c config, log logrus.FieldLogger) (member, error) {
	store, err := openCache(c, log)
	if err != nil {
		return nil, err
	}
	cfg, err := localConfig(c)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	cfg.Cache, cfg.Logger = store, log
	x, err := local.New(cfg)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return localHost{x, store}, nil
}

// current is the configuration that is in force.
func (h *pooled) current() config {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.config
}

func (h *pooled) mayRaise(c executor.Caller) int { return h.current().rules.Priority(c) }

// Reconfigure implements host.
func (h *pooled) Reconfigure(c config) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.config = c
	for _, l := range h.open {
		l.reconfigure(c)
	}
}

func openCache(c config, log logrus.FieldLogger) (*cache.Cache, error) {
	store, err := cache.Open(c.CacheDir, cache.Config{MaxBytes: int64(c.CacheMaxBytes), OnCorrupt: func(d cache.Digest) {
		log.WithField("digest", d.String()).Warn("a blob of the cache was damaged and is removed; look after its disk, and run sandboxd cache verify")
	}})
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	return store, nil
}

// localHost is an Executor with its cache.
type localHost struct {
	*local.Executor
	store *cache.Cache
}

func (l localHost) reconfigure(c config) {
	l.Reconfigure(c.rules)
	l.store.SetMaxBytes(int64(c.CacheMaxBytes))
}

// Close implements executor.Executor.
func (l localHost) Close(ctx context.Context) error {
	return errors.Join(l.Executor.Close(ctx), l.store.Close())
}

func localConfig(c config) (local.Config, error) {
	deny, err := c.Network.prefixes()
	return local.Config{
		Deny:            deny,
		ResolvConf:      c.Network.ResolvConf,
		StateDir:        c.StateDir,
		MaxParallel:     c.MaxParallel,
		Warm:            c.Warm,
		Version:         buildVersion(),
		AllowUnenforced: c.Limits.AllowUnenforced,
		CgroupParent:    c.Limits.CgroupParent,
		Access:          c.rules,
	}, err
}

func newServer(h host, log logrus.FieldLogger) server {
	return rpc.NewServer(rpc.ServerConfig{Executor: h, Blobs: h, Logger: log})
}

func dial(ctx context.Context, socket string) (backend, error) {
	c, err := rpc.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func check(ctx context.Context, c config) []finding {
	cfg, err := localConfig(c)
	if err != nil {
		return []finding{{Name: "configuration", Detail: err.Error(), Required: true}}
	}
	var out []finding
	seen := map[string]bool{} // the directories beside which a task was tried
	wasm := false
	for _, e := range c.executors() {
		wasm = wasm || e.Backend == pool.Wasm || e.Backend == pool.Auto
		if e.Backend != pool.Local && e.Backend != pool.Auto || seen[filepath.Dir(e.StateDir)] {
			continue
		}
		prefix := ""
		if len(seen) > 0 {
			prefix = "executor " + e.Name + ": "
		}
		seen[filepath.Dir(e.StateDir)] = true
		cfg.StateDir = e.StateDir
		for _, f := range local.Check(ctx, cfg) {
			out = append(out, finding{Name: prefix + f.Name, OK: f.OK, Detail: f.Detail, Remedy: f.Remedy, Required: f.Required && e.Backend == pool.Local})
		}
	}
	short := slices.ContainsFunc(out, func(f finding) bool { return f.Required && !f.OK })
	if wasm || short {
		all := checkWasm(ctx, c)
		if !wasm { // it is what can be had in place of a sandbox
			all[0].Required = false
			if all[0].OK {
				all[0].Detail += `, by run --backend wasm, or a daemon with backend = "wasm" or "auto"`
			}
		}
		out = append(out, all...)
	}
	return out
}

// localBackend runs tasks in this process.
type localBackend struct{ withBlobs }

// ReadBlob implements backend.
func (l localBackend) ReadBlob(ctx context.Context, d executor.Digest, w io.Writer) (err error) {
	r, err := l.OpenBlob(ctx, d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	_, err = io.Copy(w, r)
	return err
}
