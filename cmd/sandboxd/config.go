package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor/access"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/pool"
)

const (
	// socketEnv names the socket where --socket does not.
	socketEnv = "SANDBOXD_SOCKET"
	// maxConfigBytes is far more than any configuration has.
	maxConfigBytes = 1 << 20
	// maxDeny is what goes into each task's ruleset in one piece.
	maxDeny = 1024
)

// config is what the daemon, and run --local, can be told. The file sets it
// first, flags over it.
type config struct {
	// Socket is where the daemon listens.
	Socket string `toml:"socket"`
	// StateDir holds what lives as long as a task: layers, logs, roots.
	StateDir string `toml:"state_dir"`
	// CacheDir holds results and their blobs. CacheMaxBytes bounds them; it is a size.
	CacheDir      string `toml:"cache_dir"`
	CacheMaxBytes size   `toml:"cache_max_bytes"`
	// MaxParallel is how many tasks run at once; more wait. Default: the number of processors.
	MaxParallel int `toml:"max_parallel"`
	// Backend is of executors that do not say theirs: local, wasm, or auto, which is local where this machine makes
	// sandboxes and else wasm. Default: local.
	Backend pool.Backend `toml:"backend"`
	// Platforms are those of tasks that name none, in order. Default: the first executor's.
	Platforms []string `toml:"platforms"`
	// Warm is how many sandboxes are kept prepared for each kind of task that comes: for each network policy. 0 is
	// none. Default: twice the number of processors.
	Warm int `toml:"warm"`
	// ShutdownGrace is how long tasks may go on once the daemon is told to stop.
	ShutdownGrace duration `toml:"shutdown_grace"`
	// LogLevel is debug, info, warn or error.
	LogLevel string       `toml:"log_level"`
	Limits   limitsConfig `toml:"limits"`
	// Executors are what runs tasks, together. Default: one, local, that is what the keys above say.
	Executors []pool.ExecutorConfig `toml:"executor"`
	Access    []accessConfig        `toml:"access"`
	// rules is Access with its names looked up, by validate.
	rules   access.Rules
	Network networkConfig `toml:"network"`
	Wasm    wasmConfig    `toml:"wasm"`
}

type networkConfig struct {
	// Deny are addresses and CIDRs that no task reaches by the network policy controlled, whatever
	// its rules, beside the defaults: see netpolicy.DefaultDeny. The host's own addresses need not be
	// among them.
	Deny []string `toml:"deny"`
	// DenyDefaults is whether the defaults are denied, too. Default: true.
	DenyDefaults bool `toml:"deny_defaults"`
	// ResolvConf names the resolvers that such tasks' names are resolved by, as resolv.conf(5)
	// does. Default: the host's.
	ResolvConf string `toml:"resolv_conf"`
}

type wasmConfig struct {
	// CodeDir keeps compiled modules, which are native code: nobody else may write there. Default: wasm in
	// cache_dir.
	CodeDir string `toml:"code_dir"`
	// RealClock has tasks see the time, and randomness. Otherwise the time is that of
	// SOURCE_DATE_EPOCH in their environment, or fixed, so that the same task comes to the same result.
	RealClock bool `toml:"real_clock"`
}

// prefixes is all that is denied, and never nil.
func (n networkConfig) prefixes() ([]netip.Prefix, error) {
	if len(n.Deny) > maxDeny {
		return nil, fmt.Errorf("network.deny: has %d entries; use at most %d", len(n.Deny), maxDeny)
	}
	all := []netip.Prefix{}
	if n.DenyDefaults {
		all = netpolicy.DefaultDeny()
	}
	for _, s := range n.Deny {
		p, err := netpolicy.ParseDeny(s)
		if err != nil {
			return nil, fmt.Errorf("network.deny: %w", err)
		}
		all = append(all, p)
	}
	return all, nil
}

type limitsConfig struct {
	// AllowUnenforced runs tasks also where this host cannot enforce one of
	// their limits; otherwise they are refused.
	AllowUnenforced bool `toml:"allow_unenforced"`
	// CgroupParent is the control group below which tasks' groups are made, such as
	// /sandboxd. Default: chosen by where the daemon runs.
	CgroupParent string `toml:"cgroup_parent"`
}

func defaultConfig() config {
	return config{
		Socket:        defaultSocket,
		StateDir:      defaultStateDir,
		CacheDir:      defaultCacheDir,
		Backend:       pool.Local,
		CacheMaxBytes: 20 << 30,
		MaxParallel:   runtime.NumCPU(),
		Warm:          2 * runtime.NumCPU(),
		ShutdownGrace: duration{30 * time.Second},
		LogLevel:      "info",
		Network:       networkConfig{DenyDefaults: true},
	}
}

// executors are Executors with their defaults filled in: they share the cache, and have
// state directories of their own.
func (c config) executors() []pool.ExecutorConfig {
	if len(c.Executors) == 0 {
		return []pool.ExecutorConfig{{Name: string(c.Backend), Backend: c.Backend, StateDir: c.StateDir, CacheDir: c.CacheDir, MaxParallel: c.MaxParallel}}
	}
	all := slices.Clone(c.Executors)
	for i := range all {
		e := &all[i]
		if e.Backend == "" {
			e.Backend = c.Backend
		}
		if e.StateDir == "" {
			e.StateDir = filepath.Join(c.StateDir, "executors", e.Name)
		}
		if e.CacheDir == "" {
			e.CacheDir = c.CacheDir
		}
		if e.MaxParallel == 0 {
			e.MaxParallel = c.MaxParallel
		}
	}
	return all
}

