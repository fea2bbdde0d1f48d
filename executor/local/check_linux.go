package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
)

// Check finds out what this machine can do with cfg, whose Cache is not needed. It
// runs a task in a state directory of its own beside cfg.StateDir, and removes it.
func Check(ctx context.Context, cfg Config) []Finding {
	var out []Finding
	add := func(name string, required bool, detail string, err error, remedy string) {
		f := Finding{Name: name, OK: err == nil, Detail: detail, Required: required}
		if err != nil {
			f.Detail, f.Remedy = err.Error(), remedy
		}
		out = append(out, f)
	}
	release, err := kernel()
	add("kernel", true, release, err, "use Linux 6.1 or later")
	add("root", true, "running as root", rootOnly(), "run as root, or use the socket of a daemon that does")
	add("user namespaces", true, "can be made", userNamespaces(), "set user.max_user_namespaces to 10000 or so with sysctl")
	m, err := limits.Open(limits.Config{Parent: fmt.Sprintf("/sandboxd-check-%d", os.Getpid()), AllowUnenforced: cfg.AllowUnenforced})
	if err != nil {
		add("cgroups", true, "", err, "mount cgroup2 at /sys/fs/cgroup, and run as root")
		return out
	}
	add("cgroups", true, m.Mode(), nil, "")
	able := m.Enforces()
	for _, l := range []string{"memory_bytes", "pids_max", "cpu_quota_us", "io_weight"} {
		var err error
		if !slices.Contains(able, l) {
			err = fmt.Errorf("no controller for it")
			for _, s := range m.Missing() {
				if strings.Contains(s, l) {
					err = errors.New(s)
				}
			}
		}
		required := l == "memory_bytes" || l == "pids_max"
		add("limit "+l, required && !cfg.AllowUnenforced, "is enforced", err, "enable the controller, or set limits.allow_unenforced in the configuration")
	}
	if err := m.Close(); err != nil {
		add("cgroups", false, "", err, "")
	}
	add("network controlled", false, "can be had", probeNetwork(cfg), "load the modules that are named, or use the other network policies")
	took, err := trial(ctx, cfg)
	add("default task", true, fmt.Sprintf("ran in %v, with its work directory below %s", took.Round(time.Millisecond), filepath.Dir(cfg.StateDir)), err,
		"mend what is missing above; or choose a state_dir on ext4, xfs, btrfs or tmpfs")
	return out
}

func kernel() (release string, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	release = unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return release, fmt.Errorf("kernel release %q: %w", release, err)
	}
	if major < 6 || major == 6 && minor < 1 {
		return release, fmt.Errorf("kernel %s is older than 6.1", release)
	}
	return "Linux " + release, nil
}

func rootOnly() error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("running as user %d", uid)
	}
	return nil
}

// userNamespaces reads what the kernel allows; the trial makes one.
func userNamespaces() error {
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err != nil {
		return fmt.Errorf("the kernel has none: %w", err)
	}
	if strings.TrimSpace(string(b)) == "0" {
		return errors.New("user.max_user_namespaces is 0")
	}
	return nil
}

func probeNetwork(cfg Config) error {
	m, err := netpolicy.Open(netpolicy.Config{Deny: cfg.Deny, ResolvConf: cfg.ResolvConf})
	if err != nil {
		return err
	}
	return errors.Join(m.Probe(), m.Close())
}

// trial runs a task with an overlay, as the default is.
func trial(ctx context.Context, cfg Config) (took time.Duration, err error) {
	parent := filepath.Dir(cfg.StateDir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp(parent, ".sandboxd-check-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	work := filepath.Join(dir, "work")
	if err := errors.Join(os.Chmod(dir, 0o711), os.Mkdir(work, 0o755)); err != nil {
		return 0, err
	}
	store, err := cache.Open(filepath.Join(dir, "cache"), cache.Config{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	cfg.Access = nil // it is the machine that is tried
	cfg.StateDir, cfg.Cache, cfg.CgroupParent = filepath.Join(dir, "state"), store, fmt.Sprintf("/sandboxd-check-%d", os.Getpid())
	e, err := New(cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, e.Close(ctx)) }()
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	began := time.Now()
	res, err := e.Execute(ctx, &executor.TaskSpec{Name: "check", Workdir: work, Script: "echo done >out", Outputs: []string{"out"}})
	took = time.Since(began)
	if err == nil && !res.Success() {
		err = fmt.Errorf("a task ended with %s, exit code %d: %s", res.Cause, res.ExitCode, res.Stderr.Inline)
	}
	return took, err
}
