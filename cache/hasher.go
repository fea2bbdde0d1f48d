package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"
)

const (
	// maxWorkers bounds the goroutines of one HashTree, and so its descriptors.
	maxWorkers = 16
	// jobsPerWorker is how many jobs must wait for another worker to be worth its
	// start, which costs as much as some jobs.
	jobsPerWorker = 8
	// looksPerJob is how many entries of a directory one worker looks at on end.
	looksPerJob = 256
	readSize    = 128 << 10
)

// hasher is one HashTree. Jobs are directories to list and files to read; workers
// take the newest, so that few directories are open at once. After the first
// error jobs are only counted, which closes what is open.
type hasher struct {
	ctx   context.Context
	index *index
	opt   TreeOptions

	entries, files, bytes, read atomic.Int64
	changed                     atomic.Int64 // the latest ctime

	mu      sync.Mutex
	change  sync.Cond // of jobs, or done
	jobs    []job     // guarded by mu
	done    bool      // the root has its digest, or never will; guarded by mu
	err     error     // the first; guarded by mu
	failed  atomic.Bool
	workers int // started; guarded by mu
	max     int
	wg      sync.WaitGroup
}

// job is a directory to list, some of its entries to look at, or a file of it to read.
type job struct {
	do       func(*worker, job) (string, error) // the string is the entry's name in errors
	dir      *node
	from, to int // of dir.entries; from is the file to read
	info     info
}

// node is a directory that is being hashed.
type node struct {
	parent  *node
	slot    int // in parent.entries
	name    string
	depth   int
	mount   uint64
	inode   inode
	exclude exclusion
	handle  dirHandle    // from the job that lists it until it has its digest
	pending atomic.Int64 // jobs for it and beneath it that are not done
	entries []dirent
}

// worker is what one goroutine of a hasher has for itself.
type worker struct {
	*hasher
	buf  []byte // of readSize
	out  []byte // a Directory message
	hash hash.Hash
}

func newHasher(ctx context.Context, x *index, opt TreeOptions) *hasher {
	h := &hasher{ctx: ctx, index: x, opt: opt, max: min(max(runtime.GOMAXPROCS(0), 2), maxWorkers)}
	h.change.L = &h.mu
	return h
}

// run hashes the tree in dir.
func (h *hasher) run(dir *os.File, ex exclusion) (Tree, error) {
	// The root stands in a directory of its own, which never ends.
	above := &node{handle: handleOf(dir), entries: make([]dirent, 1)}
	above.pending.Store(2)
	root := &node{parent: above, name: ".", exclude: ex}
	root.pending.Store(1)
	h.push(job{do: (*worker).list, dir: root})
	h.wg.Wait()
	runtime.KeepAlive(dir)
	if h.err != nil {
		return Tree{}, h.err
	}
	e := above.entries[0]
	return Tree{Digest: digest(e.sum, e.size), Files: h.files.Load(), Bytes: h.bytes.Load(), Read: h.read.Load(), Changed: h.changed.Load()}, nil
}

// saw keeps the latest ctime.
func (h *hasher) saw(in info) {
	for {
		was := h.changed.Load()
		if in.ctime <= was || h.changed.CompareAndSwap(was, in.ctime) {
			return
		}
	}
}

func (h *hasher) push(jobs ...job) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.jobs = append(h.jobs, jobs...)
	h.change.Broadcast()
	for h.workers == 0 || h.workers < h.max && len(h.jobs) > h.workers*jobsPerWorker {
		h.workers++
		h.wg.Go(h.work)
	}
}

// work is one goroutine.
func (h *hasher) work() {
	credential := h.opt.Credential
	if credential == nil {
		credential = func(work func() error) error { return work() }
	}
	ran := false
	err := credential(func() error {
		ran = true
		w := &worker{hasher: h}
		for j, ok := h.next(); ok; j, ok = h.next() {
			w.do(j)
		}
		return nil
	})
	if err == nil && !ran {
		err = errors.New("credential did not call work")
	}
	if err != nil {
		h.fail(fmt.Errorf("take on the credentials: %w", err))
		h.drain()
	}
}

// drain is work for a worker that may not read.
func (h *hasher) drain() {
	w := &worker{hasher: h}
	for j, ok := h.next(); ok; j, ok = h.next() {
		w.do(j)
	}
}

// next waits for a job; without one all is done.
func (h *hasher) next() (job, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.jobs) == 0 && !h.done {
		h.change.Wait()
	}
	if len(h.jobs) == 0 {
		return job{}, false
	}
	last := len(h.jobs) - 1
	j := h.jobs[last]
	h.jobs[last] = job{}
	h.jobs = h.jobs[:last]
	return j, true
}

