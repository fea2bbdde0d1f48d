package limits

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// nameChars are what a name is made of. Regular expressions for it would be compiled in
// each sandbox, whose processes are this program.
const nameChars = "abcdefghijklmnopqrstuvwxyz0123456789-"

// used are the controllers of v1 that we make groups for; blkio is left out where it limits nothing, since each group costs.
var used = []string{"cpu", "cpuacct", "memory", "pids", "freezer", "blkio"}

type hierarchy struct {
	dir  string
	v2   bool
	ctls []string
}

// Manager makes groups below one parent. Safe for concurrent use.
type Manager struct {
	cfg    Config
	mode   string
	above  string // the parent that was chosen
	parent string // in which groups are made: above, or the owner's in it
	left   Left
	all    []hierarchy
	// home is in which hierarchy a group has a file, by its name: all groups have the same. It is nil until probe has looked.
	home   map[string]string
	idle   string // a controller that is not used here
	can    map[string]bool
	weight int64 // the greatest that is enforced

	mu        sync.Mutex
	expecting int
	rest      func()
	moved     atomic.Int64 // when a group was last opened to a process: time.Time.UnixNano
}

// Open finds the mounted hierarchies, removes what a dead Manager of the same Owner left there, and makes the parent group.
func Open(cfg Config) (*Manager, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("limits: %w", err)
	}
	m := &Manager{cfg: cfg, all: parseMounts(string(data)), can: map[string]bool{}}
	v1, v2 := false, false
	for _, h := range m.all {
		v2 = v2 || h.v2
		v1 = v1 || !h.v2
	}
	switch {
	case v1 && v2:
		m.mode = "hybrid"
	case v1:
		m.mode = "v1"
	case v2:
		m.mode = "v2"
	default:
		return nil, fmt.Errorf("limits: no cgroup hierarchy is mounted with its root: mount cgroup2 at /sys/fs/cgroup: %w", errors.ErrUnsupported)
	}
	if m.above, err = m.chooseParent(); err != nil {
		return nil, err
	}
	m.parent = m.above
	if cfg.Owner != "" {
		if err := m.recover(); err != nil {
			return nil, err
		}
		m.parent = m.above + "/" + cfg.Owner
	}
	for _, h := range m.active() {
		if err := makeDirs(h, m.parent); err != nil {
			return nil, err
		}
	}
	return m, m.probe()
}

func parseMounts(s string) (hs []hierarchy) {
	for line := range strings.Lines(s) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 || l[3] != "/" {
			continue
		}
		switch r[0] {
		case "cgroup2":
			hs = append(hs, hierarchy{dir: l[4], v2: true})
		case "cgroup":
			hs = append(hs, hierarchy{dir: l[4], ctls: strings.Split(r[2], ",")})
		}
	}
	return hs
}

// active are the hierarchies groups are made in; the others only matter for removal.
func (m *Manager) active() (hs []hierarchy) {
	for _, h := range m.all {
		if (m.mode == "v2" && h.v2) || slices.ContainsFunc(h.ctls, func(c string) bool { return c != m.idle && slices.Contains(used, c) }) {
			hs = append(hs, h)
		}
	}
	return hs
}

func (m *Manager) chooseParent() (string, error) {
	if p := m.cfg.Parent; p != "" {
		if p == "/" || filepath.Clean(p) != p || p[0] != '/' {
			return "", fmt.Errorf("limits: parent %q: give a clean absolute group path below /", p)
		}
		return p, nil
	}
	if m.mode != "v2" {
		return "/sandboxd", nil
	}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("limits: %w", err)
	}
	own := strings.TrimSpace(strings.TrimPrefix(string(data), "0::"))
	if up := filepath.Dir(own); filepath.Base(own) == "daemon" && m.wasMoved(up) { // opened before, by us or by what started us
		own = up
	}
	dir := filepath.Join(m.all[0].dir, own)
	if own == "/" {
		return "/sandboxd", nil
	}
	if !delegated(dir) {
		if os.Geteuid() != 0 {
			return "", fmt.Errorf("limits: group %s is not delegated: run the daemon with Delegate=yes", own)
		}
		return "/sandboxd", nil
	}
	if err := makeDirs(m.all[0], own+"/daemon"); err != nil {
		return "", err
	}
	if err := write(dir+"/daemon/cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
		return "", err
	}
	return own + "/tasks", enable(dir)
}

func (m *Manager) wasMoved(from string) bool {
	dir := filepath.Join(m.all[0].dir, from)
	_, err := os.Stat(dir + "/tasks/cgroup.procs")
	return err == nil || marked(dir)
}

