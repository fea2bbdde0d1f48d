package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/rootfs"
)

// kindOf tells boxes apart: one is fit for any task of its kind.
type kindOf struct {
	root    *rootfs.Rootfs
	network netpolicy.Policy
	filter  FilterOptions
}

// kind is a root's template for tasks of one kind, and the boxes that wait for such a task.
type kind struct {
	mu       sync.Mutex // for the making and unmaking of template
	template *template
	unmade   bool

	// The host's lock guards these.
	limits limits.Limits // of the last task: the next one's may be the same
	boxes  []*box
	making int
	used   time.Time
	gone   bool
}

const (
	// warmFor is how long boxes wait for another task of their kind.
	warmFor = 5 * time.Minute
	// warmTick is how often it is looked whether they should.
	warmTick = 10 * time.Second
	// rest is how long after a start nothing is made, where half of the boxes wait: the task that was started, and the answer
	// to its caller, come first.
	rest = 5 * time.Millisecond
	// lowMemory is the part of the machine's memory that must be available for boxes to wait: one of so many.
	lowMemory = 20
)

// keeper keeps boxes waiting.
type keeper struct {
	wake    chan struct{}
	stop    chan struct{}
	stopped sync.WaitGroup
}

// obtain takes a box that fits a task from those that wait, or makes one.
func (h *Host) obtain(spec *Spec, fresh bool) (*box, error) {
	if !spec.Shared || len(spec.Inputs) > 0 {
		return h.single(spec)
	}
	key := spec.kind()
	h.mu.Lock()
	k := h.kinds[key]
	if k == nil {
		k = &kind{}
		h.kinds[key] = k
	}
	k.used, k.limits = time.Now(), spec.limitsAhead()
	var b *box
	for b == nil && len(k.boxes) > 0 && !fresh {
		b, k.boxes = k.boxes[len(k.boxes)-1], k.boxes[:len(k.boxes)-1]
		if b.ended() {
			h.discard(b)
			b = nil
		}
	}
	h.mu.Unlock()
	if b != nil {
		return b, nil
	}
	if err := h.ready(key, k); err != nil {
		return nil, err
	}
	return h.prepare(k.template, key, spec.limitsAhead())
}

func (s *Spec) kind() kindOf {
	return kindOf{s.Root, s.Network, FilterOptions{Debug: s.Debug, Direct: s.Work.Mode == WorkDirect}}
}

// groupLimits are the task's, with room for what is not the task's.
func (s *Spec) groupLimits() limits.Limits {
	l := s.Limits
	if l.PidsMax > 0 {
		l.PidsMax += ownPids
	}
	return l
}

// limitsAhead are those that a box is made with: the task's, unless the making would take long with them, or not succeed.
func (s *Spec) limitsAhead() limits.Limits {
	l := s.groupLimits()
	if l.MemoryBytes > 0 && l.MemoryBytes < 64<<20 || l.PidsMax > 0 && l.PidsMax < 16 || l.CPUQuotaUS > 0 && l.CPUQuotaUS < 50_000 {
		return limits.Limits{}
	}
	return l
}

// ready makes a kind's template where there is none: what kept the last one from being made may be over.
func (h *Host) ready(key kindOf, k *kind) (err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.unmade:
		return errClosed
	case k.template == nil:
		k.template, err = h.templates.make(key.root, nil)
	}
	return err
}

// single makes a box with a root that is for this task alone.
func (h *Host) single(spec *Spec) (*box, error) {
	x, err := h.templates.make(spec.Root, spec.Inputs)
	if err != nil {
		return nil, err
	}
	b, err := h.prepare(x, spec.kind(), spec.limitsAhead())
	if e := x.close(); e != nil && b != nil {
		return nil, errors.Join(e, b.undoAll())
	}
	return b, err
}

// discard unmakes a box that nobody had. Its errors are not for the task that comes by; the leftovers are swept by the next Host.
func (h *Host) discard(b *box) {
	h.keeper.stopped.Go(func() { h.note(b.undoAll()) })
}

// note keeps the first error of what nobody waits for, for Close.
func (h *Host) note(err error) {
	if err == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.aside == nil {
		h.aside = err
	}
}

// ended reports whether the first process has.
func (b *box) ended() bool {
	select {
	case <-b.lost:
		return true
	default:
		return false
	}
}

// Forget unmakes what is kept for a root that was Shared: call it before the root is closed, when
// no Start with it is under way.
func (h *Host) Forget(root *rootfs.Rootfs) error {
	h.mu.Lock()
	var gone []*kind
	for key, k := range h.kinds {
		if key.root == root {
			gone = append(gone, k)
			delete(h.kinds, key)
		}
	}
	h.mu.Unlock()
	var errs []error
	for _, k := range gone {
		errs = append(errs, h.drop(k))
	}
	return errors.Join(errs...)
}

