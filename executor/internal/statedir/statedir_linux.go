package statedir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Open makes a state directory where there is none, and takes it until what it returns is closed, or the process ends. A
// directory that holds something and is none is refused, and so is one that is taken, by ErrInUse.
func Open(dir string) (*os.File, error) {
	if err := makePassable(dir); err != nil {
		return nil, err
	}
	if err := ours(dir); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // an empty one may be anyhow
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// makePassable makes a directory, and what is missing above it, that a sandbox's first process,
// which is no user of this machine's, passes through, whatever the umask is.
func makePassable(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makePassable(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, 0o711)
}

// lockText is in the lock file of a state directory, and tells it from any other directory.
const lockText = "sandboxd holds this while it runs, and deletes what it finds in this directory when it starts\n"

// ours refuses a directory that holds something and is no state directory: what is in it
// would be taken for leftovers and deleted.
func ours(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "lock"))
	if err == nil && string(b) == lockText {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if len(b) == 0 && (e.Name() == "lock" || e.Name() == "local" || e.Name() == "executors") { // being made, run --local's, those of a pool
			continue
		}
		return fmt.Errorf("the directory %s holds %q and is no state directory of sandboxd; choose a new or an empty one", dir, e.Name())
	}
	return nil
}

// lockDir keeps a second executor out of a state directory. The lock ends with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if err == unix.EWOULDBLOCK {
			err = fmt.Errorf("state directory %s %w%s; stop it, or choose another with --state-dir", dir, ErrInUse, holder(f))
		}
		return nil, errors.Join(err, f.Close())
	}
	// Once, and for good: a directory without it that holds something is taken by nobody.
	b := make([]byte, len(lockText))
	if _, err := f.ReadAt(b, 0); err == nil && string(b) == lockText {
		return f, nil
	}
	if _, err := f.WriteAt([]byte(lockText), 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// holder names the process that has a file locked, if it can be told (proc_locks(5)).
func holder(f *os.File) string {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return ""
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	at := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for l := range strings.Lines(string(locks)) {
		if w := strings.Fields(l); len(w) > 5 && w[1] == "FLOCK" && w[5] == at {
			return ", process " + w[4]
		}
	}
	return ""
}
