package pool

import (
	"encoding/binary"
	"hash/maphash"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/sandboxd/sandboxd/executor"
)

// mates are tasks of one caller that ask for the same, at the same time. They go to one member, so that it
// can run them once; whether they are the same it finds out by itself.
type mates struct {
	key    uint64
	n      atomic.Int32
	member atomic.Int32 // 1 more than its number; 0 before one was chosen
}

// joinMates is nil where nobody runs the same task once, or there is one member anyway. The lock is held.
func (p *Pool) joinMates(spec *executor.TaskSpec, user uint32) *mates {
	if len(p.cfg.Executors) < 2 || spec.Cache == executor.CacheOff || spec.WorkdirMode == executor.WorkdirDirect || spec.Audit {
		return nil
	}
	key := p.key(spec, user)
	s := p.mates[key]
	if s == nil {
		s = &mates{key: key}
		p.mates[key] = s
	}
	s.n.Add(1)
	return s
}

// leaveMates undoes it. The lock is held.
func (p *Pool) leaveMates(s *mates) {
	if s != nil && s.n.Add(-1) == 0 {
		delete(p.mates, s.key)
	}
}

// at is the member that the mates are at, if it is one of those; else -1.
func (s *mates) at(members uint64) int {
	if s == nil {
		return -1
	}
	i := int(s.member.Load()) - 1
	if i >= 0 && members&(1<<i) != 0 {
		return i
	}
	return -1
}

// settle has the mates go to member i, unless another of them was faster to choose one of those.
func (s *mates) settle(i int, members uint64) int {
	if s == nil || i < 0 || members&(1<<i) == 0 || s.member.CompareAndSwap(0, int32(i)+1) {
		return i
	}
	if other := s.at(members); other >= 0 {
		return other
	}
	s.moved(i)
	return i
}

// moved notes that one of the mates goes to member i.
func (s *mates) moved(i int) {
	if s != nil {
		s.member.Store(int32(i) + 1)
	}
}

// several reports whether there are others: then one must not leave them.
func (s *mates) several() bool { return s != nil && s.n.Load() > 1 }

// key is of what two tasks of a user have in common where they are the same. Two that are not may have
// the same key, and then merely go to the same member.
func (p *Pool) key(s *executor.TaskSpec, user uint32) uint64 {
	var h maphash.Hash
	h.SetSeed(p.seed)
	add := func(ss ...string) {
		var n [8]byte
		for _, x := range ss {
			binary.LittleEndian.PutUint64(n[:], uint64(len(x)))
			_, _ = h.Write(n[:])
			_, _ = h.WriteString(x)
		}
	}
	maphash.WriteComparable(&h, user)
	add(s.Script, string(s.Stdin), s.Workdir, string(s.WorkdirMode), s.Rootfs, string(s.Network))
	add(s.Argv...)
	add("outputs")
	add(s.Outputs...)
	add("allow")
	add(s.Allow...)
	for _, k := range slices.Sorted(maps.Keys(s.Env)) {
		add(k, s.Env[k])
	}
	for _, in := range s.Inputs {
		add(in.Host, in.Target())
	}
	for _, d := range s.DepSignatures {
		add(string(d))
	}
	maphash.WriteComparable(&h, s.Debug)
	return h.Sum64()
}
