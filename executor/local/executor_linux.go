package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/access"
	"github.com/sandboxd/sandboxd/executor/internal/action"
	"github.com/sandboxd/sandboxd/executor/internal/flight"
	"github.com/sandboxd/sandboxd/executor/internal/life"
	"github.com/sandboxd/sandboxd/executor/internal/placing"
	"github.com/sandboxd/sandboxd/executor/internal/statedir"
	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/sandbox"
)

// Executor runs tasks in sandboxes. It is an executor.Executor.
type Executor struct {
	cfg      Config
	log      logrus.FieldLogger
	lock     *os.File
	limits   *limits.Manager
	network  *netpolicy.Manager
	host     *sandbox.Host
	roots    *roots
	journal  *placing.Journal
	access   atomic.Pointer[access.Rules]
	slots    chan struct{}  // one for each sandbox, where nobody gives turns
	unmaking sync.WaitGroup // sandboxes of answered tasks
	flight   flight.Group
	gc       *action.Collector
	life     *life.Life

	mu  sync.Mutex
	end error
}

var _ executor.Executor = (*Executor)(nil)

// New readies cfg.StateDir, and removes what a dead executor left behind. The error is Unsupported where this
// machine makes no sandboxes at all, or not for this user.
func New(cfg Config) (*Executor, error) {
	if cfg.Cache == nil {
		return nil, errors.New("local executor: Config.Cache is missing")
	}
	if cfg.MaxParallel <= 0 {
		cfg.MaxParallel = runtime.NumCPU()
	}
	if cfg.Logger == nil {
		l := logrus.New()
		l.SetOutput(io.Discard)
		cfg.Logger = l
	}
	e := &Executor{cfg: cfg, log: cfg.Logger, life: life.New()}
	e.slots = make(chan struct{}, cfg.MaxParallel)
	e.Reconfigure(cfg.Access)
	left, err := e.open()
	if err != nil {
		err = errors.Join(fmt.Errorf("local executor: %w", placing.Full(err, "state directory", cfg.StateDir)), e.unmake())
		if errors.Is(err, errors.ErrUnsupported) {
			return nil, executor.Errorf(executor.Unsupported, "%w", err)
		}
		return nil, err
	}
	left.add(e.recoverLocal())
	left.TemporaryFiles = cfg.Cache.Left()
	left.tell(e.log)
	e.gc = action.NewCollector(cfg.Cache, cfg.Logger)
	return e, nil
}

// open takes the state directory, and removes what a dead executor left there: its processes first, since
// they hold all else.
func (e *Executor) open() (left leftovers, err error) {
	dir := e.cfg.StateDir
	if err := sandbox.Possible(); err != nil {
		return left, err
	}
	if e.lock, err = statedir.Open(dir); err != nil {
		return left, err
	}
	owner, err := ownerName(e.lock)
	if err != nil {
		return left, err
	}
	e.limits, err = limits.Open(limits.Config{
		Parent: e.cfg.CgroupParent, AllowUnenforced: e.cfg.AllowUnenforced, Owner: owner, Record: filepath.Join(dir, recordName),
	})
	if err != nil {
		return left, err
	}
	left.Processes, left.Groups = e.limits.Left().Processes, e.limits.Left().Groups
	if e.network, err = netpolicy.Open(netpolicy.Config{Deny: e.cfg.Deny, ResolvConf: e.cfg.ResolvConf}); err != nil {
		return left, err
	}
	if e.host, err = sandbox.Open(sandbox.Config{Dir: filepath.Join(dir, "sandboxes"), RangesDir: e.cfg.RangesDir, Limits: e.limits, Network: e.network, Warm: e.cfg.Warm}); err != nil {
		return left, err
	}
	orphans, layers := e.host.Left()
	left.Processes += orphans
	left.Layers = layers
	if e.roots, left.Roots, err = openRoots(filepath.Join(dir, "roots"), e.host.Forget); err != nil {
		return left, err
	}
	e.journal, left.Outputs, err = placing.Open(filepath.Join(dir, "placing"), e.log)
	return left, err
}

// unmake undoes open.
func (e *Executor) unmake() error {
	var errs []error
	if e.journal != nil {
		errs = append(errs, e.journal.Close())
	}
	if e.roots != nil {
		errs = append(errs, e.roots.close())
	}
	if e.host != nil {
		errs = append(errs, e.host.Close())
	}
	if e.network != nil {
		errs = append(errs, e.network.Close())
	}
	if e.limits != nil {
		errs = append(errs, e.limits.Close())
	}
	if e.lock != nil {
		errs = append(errs, e.lock.Close())
	}
	return errors.Join(errs...)
}

// TakesTurns is true: a task takes its turn (see executor.WithTurn) when it is opened, signed and not in the
// cache, and gives it back once its sandbox is unmade.
func (e *Executor) TakesTurns() bool { return true }

// Reconfigure sets who may have what, for tasks that come from now on.
func (e *Executor) Reconfigure(a access.Rules) { e.access.Store(&a) }

