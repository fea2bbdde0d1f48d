package sandbox

import (
	"fmt"
	"os"
	"testing"
)

// TestMapsAreBounded: a range that many owners have used keeps few of their maps, and what a map can hold is bounded, too.
func TestMapsAreBounded(t *testing.T) {
	f := newFixture(t)
	r := f.host.ranges
	x, err := r.take()
	must(t, err)
	b := &box{host: f.host, ids: x}
	var groups []uint32
	for g := range uint32(1000) {
		groups = append(groups, 5000+g, overflow, rangeBase+g)
	}
	if _, err := b.files(owner{4001, 5000, groups}); err != nil {
		t.Fatalf("many groups: %v", err)
	}
	for uid := range uint32(maxMaps) {
		for range 2 {
			if _, err := b.files(owner{4002 + uid, 5000, groups[:3]}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(x.maps) != maxMaps+1 {
		t.Errorf("%d maps", len(x.maps))
	}
	fds := func() int {
		all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	before := fds()
	if err := r.give(x); err != nil {
		t.Fatal(err)
	}
	if n := before - fds(); n != maxMaps+1 || len(x.maps) != 0 {
		t.Errorf("%d descriptors were closed, %d maps are kept", n, len(x.maps))
	}
}
