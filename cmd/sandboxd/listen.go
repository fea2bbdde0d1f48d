package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	// maxSocketPath leaves room in sun_path (104 bytes on some systems) for the
	// directory in which the socket is made.
	maxSocketPath = 90
	// socketGroup may use the daemon, where the group exists.
	socketGroup = "sandboxd"
)

// socketClaim is the right to listen at a path.
type socketClaim struct {
	path  string
	lock  *os.File // nil where there are no locks
	made  os.FileInfo
	given net.Listener // another's, who also removes it; nil if there is none
}

// claimSocket makes sure that no other daemon is, or is about to be, at path, or at
// the socket that was given by whoever listens on it already. The claim holds
// until released.
func claimSocket(path string, given []*os.File) (*socketClaim, error) {
	if len(given) > 0 {
		return claimGiven(given)
	}
	c, err := lockSocket(path)
	if err != nil {
		return nil, err
	}
	if err := checkStale(path); err != nil {
		return nil, errors.Join(err, c.release())
	}
	return c, nil
}

// claimGiven takes over the one socket that may be given.
func claimGiven(given []*os.File) (_ *socketClaim, err error) {
	defer func() {
		for _, f := range given {
			err = errors.Join(err, f.Close()) // the listener has a descriptor of its own
		}
	}()
	if len(given) > 1 {
		return nil, fmt.Errorf("%d sockets were passed to the daemon, which takes one; give its socket unit one ListenStream=", len(given))
	}
	l, err := listenerOf(given[0])
	if err != nil {
		return nil, fmt.Errorf("the socket that was passed to the daemon: %w; give its socket unit a ListenStream= with a path", err)
	}
	c, err := lockSocket(l.Addr().String())
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	c.given = l
	return c, nil
}

// listenerOf makes sure that f is what listen makes: a stream socket with a path, on
// which somebody listens.
func listenerOf(f *os.File) (net.Listener, error) {
	if err := checkListening(f); err != nil {
		return nil, err
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok || !filepath.IsAbs(u.Addr().String()) {
		return nil, errors.Join(fmt.Errorf("%s %q is no Unix stream socket with a path", l.Addr().Network(), l.Addr()), l.Close())
	}
	return u, nil
}

// lockSocket claims path against all who do as well.
func lockSocket(path string) (*socketClaim, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("directory of the socket: %w", err)
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("lock of the socket: %w; run as root, or name a socket in a directory of yours with --socket", err)
		}
		return nil, fmt.Errorf("another daemon has %s (%w); stop it or use another --socket", path, err)
	}
	return &socketClaim{path: path, lock: lock}, nil
}

// checkStale returns nil if nothing is at path, or a socket that nobody serves.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket; remove it or use another --socket", path)
	}
	conn, err := net.DialTimeout("unix", path, 2*time.Second)
	if err == nil {
		conn.Close()
		return fmt.Errorf("another daemon answers at %s; stop it or use another --socket", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s may be in use (%w); remove it if no daemon runs", path, errno(err))
	}
	return nil
}

// listen makes the socket out of everybody's reach, gives it its owner and mode,
// and only then puts it in place, over a stale one. What was given is there.
func (c *socketClaim) listen(log logrus.FieldLogger) (net.Listener, error) {
	if l := c.given; l != nil {
		c.given = nil
		return l, nil
	}
	// Always the same name, so that one of a daemon that was killed here does not stay.
	tmp := c.path + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o700)); err != nil {
		return nil, fmt.Errorf("directory of the socket: %w", err)
	}
	defer os.RemoveAll(tmp)
	at := filepath.Join(tmp, "s")
	l, err := net.Listen("unix", at)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // its name is about to change
	if err = c.place(at, log); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (c *socketClaim) place(at string, log logrus.FieldLogger) error {
	mode := fs.FileMode(0o660)
	if err := chownToGroup(at); err != nil {
		mode = 0o600
		log.WithError(err).Warnf("only this user can reach the socket; make the group with 'groupadd --system %s' and start again", socketGroup)
	}
	if err := os.Chmod(at, mode); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := os.Rename(at, c.path); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	info, err := os.Lstat(c.path)
	c.made = info
	return err
}

func chownToGroup(path string) error {
	g, err := user.LookupGroup(socketGroup)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("group %s has id %q, which is no number", socketGroup, g.Gid)
	}
	return os.Chown(path, -1, gid)
}

// release removes the socket, if it is still the one that was made, and then
// lets others claim it. The lock's file stays: removing it would let two claim at once.
func (c *socketClaim) release() error {
	var errs []error
	if c.given != nil {
		errs = append(errs, c.given.Close())
	}
	// An inode's number is given to the next file once its own is gone, but not with its time.
	if info, err := os.Lstat(c.path); err == nil && c.made != nil && os.SameFile(info, c.made) && info.ModTime().Equal(c.made.ModTime()) {
		errs = append(errs, os.Remove(c.path))
	}
	if c.lock != nil {
		errs = append(errs, c.lock.Close())
	}
	return errors.Join(errs...)
}
