package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/local"
	"github.com/sandboxd/sandboxd/executor/rpc"
)

// parts are what the commands are put together from. Only systemParts knows
// which they are.
type parts struct {
	// openHost makes what runs tasks here. Its Close unmakes all of it.
	openHost func(ctx context.Context, c config, log logrus.FieldLogger) (host, error)
	// openWasm makes what runs tasks in WebAssembly, by a module's file or where that is empty by the
	// embedded shell. Its Close unmakes all of it.
	openWasm func(ctx context.Context, c config, module string, log logrus.FieldLogger) (host, error)
	// newServer offers a host on a socket.
	newServer func(h host, log logrus.FieldLogger) server
	// dial reaches a server.
	dial func(ctx context.Context, socket string) (backend, error)
	// check looks at what this machine can do.
	check func(ctx context.Context, c config) []finding
}

// host runs tasks on this machine and holds their blobs.
type host interface {
	executor.Executor
	OpenBlob(ctx context.Context, d executor.Digest) (io.ReadCloser, error)
	// Healthy returns an error where no task can be started, and does not return where
	// that would hang.
	Healthy() error
	// Reconfigure takes over what of c can change while tasks run.
	Reconfigure(c config)
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
	return parts{openHost: openHost, openWasm: openWasm, newServer: newServer, dial: dial, check: check}
}

// A task's way, from the socket to the sandbox and back:
//
//	rpc.Server → executor.Serve → logged → local.Executor → cache, sandbox

func openHost(_ context.Context, c config, log logrus.FieldLogger) (host, error) {
	store, err := openCache(c, log)
	if err != nil {
		return nil, err
	}
	cfg, err := localConfig(c)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	cfg.Cache, cfg.Logger = store, log
	h, err := local.New(cfg)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return localHost{h, store}, nil
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

// Reconfigure implements host.
func (h localHost) Reconfigure(c config) {
	h.Executor.Reconfigure(c.rules)
	h.store.SetMaxBytes(int64(c.CacheMaxBytes))
}

// Close implements executor.Executor.
func (h localHost) Close(ctx context.Context) error {
	return errors.Join(h.Executor.Close(ctx), h.store.Close())
}

func localConfig(c config) (local.Config, error) {
	deny, err := c.Network.prefixes()
	return local.Config{
		Deny:            deny,
		ResolvConf:      c.Network.ResolvConf,
		StateDir:        c.StateDir,
		MaxParallel:     c.MaxParallel,
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
	for _, f := range local.Check(ctx, cfg) {
		out = append(out, finding{Name: f.Name, OK: f.OK, Detail: f.Detail, Remedy: f.Remedy, Required: f.Required})
	}
	return out
}

// localBackend is a host in this process.
type localBackend struct{ host }

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