func (h *hasher) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.err = err
	}
	h.failed.Store(true)
}

func (w *worker) do(j job) {
	if err := w.ctx.Err(); err != nil {
		w.fail(err)
	}
	if !w.failed.Load() {
		if name, err := j.do(w, j); err != nil {
			w.fail(j.dir.explain(name, err))
		}
	}
	w.complete(j.dir)
}

// explain names the file that stands against the hashing.
func (n *node) explain(name string, err error) error {
	return treeError(n.path(name), err)
}

// treeError puts a name to an error, unless it is none of the file's doing.
func treeError(name string, err error) error {
	for _, ours := range []error{context.Canceled, context.DeadlineExceeded, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		if errors.Is(err, ours) {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w (%w)", ErrChanged, err) // it was listed
	}
	return &TreeError{Path: name, Err: err}
}

// path is that of an entry of n, or if it has no name, of n.
func (n *node) path(name string) string {
	var names []string
	if name != "" {
		names = append(names, name)
	}
	for ; n.depth > 0; n = n.parent {
		names = append(names, n.name)
	}
	if len(names) == 0 {
		return "."
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// complete counts a job as done, and gives their digests to the directories for
// which it was the last.
func (w *worker) complete(n *node) {
	for n.pending.Add(-1) == 0 {
		n.handle.close()
		if !w.failed.Load() {
			w.finish(n)
		}
		n.entries = nil
		n = n.parent
		if n.parent == nil {
			w.mu.Lock()
			w.done = true
			w.change.Broadcast()
			w.mu.Unlock()
			return
		}
	}
}

// finish writes the digest of a directory into its parent's entry.
func (w *worker) finish(n *node) {
	e := &n.parent.entries[n.slot]
	e.name, e.kind = n.name, kindDir
	w.out = appendDirectory(w.out[:0], n.entries)
	// Those of an excluded path's parents that are there are as those that are not.
	if len(w.out) == 0 && n.exclude != nil && n.depth > 0 {
		e.kind = kindAbsent
	}
	e.sum, e.size = sha256.Sum256(w.out), int64(len(w.out))
}

// list is the job that reads what entries a directory has.
func (w *worker) list(j job) (string, error) {
	n := j.dir
	if err := n.open(w.saw); err != nil {
		return "", err
	}
	names, err := n.handle.names(w.opt.MaxEntries - int(w.entries.Load()))
	if err != nil {
		return "", err
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		below, there := n.exclude[name]
		return there && below == nil
	})
	if w.entries.Add(int64(len(names))) > int64(w.opt.MaxEntries) {
		return "", errEntries
	}
	if len(names) > 0 && n.depth == w.opt.MaxDepth {
		return names[0], fmt.Errorf("lies deeper than %d names: exclude it or raise the bound", w.opt.MaxDepth)
	}
	slices.Sort(names)
	n.entries = make([]dirent, len(names))
	for i, name := range names {
		n.entries[i].name = name
	}
	var jobs []job
	for from := 0; from < len(names); from += looksPerJob {
		jobs = append(jobs, job{do: (*worker).lookAll, dir: n, from: from, to: min(from+looksPerJob, len(names))})
	}
	if len(jobs) == 1 {
		return w.lookAll(jobs[0])
	}
	w.add(n, jobs)
	return "", nil
}

// open opens the directory, which must be the one that was looked at.
func (n *node) open(saw func(info)) error {
	h, in, err := n.parent.handle.openDir(n.name)
	if err != nil {
		return err
	}
	saw(in)
	n.handle = h
	if n.depth == 0 {
		n.mount, n.inode = in.mount, in.inode
	}
	if in.inode != n.inode || in.mount != n.mount {
		return ErrChanged
	}
	return nil
}

// lookAll is the job that looks at some entries.
func (w *worker) lookAll(j job) (string, error) {
	var jobs []job
	for slot := j.from; slot < j.to; slot++ {
		if err := w.ctx.Err(); err != nil {
			return j.dir.entries[slot].name, err
		}
		next, err := w.look(j.dir, slot)
		if err != nil {
			return j.dir.entries[slot].name, err
		}
		if next.do != nil {
			jobs = append(jobs, next)
		}
	}
	w.add(j.dir, jobs)
	return "", nil
}

// add queues jobs that n waits for.
func (w *worker) add(n *node, jobs []job) {
	if len(jobs) > 0 {
		n.pending.Add(int64(len(jobs)))
		w.push(jobs...)
	}
}

var errEntries = errors.New("the tree has more entries than the bound: exclude some or raise it")

// look fills an entry from what is known without reading, and says what there is
// left to do.
func (w *worker) look(n *node, slot int) (job, error) {
	e := &n.entries[slot]
	name := e.name
	if !utf8.ValidString(name) {
		return job{}, errors.New("name is not UTF-8: rename it or exclude it")
	}
	in, err := n.handle.stat(name)
	if err != nil {
		return job{}, err
	}
	if in.mount != n.mount {
		return job{}, errMount
	}
	w.saw(in)
	switch in.mode.Type() {
	case 0:
		e.kind = kindFile
		known, err := w.known(e, in)
		if known || err != nil {
			return job{}, err
		}
		return job{do: (*worker).readEntry, dir: n, from: slot, info: in}, nil
	case fs.ModeDir:
		sub := &node{parent: n, slot: slot, name: name, depth: n.depth + 1, mount: in.mount, inode: in.inode, exclude: n.exclude[name]}
		sub.pending.Store(1)
		return job{do: (*worker).list, dir: sub}, nil
	case fs.ModeSymlink:
		e.kind = kindLink
		if e.target, err = n.handle.readlink(name); err == nil && !utf8.ValidString(e.target) {
			err = fmt.Errorf("is a link to %.200q, which is not UTF-8: change it or exclude it", e.target)
		}
		return job{}, err
	}
	return job{}, fmt.Errorf("is a %s, which has no digest: remove it or exclude it", typeName(in.mode))
}

var errMount = errors.New("is on another mount than the tree: unmount it or exclude it")

func typeName(m fs.FileMode) string {
	switch {
	case m&fs.ModeNamedPipe != 0:
		return "FIFO"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// known counts a file and fills its entry if the index knows it.
func (w *hasher) known(e *dirent, in info) (bool, error) {
	w.files.Add(1)
	if in.size > w.opt.MaxBytes || uint64(w.bytes.Add(in.size)) > uint64(w.opt.MaxBytes) {
		return false, fmt.Errorf("brings the files' size above %d bytes: exclude some or raise the bound", w.opt.MaxBytes)
	}
	e.size, e.executable = in.size, in.mode&0o100 != 0
	var ok bool
	e.sum, ok = w.index.lookup(fileID{in.inode, w.opt.Reader}, in.size, in.mtime, in.ctime)
	return ok, nil
}

// readEntry is the job that reads a file.
func (w *worker) readEntry(j job) (string, error) {
	e := &j.dir.entries[j.from]
	f, in, err := j.dir.handle.openFile(e.name)
	if err != nil {
		return e.name, err
	}
	if in != j.info {
		err = ErrChanged
	} else {
		err = w.sum(e, f, in, f.info)
	}
	return e.name, errors.Join(err, f.close())
}

// file is the entry of one open file.
func (h *hasher) file(f *os.File) (dirent, error) {
	in, err := infoOf(f)
	if err != nil {
		return dirent{}, err
	}
	if !in.mode.IsRegular() {
		return dirent{}, errors.New("is not a regular file")
	}
	h.saw(in)
	e := dirent{kind: kindFile}
	known, err := h.known(&e, in)
	if known || err != nil {
		return e, err
	}
	w := &worker{hasher: h}
	return e, w.sum(&e, io.NewSectionReader(f, 0, in.size+1), in, func() (info, error) { return infoOf(f) })
}

// sum reads a file's content into an entry. It must be what it was, by info, when
// it has been read.
func (w *worker) sum(e *dirent, r io.Reader, was info, stat func() (info, error)) error {
	if w.buf == nil {
		w.buf, w.hash = make([]byte, readSize), sha256.New()
	}
	w.hash.Reset()
	began := time.Now()
	n, err := io.CopyBuffer(w.hash, reader{w.ctx, io.LimitReader(r, was.size+1)}, w.buf)
	if err != nil {
		return err
	}
	is, err := stat()
	if err != nil {
		return err
	}
	if is != was || n != was.size {
		return ErrChanged
	}
	w.hash.Sum(e.sum[:0])
	w.read.Add(1)
	w.index.add(fileID{was.inode, w.opt.Reader}, fileState{size: was.size, mtime: was.mtime, ctime: was.ctime, sum: e.sum}, began)
	return nil
}

// info is what tells one state of a file from another.
type info struct {
	inode        inode
	mount        uint64 // 0 if the system does not say
	size         int64
	mtime, ctime int64 // nanoseconds since 1970
	mode         fs.FileMode
}
