package limits

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Group is one task's control group, in every hierarchy in use.
type Group struct {
	m       *Manager
	path    string
	applied map[string]string
	asked   map[string]int64 // what is in force, by name
	oom     chan struct{}
	event   *os.File
	ended   chan struct{}
	stop    sync.Once
}

func (m *Manager) make(name string) (*Group, error) {
	if name == "" || len(name) > 128 || strings.Trim(name, nameChars) != "" {
		return nil, fmt.Errorf("limits: group name %q: use 1 to 128 of a-z, 0-9 and -", name)
	}
	g := &Group{m: m, path: m.parent + "/" + name, applied: map[string]string{}, oom: make(chan struct{})}
	for i, h := range m.active() {
		err := os.Mkdir(h.dir+g.path, 0o755)
		if errors.Is(err, os.ErrExist) {
			err = fmt.Errorf("limits: group %s: %w", g.path, os.ErrExist)
			if i == 0 {
				return nil, err // another's
			}
		} else if err != nil || slices.Contains(h.ctls, "cpuset") {
			err = makeDirs(h, g.path)
		}
		if err != nil {
			return nil, errors.Join(err, g.Close())
		}
	}
	return g, nil
}

// Create makes an empty group with l in force: each value was read back. The caller closes it.
func (m *Manager) Create(name string, l Limits) (*Group, error) {
	if err := m.Check(l); err != nil {
		return nil, err
	}
	g, err := m.make(name)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(g.Limit(l), g.watch()); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// Limit puts limits in force, in place of those that are: each value was read back. What is in force already costs nothing.
func (g *Group) Limit(l Limits) error {
	if err := g.m.Check(l); err != nil {
		return err
	}
	asked := l.asked()
	if g.asked != nil && maps.Equal(asked, g.asked) {
		return nil
	}
	for k, v := range g.asked {
		if asked[k] == v {
			continue
		}
		if err := g.lift(k); err != nil {
			return err
		}
	}
	g.asked = nil // until all are
	clear(g.applied)
	if err := g.apply(l); err != nil {
		return err
	}
	g.asked = asked
	return nil
}

// Expect has the kernel keep ready to put processes into groups, until done is called: the
// first that is put into one after a pause waits for an RCU grace period, some 10 ms, in which no
// group can be made, and the following ones do not. It puts this process where it is already, over and over.
// Without it all works as well. Calls may overlap.
func (m *Manager) Expect() (done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.expecting++; m.expecting == 1 {
		stop := make(chan struct{})
		m.rest = func() { close(stop) }
		go m.keepMoving(stop)
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.expecting--; m.expecting == 0 {
			m.rest()
		}
	})
}

func (m *Manager) keepMoving(stop <-chan struct{}) {
	const pause = 2 * time.Millisecond // a grace period is longer
	for time.Since(time.Unix(0, m.moved.Load())) < pause || m.moveNowhere() == nil {
		select {
		case <-stop:
			return
		case <-time.After(pause):
		}
	}
}

// moveNowhere puts this process where it is.
func (m *Manager) moveNowhere() error {
	at, err := groupsOf("self")
	if err != nil {
		return err
	}
	for _, h := range m.active() {
		if m.mode == "v2" {
			return write(filepath.Join(h.dir, at[""], "cgroup.procs"), "0")
		}
		if slices.Contains(h.ctls, "freezer") {
			return write(filepath.Join(h.dir, at["freezer"], "cgroup.procs"), "0")
		}
	}
	return errors.New("limits: no freezer hierarchy")
}

// groupsOf is in which group a process is, by controller; that of v2 has no name (cgroups(7)).
func groupsOf(pid string) (map[string]string, error) {
	text, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		return nil, fmt.Errorf("limits: %w", err)
	}
	at := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for _, c := range strings.Split(f[1], ",") {
				at[c] = f[2]
			}
		}
	}
	return at, nil
}

