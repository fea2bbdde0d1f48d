package sandbox

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// benchmark readies a host and a template, and sees that all works before anything is measured.
func benchmark(b *testing.B) (*Host, kindOf, *template) {
	testutil.RequireRoot(b)
	h, root := openHost(b, 0)
	k := kindOf{root: root, network: netpolicy.Isolated}
	x, err := h.templates.make(root, nil)
	must(b, err)
	b.Cleanup(func() { must(b, x.close()) })
	box, err := h.prepare(x, k, limits.Limits{})
	must(b, err)
	must(b, box.undoAll())
	return h, k, x
}

// BenchmarkClone is the first process of a sandbox made and ended, and with it its namespaces.
func BenchmarkClone(b *testing.B) {
	h, _, _ := benchmark(b)
	for _, network := range []bool{false, true} {
		b.Run(fmt.Sprintf("network=%t", network), func(b *testing.B) {
			ids, err := h.ranges.take()
			must(b, err)
			defer func() { must(b, h.ranges.give(ids)) }()
			line := fmt.Sprintf("0 %d %d\n", ids.base, rangeSize)
			for b.Loop() {
				n, err := h.zygote.clone(h, first.Request{Network: network, UIDs: line, GIDs: line})
				must(b, err)
				must(b, errors.Join(n.sock.Close(), awaitExit(n.pidfd), n.pidfd.Close(), n.of.release()))
			}
		})
	}
}

// BenchmarkMounts is a copy of a root's mounts made, given other owners, and dropped.
func BenchmarkMounts(b *testing.B) {
	h, _, x := benchmark(b)
	ids, err := h.ranges.take()
	must(b, err)
	defer func() { must(b, h.ranges.give(ids)) }()
	box := &box{host: h, ids: ids}
	ns, err := box.files(owner{})
	must(b, err)
	for b.Loop() {
		tree, err := x.clone(ns)
		must(b, err)
		dev, err := makeDevices(ns)
		must(b, err)
		must(b, errors.Join(tree.Close(), dev.Close()))
	}
}

// BenchmarkPrepare is a sandbox prepared, and unmade without a task.
func BenchmarkPrepare(b *testing.B) {
	h, k, x := benchmark(b)
	for b.Loop() {
		box, err := h.prepare(x, k, limits.Limits{})
		must(b, err)
		must(b, box.undoAll())
	}
}

// BenchmarkStart is the time until a command has ended, in a sandbox that is prepared and in one that is not. The preparation of
// the first, and the unmaking of both, are left out.
func BenchmarkStart(b *testing.B) {
	h, k, _ := benchmark(b)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	must(b, err)
	defer null.Close()
	spec := Spec{Root: k.root, Shared: true, Network: k.network, Argv: []string{"/bin/true"}, Stdio: [3]*os.File{null, null, null}}
	for name, warm := range map[string]int{"prepared": 1, "not": 0} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				h.cfg.Warm = warm
				h.fill()
				b.StartTimer()
				s, err := h.Start(b.Context(), spec)
				must(b, err)
				exit, err := s.Wait(b.Context())
				b.StopTimer()
				if err = errors.Join(err, s.Close()); err != nil || exit.Code != 0 {
					b.Fatal(exit, err)
				}
				b.StartTimer()
			}
		})
	}
}