func delegated(dir string) bool {
	return marked(dir) || read(dir+"/cgroup.procs") == strconv.Itoa(os.Getpid())
}

// marked reports systemd's Delegate=yes.
func marked(dir string) bool {
	for _, a := range []string{"user.delegate", "trusted.delegate"} {
		b := make([]byte, 8)
		if n, err := unix.Getxattr(dir, a, b); err == nil && string(b[:n]) == "1" {
			return true
		}
	}
	return false
}

// enable turns on what the group was given; what it was not given is reported by Missing.
func enable(dir string) error {
	for _, c := range strings.Fields(read(dir + "/cgroup.controllers")) {
		if slices.Contains([]string{"cpu", "memory", "pids", "io"}, c) {
			if err := write(dir+"/cgroup.subtree_control", "+"+c); err != nil {
				return err
			}
		}
	}
	return nil
}

func makeDirs(h hierarchy, rel string) error {
	dir := h.dir
	for _, part := range strings.Split(strings.Trim(rel, "/"), "/") {
		up := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("limits: %w: make %s and give it to the daemon's user (systemd: Delegate=yes), or run the daemon as root", err, rel)
		}
		if !slices.Contains(h.ctls, "cpuset") {
			continue
		}
		for _, f := range []string{"/cpuset.cpus", "/cpuset.mems"} {
			if read(dir+f) == "" { // a v1 cpuset takes no task until both are set
				if err := write(dir+f, read(up+f)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// files by limit: v2, then v1.
var files = map[string][]string{
	"cpu_quota_us": {"cpu.max", "cpu.cfs_quota_us"}, "memory_bytes": {"memory.max", "memory.limit_in_bytes"},
	"pids_max": {"pids.max", "pids.max"}, "io_weight": {"io.weight", "io.bfq.weight", "blkio.bfq.weight"},
}

var limitNames = []string{"cpu_quota_us", "memory_bytes", "pids_max", "io_weight"}

func (m *Manager) probe() error {
	if m.mode == "v2" {
		for _, p := range slices.Compact([]string{m.above, m.parent}) {
			if err := enable(m.all[0].dir + p); err != nil {
				return err
			}
		}
	}
	name := fmt.Sprintf("probe-%d", os.Getpid())
	if err := (&Group{m: m, path: m.parent + "/" + name}).Close(); err != nil { // of a dead daemon with our pid
		return err
	}
	g, err := m.make(name)
	if err != nil {
		return err
	}
	for limit, fs := range files {
		m.can[limit] = slices.ContainsFunc(fs, func(f string) bool { return g.file(f) != "" })
	}
	m.weight = 10_000
	cost, bfq := g.file("io.weight") != "" && costs(m.active()[0].dir), m.can["io_weight"] && schedules("bfq")
	if !cost {
		m.weight = bfqMost
	}
	m.can["io_weight"] = cost || bfq
	if m.mode != "v2" && !m.can["io_weight"] {
		m.idle = "blkio"
	}
	home, err := g.homes()
	if err = errors.Join(err, g.Close()); err != nil {
		return err
	}
	if m.idle != "" {
		err = m.removeEmpty(m.parent) // those of the others are made below, or there
		for _, h := range m.active() {
			err = errors.Join(err, makeDirs(h, m.parent))
		}
	}
	m.home = home
	return err
}

// homes is where the files of a group are: of two of one name, the first is meant.
func (g *Group) homes() (map[string]string, error) {
	home := map[string]string{}
	for _, h := range g.m.active() {
		entries, err := os.ReadDir(h.dir + g.path)
		if err != nil {
			return nil, fmt.Errorf("limits: %w", err)
		}
		for _, e := range entries {
			if _, ok := home[e.Name()]; !ok && !e.IsDir() {
				home[e.Name()] = h.dir
			}
		}
	}
	return home, nil
}

// costs tells whether a disk's I/O has costs on cgroup v2, without which io.weight does nothing.
func costs(dir string) bool {
	return strings.Contains(read(dir+"/io.cost.qos"), "enable=1")
}

// schedules tells whether a disk has the scheduler, without which its own weight does nothing.
func schedules(scheduler string) bool {
	disks, _ := filepath.Glob("/sys/block/*/queue/scheduler")
	return slices.ContainsFunc(disks, func(d string) bool { return strings.Contains(read(d), "["+scheduler+"]") })
}

// Mounts are where the hierarchies are mounted, those without our groups as well.
func (m *Manager) Mounts() (dirs []string) {
	for _, h := range m.all {
		dirs = append(dirs, h.dir)
	}
	return dirs
}

// Hierarchies is in how many a group of the manager's is.
func (m *Manager) Hierarchies() int { return len(m.active()) }

// Mode is "v2", "hybrid" or "v1".
func (m *Manager) Mode() string { return m.mode }

// Enforces lists the limits that are enforced here.
func (m *Manager) Enforces() []string {
	return slices.DeleteFunc(slices.Clone(limitNames), func(l string) bool { return !m.can[l] })
}

// Missing has a sentence, with the remedy, for each limit not enforced here.
func (m *Manager) Missing() (out []string) {
	for _, l := range limitNames {
		if !m.can[l] {
			out = append(out, (&UnenforcedError{l, remedy(l)}).Error())
		}
	}
	return out
}

func remedy(l string) string {
	if l == "io_weight" {
		return "have a disk scheduled by BFQ (echo bfq >/sys/block/DISK/queue/scheduler), or on cgroup v2 enable io.cost.qos for it, and start again; or leave the limit out"
	}
	return fmt.Sprintf("enable the controller that has %s in the groups above the daemon's, or leave the limit out", files[l][0])
}

func (l Limits) asked() map[string]int64 {
	a := map[string]int64{"cpu_quota_us": l.CPUQuotaUS, "memory_bytes": l.MemoryBytes, "pids_max": l.PidsMax, "io_weight": l.IOWeight}
	for k, v := range a {
		if v == 0 || v == -1 && k != "io_weight" || v == 100 && k == "io_weight" {
			delete(a, k)
		}
	}
	return a
}

// Check returns an error joined of one *UnenforcedError for each limit asked for that cannot be enforced.
func (m *Manager) Check(l Limits) error {
	var errs []error
	asked := l.asked()
	for _, k := range limitNames {
		v, ok := asked[k]
		switch {
		case !ok:
		case v < 0 || k == "io_weight" && v > 10_000 || k == "cpu_quota_us" && v < 1000:
			errs = append(errs, fmt.Errorf("limits: %s %d is out of range", k, v))
		case !m.can[k] && !m.cfg.AllowUnenforced:
			errs = append(errs, &UnenforcedError{k, remedy(k)})
		case k == "io_weight" && m.can[k] && v > m.weight && !m.cfg.AllowUnenforced:
			errs = append(errs, &UnenforcedError{k, fmt.Sprintf("the BFQ scheduler takes %d at most", m.weight)})
		}
	}
	return errors.Join(errs...)
}

// Close removes the parent group where it is empty. What it cannot remove, the next of the Owner will.
func (m *Manager) Close() error {
	err := errors.Join(m.removeEmpty(m.parent), m.removeEmpty(m.above))
	if err == nil && m.cfg.Owner != "" && !m.there(m.parent) {
		if err = os.Remove(m.cfg.Record); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	return err
}

// there tells whether a group is in any hierarchy.
func (m *Manager) there(group string) bool {
	return slices.ContainsFunc(m.all, func(h hierarchy) bool {
		_, err := os.Lstat(h.dir + group)
		return err == nil
	})
}

func (m *Manager) removeEmpty(group string) error {
	for _, h := range m.all {
		err := os.Remove(h.dir + group)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("limits: %w", err)
		}
	}
	return nil
}

// readIfThere is the file's text, empty if there is no such file: the controller
// is not of this hierarchy, or the group was removed meanwhile. What cannot be
// read for any other reason is an error, never "nothing happened".
func readIfThere(path string) (string, error) {
	b, err := readFile(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return "", nil
	}
	return b, err
}

func read(path string) string {
	b, err := readFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(b)
}

// readFile does with three system calls what os.ReadFile takes a dozen for, most of which ask for what a
// cgroup's file cannot do.
func readFile(path string) (string, error) {
	fd, err := openFile(path, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var all []byte
	b := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return string(all), nil
		}
		all = append(all, b[:n]...)
	}
}

func openFile(path string, how int) (int, error) {
	for {
		fd, err := unix.Open(path, how|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		if err != unix.EINTR {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

func write(path, v string) error {
	fd, err := openFile(path, unix.O_WRONLY)
	if err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	defer unix.Close(fd)
	for {
		if _, err = unix.Write(fd, []byte(v)); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("limits: write %q: %w", v, &os.PathError{Op: "write", Path: path, Err: err})
	}
	return nil
}
