package limits

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// OOM is closed at the first OOM kill in the group. On v1, which has no memory.oom.group, the rest of the group
// is killed first. It is never closed where no memory controller is in use.
func (g *Group) OOM() <-chan struct{} { return g.oom }

// watch starts the goroutine that closes g.oom; unwatch ends it.
func (g *Group) watch() error {
	p := g.file("memory.events")
	if p == "" {
		p = g.file("memory.oom_control")
	}
	if p == "" {
		return nil
	}
	var err error
	if g.m.mode == "v2" {
		g.event, err = inotify(p)
	} else {
		g.event, err = oomEvent(p, g.file("cgroup.event_control"))
	}
	if err != nil {
		return fmt.Errorf("limits: watch %s: %w", p, err)
	}
	g.ended = make(chan struct{})
	go g.await()
	return nil
}

func (g *Group) await() {
	defer close(g.ended)
	buf := make([]byte, 4096)
	for {
		if _, err := g.event.Read(buf); err != nil {
			return // closed by unwatch
		}
		for range 100 { // v1 signals before the kill is counted
			if e, err := g.Events(); err == nil && e.OOMKills > 0 {
				if g.m.mode != "v2" {
					_ = g.Kill() // what it leaves, Close kills and reports
				}
				close(g.oom)
				return
			}
			if g.m.mode == "v2" {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

func (g *Group) unwatch() {
	if g.event != nil {
		g.stop.Do(func() { g.event.Close() })
		<-g.ended
	}
}

func inotify(p string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, p, unix.IN_MODIFY); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func oomEvent(p, control string) (*os.File, error) {
	c, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "eventfd")
	if err := write(control, fmt.Sprintf("%d %d", fd, int(c.Fd()))); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