// readConfig reads file over the defaults. Where file is empty, fallback is
// read instead if it exists.
func readConfig(file, fallback string) (config, error) {
	c := defaultConfig()
	named := file != ""
	if !named {
		file = fallback
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	switch {
	case err != nil:
		return c, fmt.Errorf("configuration: %w", err)
	case len(b) > maxConfigBytes:
		return c, fmt.Errorf("configuration: %s is larger than %d bytes; name the TOML file", file, maxConfigBytes)
	}
	if err := decodeConfig(b, &c); err != nil {
		return c, fmt.Errorf("%s:%w", file, err)
	}
	return c, nil
}

// decodeConfig returns errors that begin with line and column.
func decodeConfig(b []byte, c *config) error {
	err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		d := unknown.Errors[0]
		line, col := d.Position()
		return fmt.Errorf("%d:%d: key %q is unknown; correct or remove it", line, col, strings.Join(d.Key(), "."))
	}
	var d *toml.DecodeError
	if errors.As(err, &d) {
		line, col := d.Position()
		if key := strings.Join(d.Key(), "."); key != "" {
			return fmt.Errorf("%d:%d: key %q: %s; see README.md for what it takes", line, col, key, strings.TrimPrefix(d.Error(), "toml: "))
		}
		return fmt.Errorf("%d:%d: %s", line, col, strings.TrimPrefix(d.Error(), "toml: "))
	}
	if err != nil {
		return fmt.Errorf("1:1: %w", err)
	}
	return nil
}

// validateCaches is what of validate run --backend wasm needs: it has no socket, and other systems have other paths.
func (c *config) validateCaches() error {
	if c.Wasm.CodeDir != "" && !filepath.IsAbs(c.Wasm.CodeDir) {
		return fmt.Errorf("wasm.code_dir: %q is not an absolute path; write the whole of it", c.Wasm.CodeDir)
	}
	if c.CacheMaxBytes < 1<<20 {
		return fmt.Errorf("cache_max_bytes: %d is too small; use at least 1MiB", c.CacheMaxBytes)
	}
	return nil
}

// validate names the key, the value and the fix. It looks up the names in the access rules.
func (c *config) validate() error {
	for _, p := range []struct{ key, v string }{
		{"socket", c.Socket}, {"state_dir", c.StateDir}, {"cache_dir", c.CacheDir},
	} {
		if !filepath.IsAbs(p.v) {
			return fmt.Errorf("%s: %q is not an absolute path; write the whole of it", p.key, p.v)
		}
	}
	if len(c.Socket) > maxSocketPath {
		return fmt.Errorf("socket: %q is %d bytes long; the kernel takes few, use at most %d", c.Socket, len(c.Socket), maxSocketPath)
	}
	if c.StateDir == c.CacheDir {
		return fmt.Errorf("cache_dir: %q is the state_dir as well; use two directories", c.CacheDir)
	}
	if err := c.validateCaches(); err != nil {
		return err
	}
	if c.MaxParallel < 1 || c.MaxParallel > 4096 {
		return fmt.Errorf("max_parallel: %d is out of range; use 1 to 4096", c.MaxParallel)
	}
	if c.Warm < 0 || c.Warm > 1024 {
		return fmt.Errorf("warm: %d is out of range; use 0 to 1024", c.Warm)
	}
	if c.ShutdownGrace.Duration < 0 || c.ShutdownGrace.Duration > time.Hour {
		return fmt.Errorf("shutdown_grace: %v is out of range; use 0s to 1h", c.ShutdownGrace.Duration)
	}
	if b := c.Backend; b != pool.Local && b != pool.Wasm && b != pool.Auto {
		return fmt.Errorf("backend: %.80q is unknown; use local, wasm or auto", b)
	}
	executors := c.executors()
	if err := (pool.Config{Executors: executors, Platforms: c.Platforms}).Validate(); err != nil {
		return err
	}
	for _, e := range executors {
		if e.StateDir == e.CacheDir {
			return fmt.Errorf("executor %s: cache_dir: %q is the state_dir as well; use two directories", e.Name, e.CacheDir)
		}
	}
	if _, err := c.Network.prefixes(); err != nil {
		return err
	}
	if _, err := logrus.ParseLevel(c.LogLevel); err != nil {
		return fmt.Errorf("log_level: %q is unknown; use debug, info, warn or error", c.LogLevel)
	}
	rules, err := c.access()
	c.rules = rules
	return err
}

// duration is written as a string such as "1m30s". It is a struct so that a
// bare number, of which nobody can tell the unit, is refused.
type duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is not a duration; write one such as \"30s\" or \"5m\"", b)
	}
	d.Duration = v
	return nil
}

// size is a number of bytes, written bare or with a unit, see parseSize.
type size int64

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *size) UnmarshalText(b []byte) error {
	v, err := parseSize(string(b))
	*s = size(v)
	return err
}

// parseSize reads bytes as "4GiB", "512M" (the same as 512MiB) or "1048576".
func parseSize(s string) (int64, error) {
	v, err := units.RAMInBytes(s)
	if n, e := strconv.ParseInt(s, 10, 64); e == nil {
		v, err = n, nil // exact, where units goes by way of a float
	}
	if err != nil || v < 0 {
		return 0, fmt.Errorf("%q is not a size; write one such as 512M, 4GiB or 1048576", s)
	}
	return v, nil
}
