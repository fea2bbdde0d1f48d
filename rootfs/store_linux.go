package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxWorkers bounds how many files are read or written at once, where there are as many processors.
const maxWorkers = 8

func workers() int { return min(runtime.GOMAXPROCS(0), maxWorkers) }

// storing has files stored, several at once, while the tree is walked on.
type storing struct {
	ctx     context.Context
	store   Store
	all     []*content
	next    chan *content
	working sync.WaitGroup
	failed  atomic.Bool
}

// content is of one file.
type content struct {
	f     *os.File
	path  string
	st    unix.Stat_t
	entry int // that is to get the blob
	take  Store
	taken bool // take sees to it that it does not change
	blob  string
	err   error
}

// errFailed says that a file before this one failed, whose error finish returns.
var errFailed = errors.New("another file could not be stored")

// add hands x on, and waits while there is nobody who could take it.
func (s *storing) add(x *content) {
	s.all = append(s.all, x)
	if s.next == nil {
		s.next = make(chan *content)
	}
	if len(s.all) <= workers() {
		s.working.Go(func() {
			for x := range s.next {
				if x.err = x.storeIt(s.ctx); x.err != nil {
					s.failed.Store(true)
				}
				x.f.Close()
			}
		})
	}
	s.next <- x
}

// finish waits for all, and gives the entries their blobs. The error is that of the first file that has one:
// all before it were handed on, too.
func (s *storing) finish(entries []Entry) error {
	if s.next != nil {
		close(s.next)
	}
	s.working.Wait()
	for _, x := range s.all {
		if x.err != nil {
			return x.err
		}
		entries[x.entry].Blob = x.blob
	}
	return nil
}

func (x *content) storeIt(ctx context.Context) (err error) {
	if x.blob, err = x.take(ctx, x.path, x.f, x.st.Size); err != nil {
		return fmt.Errorf("store %s: %w", display(x.path), err)
	}
	if x.taken {
		return nil
	}
	now, err := fstat(x.f)
	if err != nil {
		return explain(x.path, err)
	}
	if now.Size != x.st.Size || now.Mtim != x.st.Mtim {
		return &EntryError{Path: x.path, Reason: "changed while it was read; let nothing else change the work directory"}
	}
	return nil
}
