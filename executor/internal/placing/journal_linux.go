package placing

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
	"github.com/sandboxd/sandboxd/rootfs"
)

// Journal is what is being put into callers' work directories at the moment, on disk: a page
// for each. What it holds when an executor starts was cut short, and is cleaned up.
type Journal struct {
	dir string
	mu  sync.Mutex
	// free are pages of which none is in use: to write to one that was written to before takes
	// a fraction of what a new file takes to be on disk.
	free []*page
	n    int
}

// page is a file of the journal: the length and the SHA-256 of a placement, and that as JSON.
// A length of 0 is none, and so is a page that was not written to its end, since
// nothing is placed before it was.
type page struct{ f *os.File }

const (
	pageHead = 8 + sha256.Size
	// maxPage is more than a task's outputs can come to.
	maxPage = 64 << 20
)

// placement is a rootfs.Placing, where it is and on whose behalf.
type placement struct {
	UID, GID uint32
	Groups   []uint32
	Workdir  []byte // a path, which need not be UTF-8
	Inode    uint64 // of that
	rootfs.Placing
}

// placementTime bounds the cleaning up of one placement, which may be on a file system that
// does not answer.
const placementTime = 10 * time.Second

// Open cleans up what is in the journal of a dead executor, and returns how many entries
// of callers' work directories that were.
func Open(dir string, log logrus.FieldLogger) (_ *Journal, left int, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, 0, err
	}
	j := &Journal{dir: dir}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		at := filepath.Join(dir, e.Name())
		n, keep := replay(at, log)
		left += n
		if keep {
			// Its number is not used again.
			if k, err := strconv.Atoi(e.Name()); err == nil {
				j.n = max(j.n, k)
			}
			continue
		}
		if err := os.Remove(at); err != nil {
			return nil, left, err
		}
	}
	return j, left, nil
}

// replay cleans up what a page tells of. It is kept where that can be tried again.
func replay(at string, log logrus.FieldLogger) (n int, keep bool) {
	f, err := os.OpenFile(at, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		log.WithError(err).Warn("a page of the journal cannot be read; a task's outputs may be half in place")
		return 0, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPage+pageHead+1))
	if err != nil {
		log.WithError(err).Warn("a page of the journal cannot be read; a task's outputs may be half in place")
		return 0, true
	}
	p, ok := decodePage(b)
	if !ok {
		return 0, false
	}
	log = log.WithFields(logrus.Fields{"workdir": string(p.Workdir), "token": p.Token, "uid": p.UID})
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := p.recover()
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		if r.err != nil && !errors.Is(r.err, fs.ErrNotExist) { // a work directory that is gone holds nothing
			log.WithError(r.err).Warn("what a killed daemon left in a work directory could not all be removed; its names begin with the token")
		}
		return r.n, false
	case <-time.After(placementTime):
		log.Warn("a work directory does not answer; what a killed daemon left there is removed at another start")
		return 0, true
	}
}

// recover does what rootfs.Recover does, with the rights of the caller whose tree it is.
func (p *placement) recover() (n int, err error) {
	c := executor.Caller{UID: p.UID, GID: p.GID, Groups: p.Groups}
	err = caller.As(c, func() error {
		// The path was the kernel's own, without links: one that is there now was put there since.
		how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
		fd, err := unix.Openat2(unix.AT_FDCWD, string(p.Workdir), how)
		if err != nil {
			return &fs.PathError{Op: "open", Path: string(p.Workdir), Err: err}
		}
		work := os.NewFile(uintptr(fd), string(p.Workdir))
		defer work.Close()
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("%s: %w", p.Workdir, err)
		}
		if st.Ino != p.Inode {
			return fmt.Errorf("%s is another directory by now", p.Workdir)
		}
		var owners []uint32
		if c.UID == 0 {
			owners = []uint32{0, st.Uid}
		}
		n, err = rootfs.Recover(work, p.Placing, owners)
		return err
	})
	return n, err
}

// begin returns an empty page, for end to be called with.
func (j *Journal) begin() (*page, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if n := len(j.free); n > 0 {
		p := j.free[n-1]
		j.free = j.free[:n-1]
		return p, nil
	}
	j.n++
	f, err := os.OpenFile(filepath.Join(j.dir, strconv.Itoa(j.n)), os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, Full(fmt.Errorf("journal: %w", err), "state directory", j.dir)
	}
	d, err := os.Open(j.dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		return nil, Full(errors.Join(fmt.Errorf("journal: %w", err), os.Remove(f.Name()), f.Close()), "state directory", j.dir)
	}
	return &page{f}, nil
}

// end says that what the page tells of has come to its end, in whatever way. That need not
// reach the disk: to clean up what is clean does nothing.
func (j *Journal) end(p *page) {
	if _, err := p.f.WriteAt(make([]byte, 8), 0); err != nil {
		_ = os.Remove(p.f.Name())
		_ = p.f.Close()
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.free = append(j.free, p)
}

// Close removes the pages; none is in use.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	for _, p := range j.free {
		errs = append(errs, os.Remove(p.f.Name()), p.f.Close())
	}
	j.free = nil
	return errors.Join(errs...)
}

// write puts on disk what is about to be placed in work. It may run with the caller's rights: the
// page is open.
func (p *page) write(c executor.Caller, work *os.File, pl rootfs.Placing) error {
	// Where it is, not what the caller called it.
	at, err := os.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", work.Fd()))
	if err != nil {
		return fmt.Errorf("journal: path of the work directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(work.Fd()), &st); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	b, err := encodePage(&placement{UID: c.UID, GID: c.GID, Groups: c.Groups, Workdir: []byte(at), Inode: st.Ino, Placing: pl})
	if err != nil {
		return err
	}
	if _, err := p.f.WriteAt(b, 0); err != nil {
		return Full(fmt.Errorf("journal: %w", err), "state directory", filepath.Dir(p.f.Name()))
	}
	if err := unix.Fdatasync(int(p.f.Fd())); err != nil {
		return Full(fmt.Errorf("journal: sync: %w", err), "state directory", filepath.Dir(p.f.Name()))
	}
	return nil
}

func encodePage(p *placement) ([]byte, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if len(b) > maxPage {
		return nil, fmt.Errorf("journal: the names of the outputs come to %d bytes; declare fewer", len(b))
	}
	sum := sha256.Sum256(b)
	head := binary.BigEndian.AppendUint64(make([]byte, 0, pageHead+len(b)), uint64(len(b)))
	return append(append(head, sum[:]...), b...), nil
}

// decodePage returns false for a page that tells of nothing.
func decodePage(b []byte) (p placement, ok bool) {
	if len(b) < pageHead {
		return p, false
	}
	n := binary.BigEndian.Uint64(b)
	if n == 0 || n > uint64(len(b)-pageHead) {
		return p, false
	}
	body := b[pageHead : pageHead+int(n)]
	if sha256.Sum256(body) != [sha256.Size]byte(b[8:pageHead]) {
		return p, false
	}
	return p, json.Unmarshal(body, &p) == nil
}