// drop unmakes a kind that is not in the host's map.
func (h *Host) drop(k *kind) error {
	h.mu.Lock()
	k.gone = true
	boxes := k.boxes
	k.boxes = nil
	h.mu.Unlock()
	var errs []error
	for _, b := range boxes {
		errs = append(errs, b.undoAll())
	}
	k.mu.Lock() // it may be in the making
	defer k.mu.Unlock()
	k.unmade = true
	if k.template != nil {
		errs = append(errs, k.template.close())
	}
	return errors.Join(errs...)
}

// keep has the keeper look.
func (h *Host) keep() {
	select {
	case h.keeper.wake <- struct{}{}:
	default: // it will
	}
}

// startKeeper starts what makes boxes while processors are idle, and unmakes those that nobody needs.
func (h *Host) startKeeper() {
	h.keeper.wake, h.keeper.stop = make(chan struct{}, 1), make(chan struct{})
	if h.cfg.Warm <= 0 {
		return
	}
	h.keeper.stopped.Go(func() {
		tick := time.NewTicker(warmTick)
		defer tick.Stop()
		for {
			select {
			case <-h.keeper.stop:
				return
			case <-tick.C:
				short, err := memoryIsShort()
				h.note(err)
				h.trim(short)
			case <-h.keeper.wake:
				if h.halfFull() {
					select {
					case <-h.keeper.stop:
						return
					case <-time.After(rest):
					}
				}
				h.fill()
			}
		}
	})
}

// halfFull reports whether of each kind that is in use half of the boxes wait.
func (h *Host) halfFull() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.kinds {
		if 2*len(k.boxes) < h.cfg.Warm && time.Since(k.used) < warmFor {
			return false
		}
	}
	return true
}

// fill makes boxes until there are enough, or a task needs the processor.
func (h *Host) fill() {
	for {
		key, k, limits := h.lacking()
		if k == nil {
			return
		}
		b, err := (*box)(nil), h.ready(key, k)
		if err == nil {
			b, err = h.prepare(k.template, key, limits)
		}
		h.mu.Lock()
		k.making--
		unwanted := k.gone || h.closed
		if b != nil && !unwanted {
			k.boxes = append(k.boxes, b)
		}
		h.mu.Unlock()
		if b != nil && unwanted {
			h.note(b.undoAll())
		}
		if err != nil {
			return // a task that needs one will say why
		}
	}
}

// lacking is a kind of which there are too few boxes, and counts one for it; nil if none is to be made now. While a task
// is about to start, and with as many as processors, nothing is made ahead: it would take from the tasks what it gives to the next one.
func (h *Host) lacking() (key kindOf, k *kind, l limits.Limits) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.short || h.starting > 0 || h.running >= runtime.NumCPU() {
		return key, nil, l
	}
	for key, k := range h.kinds {
		if len(k.boxes)+k.making < h.cfg.Warm && time.Since(k.used) < warmFor {
			k.making++
			return key, k, k.limits
		}
	}
	return key, nil, l
}

// trim unmakes the boxes of kinds that nobody asked for in a while, and all where memory is short.
func (h *Host) trim(short bool) {
	h.mu.Lock()
	h.short = short
	var boxes []*box
	for _, k := range h.kinds {
		if short || time.Since(k.used) >= warmFor {
			boxes = append(boxes, k.boxes...)
			k.boxes = nil
		}
	}
	h.mu.Unlock()
	for _, b := range boxes {
		h.note(b.undoAll())
	}
	h.keep()
}

// memoryIsShort reports whether little of the machine's memory is available.
func memoryIsShort() (bool, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return false, err
	}
	return tellsShort(string(b))
}

// tellsShort reads /proc/meminfo: proc_meminfo(5).
func tellsShort(meminfo string) (bool, error) {
	kb := map[string]int64{}
	for line := range strings.Lines(meminfo) {
		k, v, _ := strings.Cut(line, ":")
		if f := strings.Fields(v); len(f) > 0 {
			kb[k], _ = strconv.ParseInt(f[0], 10, 64)
		}
	}
	if kb["MemTotal"] == 0 || kb["MemAvailable"] == 0 {
		return false, fmt.Errorf("/proc/meminfo tells no memory: %.100q", meminfo)
	}
	return kb["MemAvailable"] < kb["MemTotal"]/lowMemory, nil
}

// Waiting counts the sandboxes that are prepared and wait.
func (h *Host) Waiting() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.kinds {
		n += len(k.boxes)
	}
	return n
}

// starts counts a task on its way to a command, which nothing is to hinder, until started, and its Sandbox until
// gone.
func (h *Host) starts() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errClosed
	}
	h.starting++
	h.sandboxes++
	return nil
}

func (h *Host) started() {
	h.mu.Lock()
	h.starting--
	h.mu.Unlock()
	h.keep()
}

func (h *Host) gone() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sandboxes--
}

// runs counts commands that run.
func (h *Host) runs(n int) {
	h.mu.Lock()
	h.running += n
	h.mu.Unlock()
	if n < 0 {
		h.keep()
	}
}