// Close implements executor.Executor.
func (e *Executor) Close(ctx context.Context) error {
	e.life.Close(ctx)
	e.unmaking.Wait()
	e.gc.Close(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lock != nil {
		e.end = e.unmake()
		e.lock, e.journal, e.roots, e.host, e.network, e.limits = nil, nil, nil, nil, nil, nil
	}
	return e.end
}

// Healthy returns an error if no task can be started. It takes what the start of one
// takes, and makes and removes a control group; where one of these hangs, so does it.
func (e *Executor) Healthy() error {
	e.mu.Lock()
	host, groups, shared := e.host, e.limits, e.roots
	e.mu.Unlock()
	if host == nil {
		return executor.Errorf(executor.Unavailable, "the executor is closed")
	}
	obtain(&e.flight.Mu)
	obtain(&shared.mu)
	if err := host.Healthy(); err != nil {
		return err
	}
	g, err := groups.Create(fmt.Sprintf("healthy-%d", os.Getpid()), limits.Limits{})
	if err != nil {
		return err
	}
	return g.Close()
}

// obtain returns once l could be had.
func obtain(l sync.Locker) {
	l.Lock()
	defer l.Unlock()
}

// Status implements executor.Executor.
func (e *Executor) Status(context.Context) (executor.Status, error) {
	return e.life.Status(), nil
}

// Capabilities implements executor.Executor.
func (e *Executor) Capabilities(context.Context) (executor.Capabilities, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.limits == nil {
		return executor.Capabilities{}, executor.Errorf(executor.Unavailable, "the executor is closed; try another")
	}
	networks, missing := []string{netpolicy.Isolated.String(), netpolicy.Loopback.String()}, e.limits.Missing()
	if err := e.network.Probe(); err != nil {
		missing = append(missing, err.Error())
	} else {
		networks = append(networks, netpolicy.Controlled.String())
	}
	return executor.Capabilities{
		Sandboxing: true, NetworkIsolation: true, Caching: true,
		MaxParallel: e.cfg.MaxParallel,
		Platforms:   []string{executor.PlatformNative},
		Version:     e.cfg.Version,
		Networks:    append(networks, netpolicy.Full.String()),
		Limits:      append(e.limits.Enforces(), "tmp_bytes", "open_files", "output_bytes"),
		Missing:     missing,
	}, nil
}

// OpenBlob returns a blob's content, verified, whoever asks: package rpc sees to it that
// a client asks for no more than its own. The error of one that is not there is an fs.ErrNotExist.
func (e *Executor) OpenBlob(_ context.Context, d executor.Digest) (io.ReadCloser, error) {
	return action.OpenBlob(e.cfg.Cache, d)
}

// roots are the default root, for each network policy.
type roots struct {
	dir string
	mu  sync.Mutex
	all map[string]*sharedRoot
	n   atomic.Int64
	// forget is called before a root is closed that was shared.
	forget func(*rootfs.Rootfs) error
}

// sharedRoot is closed by whoever is the last to leave it, once it was replaced.
type sharedRoot struct {
	*rootfs.Rootfs
	of       *roots
	users    int
	replaced bool
}

// closeUnused is called with the lock of roots held.
func (s *sharedRoot) closeUnused() error {
	if s.users > 0 || !s.replaced {
		return nil
	}
	return errors.Join(s.of.forget(s.Rootfs), s.Close())
}

// openRoots returns how many a dead executor had left, too.
func openRoots(dir string, forget func(*rootfs.Rootfs) error) (_ *roots, left int, err error) {
	parent, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return nil, 0, err
	}
	defer parent.Close()
	old, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	if err := rootfs.RemoveTree(parent, filepath.Base(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, 0, err
	}
	return &roots{dir: dir, all: map[string]*sharedRoot{}, forget: forget}, len(old), nil
}

// host returns the machine's own root for a network policy, and what leaves it.
func (r *roots) host(network string, nameserver netip.Addr) (_ *rootfs.Rootfs, leave func() error, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := network
	if nameserver.IsValid() { // one of few: see netpolicy.Manager.Addresses
		key += " " + nameserver.String()
	}
	x := r.all[key]
	if x == nil || !x.Fresh() {
		next, err := r.open("", network, nameserver)
		if err != nil {
			return nil, nil, err
		}
		r.all[key] = &sharedRoot{Rootfs: next, of: r}
		if x != nil {
			x.replaced = true
			if err := x.closeUnused(); err != nil {
				return nil, nil, err
			}
		}
		x = r.all[key]
	}
	x.users++
	return x.Rootfs, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		x.users--
		return x.closeUnused()
	}, nil
}

// open needs no lock: with a directory as root it takes long.
func (r *roots) open(root, network string, nameserver netip.Addr) (*rootfs.Rootfs, error) {
	return rootfs.Open(filepath.Join(r.dir, fmt.Sprint(r.n.Add(1))), rootfs.Spec{
		Root: root, Network: network, Nameserver: nameserver, UID: sandbox.UID, GID: sandbox.GID, Hostname: sandbox.Hostname,
	})
}

func (r *roots) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, x := range r.all {
		errs = append(errs, r.forget(x.Rootfs), x.Close())
	}
	return errors.Join(append(errs, os.Remove(r.dir))...)
}
