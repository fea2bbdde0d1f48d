package pool

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor"
)

// Bounds of a configuration.
const (
	// MaxExecutors is how many executors a Pool may have.
	MaxExecutors = 64
	// MaxParallel bounds ExecutorConfig.MaxParallel.
	MaxParallel = 4096
	// MaxWaiting bounds ExecutorConfig.ChannelBufferSize, and is its default.
	MaxWaiting = 65536
	// maxWaitingPerUser of these are one user's at most, and no more than half of them.
	maxWaitingPerUser = 4096
)

// Backend is what kind of executor one is.
type Backend string

const (
	// Local runs tasks on this machine: package local.
	Local Backend = "local"
	// Wasm runs them as WebAssembly.
	Wasm Backend = "wasm"
	// Remote sends them to a cluster.
	Remote Backend = "remote"
	// Auto is Local where that can be opened, and Wasm where its error is Unsupported: where this
	// machine makes no sandboxes. Capabilities and status tell which it is.
	Auto Backend = "auto"
)

// ExecutorConfig is one executor of a Pool, as an [[executor]] table of the daemon's
// configuration has it.
type ExecutorConfig struct {
	// Name tells it from the others, in the status and the log: letters, digits, - and _, 32 at most.
	Name string `toml:"name"`
	// Backend is what kind it is. Default: local.
	Backend Backend `toml:"backend"`
	// ComponentPath is the component of a wasm backend, an absolute path.
	ComponentPath string `toml:"component_path"`
	// Endpoint is where the cluster of a remote backend is.
	Endpoint string `toml:"endpoint"`
	// StateDir and CacheDir are absolute paths; empty is what whoever opens it chooses. No two executors
	// share a StateDir.
	StateDir string `toml:"state_dir"`
	CacheDir string `toml:"cache_dir"`
	// MaxParallel is how many of its tasks run at once; 0 is what it says itself in its Capabilities, and
	// more than that it never gets.
	MaxParallel int `toml:"max_parallel"`
	// ChannelBufferSize is how many tasks may wait on its behalf: the queue of a Pool holds as many as all its
	// executors' together. Default: MaxWaiting.
	ChannelBufferSize int `toml:"channel_buffer_size"`
	// Verbose logs each task that is sent to it and each answer, and not only at level debug.
	Verbose bool `toml:"verbose"`
}

var nameRule = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// Validate says what is wrong with c by itself.
func (c ExecutorConfig) Validate() error {
	switch {
	case !nameRule.MatchString(c.Name):
		return fmt.Errorf("name: %.80q is not 1 to 32 letters, digits, - and _; give each executor a name", c.Name)
	case c.Backend != "" && c.Backend != Local && c.Backend != Wasm && c.Backend != Remote && c.Backend != Auto:
		return fmt.Errorf("backend: %.80q is unknown; use local, wasm, auto or remote", c.Backend)
	case c.ComponentPath != "" && c.Backend != Wasm:
		return fmt.Errorf("component_path: is for backend wasm; leave it out")
	case c.Endpoint != "" && c.Backend != Remote:
		return fmt.Errorf("endpoint: is for backend remote; leave it out")
	case c.Backend == Remote && c.Endpoint == "":
		return fmt.Errorf("endpoint: is missing; name where the cluster is")
	case c.MaxParallel < 0 || c.MaxParallel > MaxParallel:
		return fmt.Errorf("max_parallel: %d is out of range; use 1 to %d, or 0 for its own", c.MaxParallel, MaxParallel)
	case c.ChannelBufferSize < 0 || c.ChannelBufferSize > MaxWaiting:
		return fmt.Errorf("channel_buffer_size: %d is out of range; use 1 to %d, or 0 for that", c.ChannelBufferSize, MaxWaiting)
	}
	for _, p := range []struct{ key, v string }{{"component_path", c.ComponentPath}, {"state_dir", c.StateDir}, {"cache_dir", c.CacheDir}} {
		if p.v != "" && !filepath.IsAbs(p.v) {
			return fmt.Errorf("%s: %q is not an absolute path; write the whole of it", p.key, p.v)
		}
	}
	return nil
}

// Config is what a Pool is made of.
type Config struct {
	// Executors are its members, 1 to MaxExecutors, each with a name of its own.
	Executors []ExecutorConfig
	// Platforms are those of tasks that name none: see executor.TaskSpec. Default: the first
	// executor's.
	Platforms []string
	// Open makes the executor that c describes, whose Backend is never Auto: each at New, and anew where one has failed and was closed. It
	// belongs to the Pool, which closes it. ctx ends when New's does or the Pool is closed; Open returns then.
	Open func(ctx context.Context, c ExecutorConfig) (executor.Executor, error)
	// MayRaise is the highest TaskSpec.Priority that a caller may ask for; nil: root may ask for any, and
	// others for none above 0. It may be called at any time.
	MayRaise func(executor.Caller) int
	// Logger takes what is nobody's error; nil drops it.
	Logger logrus.FieldLogger

	times times
}

// times are what tests shorten.
type times struct {
	check    time.Duration // between two checks of a member's health
	answer   time.Duration // for a member to answer one
	patience time.Duration // until tasks on a member that is not healthy are canceled, and then given up
	backoff  time.Duration // after the first restart that failed; twice as long after each further one
	most     time.Duration // but no longer than this
}

var defaultTimes = times{check: 10 * time.Second, answer: 10 * time.Second, patience: time.Minute, backoff: time.Second, most: time.Minute}

// waiting is how many tasks may wait in all, and how many of one user's.
func (c Config) waiting() (all, perUser int) {
	for _, e := range c.Executors {
		n := e.ChannelBufferSize
		if n == 0 {
			n = MaxWaiting
		}
		all += n
	}
	all = min(all, MaxWaiting)
	return all, min(maxWaitingPerUser, (all+1)/2)
}

// Validate says what is wrong with the executors.
func (c Config) Validate() error {
	if n := len(c.Executors); n < 1 || n > MaxExecutors {
		return fmt.Errorf("there are %d executors; give 1 to %d", n, MaxExecutors)
	}
	if err := executor.CheckPlatforms(c.Platforms); err != nil {
		return fmt.Errorf("platforms: %w", err)
	}
	names, dirs := map[string]bool{}, map[string]bool{}
	for i, e := range c.Executors {
		if err := e.Validate(); err != nil {
			return fmt.Errorf("executor %d: %w", i+1, err)
		}
		if names[e.Name] {
			return fmt.Errorf("executor %d: name: %q is another's; give each its own", i+1, e.Name)
		}
		if e.StateDir != "" && dirs[e.StateDir] {
			return fmt.Errorf("executor %d: state_dir: %q is another's; give each its own", i+1, e.StateDir)
		}
		names[e.Name], dirs[e.StateDir] = true, true
	}
	return nil
}
