package limits

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// OpenDir opens the group for CLONE_INTO_CGROUP; the caller closes it. On v1 and hybrid it is errors.ErrUnsupported: use Add.
func (g *Group) OpenDir() (*os.File, error) {
	if g.m.mode != "v2" {
		return nil, fmt.Errorf("limits: group directory on %s: %w", g.m.mode, errors.ErrUnsupported)
	}
	fd, err := unix.Open(g.m.active()[0].dir+g.path, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("limits: open %s: %w", g.path, err)
	}
	return os.NewFile(uintptr(fd), g.path), nil
}

// Usage reads what the group has used so far, nested groups included. I/O is for v2 only: v1
// counts what is throttled, and else nothing.
func (g *Group) Usage() (Usage, error) {
	if g.m.mode == "v2" {
		s := read(g.file("cpu.stat"))
		if s == "" {
			return Usage{}, fmt.Errorf("limits: group %s: cpu.stat: %w", g.path, os.ErrNotExist)
		}
		u := Usage{CPUUser: time.Duration(field(s, "user_usec")) * time.Microsecond, CPUSystem: time.Duration(field(s, "system_usec")) * time.Microsecond,
			PeakMemory: number(read(g.file("memory.peak"))), PeakPids: number(read(g.file("pids.peak")))}
		if p := g.file("io.stat"); p != "" {
			u.IORead, u.IOWrite = ioStat(read(p))
		}
		return u, nil
	}
	user, sys := number(read(g.file("cpuacct.usage_user"))), number(read(g.file("cpuacct.usage_sys")))
	if user == nil || sys == nil {
		return Usage{}, fmt.Errorf("limits: group %s: cpuacct.usage_user: %w: mount the cpuacct hierarchy", g.path, os.ErrNotExist)
	}
	return Usage{CPUUser: time.Duration(*user), CPUSystem: time.Duration(*sys),
		PeakMemory: number(read(g.file("memory.max_usage_in_bytes"))), PeakPids: number(read(g.file("pids.peak")))}, nil
}

func number(s string) *int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return nil
	}
	return &n
}

func ioStat(s string) (r, w *int64) {
	r, w = new(int64), new(int64)
	for _, f := range strings.Fields(s) {
		k, v, _ := strings.Cut(f, "=")
		n, _ := strconv.ParseInt(v, 10, 64)
		switch k {
		case "rbytes":
			*r += n
		case "wbytes":
			*w += n
		}
	}
	return r, w
}
