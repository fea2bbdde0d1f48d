package limits

import (
	"fmt"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// BenchmarkGroup is a control group made, with limits read back, and removed.
func BenchmarkGroup(b *testing.B) {
	testutil.RequireRoot(b)
	m, err := Open(Config{Parent: testutil.CgroupParent()})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	for name, l := range map[string]Limits{"unlimited": {}, "limited": {MemoryBytes: 1 << 30, PidsMax: 100}} {
		b.Run(name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				g, err := m.Create(fmt.Sprint(i), l)
				if err != nil {
					b.Fatal(err)
				}
				if err := g.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