// file is the path of one of the group's files, or empty where no controller has it.
func (g *Group) file(f string) string {
	if g.m.home != nil {
		if dir, ok := g.m.home[f]; ok {
			return dir + g.path + "/" + f
		}
		return ""
	}
	for _, h := range g.m.active() {
		p := h.dir + g.path + "/" + f
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}

// Path is relative to the root of each hierarchy.
func (g *Group) Path() string { return g.path }

// Applied maps a kernel file to its value as read back.
func (g *Group) Applied() map[string]string { return g.applied }

// Doors opens the group for processes that are to join it, in each of the hierarchies that [Manager.Hierarchies] counts: who
// writes "0" to all is in it, with the opener's rights. Unlike a process's number, that means nobody else. The caller
// closes them.
func (g *Group) Doors() (doors []*os.File, err error) {
	for _, h := range g.m.active() {
		path := h.dir + g.path + "/cgroup.procs"
		fd, err := openFile(path, unix.O_WRONLY)
		if err != nil {
			for _, f := range doors {
				f.Close()
			}
			return nil, fmt.Errorf("limits: %w", err)
		}
		doors = append(doors, os.NewFile(uintptr(fd), path))
	}
	g.m.moved.Store(time.Now().UnixNano())
	return doors, nil
}

// walk calls fn for the group's directory in each hierarchy and for those nested in it.
func (g *Group) walk(fn func(dir string)) error {
	for _, h := range g.m.all {
		if err := walkDir(h.dir+g.path, fn); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
	}
	return nil
}

// walkDir lists only directories that have others in them: in a cgroup file system their
// count of links is 2 and one for each, and there are dozens of files.
func walkDir(dir string, fn func(dir string)) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	fn(dir)
	if st.Nlink <= 2 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, d := range entries {
		if d.IsDir() {
			if err := walkDir(dir+"/"+d.Name(), fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// Procs lists the processes of the group and of those nested in it.
func (g *Group) Procs() ([]int, error) {
	seen := map[int]bool{}
	var out []int
	var bad error
	err := g.walk(func(dir string) {
		text, err := readIfThere(dir + "/cgroup.procs")
		bad = errors.Join(bad, err)
		for _, s := range strings.Fields(text) {
			if n, err := strconv.Atoi(s); err == nil && n > 0 && !seen[n] {
				seen[n] = true
				out = append(out, n)
			}
		}
	})
	return out, errors.Join(err, bad)
}

// Holds tells whether a process is in the group itself, for all controllers. The caller sees to it that the
// number still is that process's.
func (g *Group) Holds(pid int) (bool, error) {
	at, err := groupsOf(strconv.Itoa(pid))
	if err != nil {
		return false, err
	}
	for _, h := range g.m.active() {
		if h.v2 && at[""] != g.path {
			return false, nil
		}
		for _, c := range h.ctls {
			if slices.Contains(used, c) && at[c] != g.path {
				return false, nil
			}
		}
	}
	return true, nil
}

// Events reads the counts; on v1 nested groups are summed, as the kernel does not.
func (g *Group) Events() (e Events, err error) {
	add := func(n *int64, path, key string) {
		text, bad := readIfThere(path)
		*n += field(text, key)
		err = errors.Join(err, bad)
	}
	if g.m.mode == "v2" { // the group's own file counts what lies below, too
		add(&e.OOMKills, g.file("memory.events"), "oom_kill")
		add(&e.PidsMaxHits, g.file("pids.events"), "max")
		return e, err
	}
	for _, c := range []struct {
		n         *int64
		file, key string
	}{{&e.OOMKills, "memory.oom_control", "oom_kill"}, {&e.PidsMaxHits, "pids.events", "max"}} {
		p := g.file(c.file)
		if p == "" {
			continue
		}
		walked := walkDir(filepath.Dir(p), func(dir string) { add(c.n, dir+"/"+c.file, c.key) })
		err = errors.Join(err, walked)
	}
	return e, err
}

func field(s, key string) int64 {
	for line := range strings.Lines(s) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}

// Kill sends SIGKILL to all in the group. On v1 the group is frozen meanwhile, so that no pid read can be reused.
func (g *Group) Kill() error {
	if p := g.file("cgroup.kill"); p != "" {
		if err := write(p, "1"); !errors.Is(err, os.ErrNotExist) { // it may be removed already
			return err
		}
		return nil
	}
	p := g.file("freezer.state")
	if p == "" {
		return errors.New("limits: neither cgroup.kill nor the freezer is there: mount the freezer hierarchy")
	}
	// Who is in no list can bring nobody into one.
	if pids, err := g.Procs(); err != nil || len(pids) == 0 {
		return err
	}
	for range 100 {
		if err := write(p, "FROZEN"); err != nil {
			return err
		}
		pids, err := g.Procs()
		for _, pid := range pids {
			if e := unix.Kill(pid, unix.SIGKILL); e != nil && e != unix.ESRCH {
				err = errors.Join(err, e)
			}
		}
		if err = errors.Join(err, write(p, "THAWED")); err != nil || len(pids) == 0 {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil // exiting still; Wait tells
}

// Wait returns when the group is empty.
func (g *Group) Wait(ctx context.Context) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if pids, err := g.Procs(); err != nil || len(pids) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("limits: group %s is not empty: %w", g.path, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// removeEmpty removes a group that has no process and no group in it. The kernel refuses
// to remove others; the hierarchy that Kill needs comes first.
func (g *Group) removeEmpty() bool {
	first := g.file("cgroup.kill")
	if first == "" {
		first = g.file("freezer.state")
	}
	if first == "" || os.Remove(filepath.Dir(first)) != nil {
		return false
	}
	done := true
	for _, h := range g.m.all {
		if err := unix.Rmdir(h.dir + g.path); err != nil && err != unix.ENOENT {
			done = false
		}
	}
	return done
}

// Close kills what is left, waits 10 s at most and removes the group everywhere. It may be called again.
func (g *Group) Close() error {
	g.unwatch()
	if g.removeEmpty() {
		return nil
	}
	if pids, err := g.Procs(); err != nil {
		return err
	} else if len(pids) > 0 {
		if err := g.Kill(); err != nil {
			return err
		}
	}
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	for {
		if err := g.Wait(ctx); err != nil {
			return err
		}
		var dirs []string
		if err := g.walk(func(d string) { dirs = append(dirs, d) }); err != nil || len(dirs) == 0 {
			return err
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := os.Remove(dirs[i]); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("limits: %w", err)
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("limits: group %s stays busy: %w", g.path, ctx.Err())
		}
		time.Sleep(time.Millisecond)
	}
}
