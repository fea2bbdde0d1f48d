package rootfs

import (
	"os"
	"path"
	"sync"
	"sync/atomic"
)

// minHelped is how many files are worth one goroutine more.
const minHelped = 16

// filling is the writing of what an output, which is a directory, holds.
type filling struct {
	*placer
	root *os.File // of what is written, at path top
	top  string

	files []Entry
	next  atomic.Int64 // the first of files that nobody took
	mu    sync.Mutex
	first int // the first of files that failed with err
	err   error
}

// run writes entries, a directory before what is in it: the directories and links, and then the files, by
// several goroutines. The error is that of the first that fails: all files before it were taken.
func (f *filling) run(entries []Entry) error {
	in := dirOf{filling: f}
	defer in.close()
	for _, e := range entries {
		if e.Kind == 'f' {
			f.files = append(f.files, e)
			continue
		}
		if err := in.write(e); err != nil {
			return err
		}
	}
	helpers := 0
	if f.help != nil {
		helpers = min(workers(), len(f.files)/minHelped) - 1
	}
	failed := make(chan error, max(helpers, 0))
	var helping sync.WaitGroup
	for range helpers {
		helping.Go(func() {
			failed <- f.help(func() error {
				f.work()
				return nil
			})
		})
	}
	f.work()
	helping.Wait()
	close(failed)
	if f.err != nil {
		return f.err
	}
	for err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}

// work writes files until all are taken or one failed.
func (f *filling) work() {
	in := dirOf{filling: f}
	defer in.close()
	for {
		i := int(f.next.Add(1)) - 1
		if i >= len(f.files) {
			return
		}
		if err := in.write(f.files[i]); err != nil {
			f.fail(i, err)
			return
		}
	}
}

func (f *filling) fail(i int, err error) {
	f.next.Store(int64(len(f.files))) // no more are taken
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil || i < f.first {
		f.first, f.err = i, err
	}
}

// dirOf is the directory that one goroutine writes to at the moment.
type dirOf struct {
	*filling
	at string // its path; "" for none yet
	d  *os.File
}

func (in *dirOf) write(e Entry) error {
	if at := path.Dir(e.Path); at != in.at {
		in.close()
		in.at, in.d = at, in.root
		if at != in.top {
			d, err := openDir(in.root, at[len(in.top)+1:], beneath)
			if err != nil {
				in.at, in.d = "", nil
				return explain(e.Path, err)
			}
			in.d = d
		}
	}
	return in.placer.write(in.d, path.Base(e.Path), e)
}

func (in *dirOf) close() {
	if in.d != nil && in.d != in.root {
		in.d.Close()
	}
	in.at, in.d = "", nil
}
