package sandbox

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestANumberIsNoProcess: what has the number of a first process that has ended is not taken for it.
func TestANumberIsNoProcess(t *testing.T) {
	f := newFixture(t)
	s, _, _ := f.start(Spec{Argv: []string{"sleep", "1000"}})
	ns, err := s.namespace("net")
	must(t, err)
	defer ns.Close()
	var ours, its unix.Stat_t
	must(t, unix.Fstat(int(ns.Fd()), &its))
	must(t, unix.Stat("/proc/self/ns/net", &ours))
	if its.Ino == ours.Ino {
		t.Error("its network is ours")
	}
	must(t, s.seeGroup())
	must(t, s.Kill())
	must(t, s.await())
	f.await("its number is free", func() bool { return unix.Kill(s.pid, 0) == unix.ESRCH })
	stale := *s.box
	stale.pid = os.Getpid()
	if ns, err := stale.namespace("net"); !ended(err) {
		t.Errorf("the network of another: %v, %v", ns, err)
	}
	if err := stale.seeGroup(); !ended(err) {
		t.Errorf("the group of another: %v", err)
	}
	if err := stale.lives(); err != io.EOF {
		t.Error(err)
	}
}
