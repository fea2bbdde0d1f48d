package local

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/action"
	"github.com/sandboxd/sandboxd/executor/internal/caller"
	"github.com/sandboxd/sandboxd/executor/internal/placing"
)

// BenchmarkCollect is a tree of outputs on its way: collected into an empty cache, by copying and by adoption, stored as a
// result, which syncs it, put into the caller's tree; and collected once more, when all is in the cache.
func BenchmarkCollect(b *testing.B) {
	all := b.TempDir()
	for _, c := range []struct{ files, size int }{{1000, 1 << 10}, {1000, 100 << 10}, {16, 16 << 20}} {
		// Removed at the end of all alone: some file systems are slow to make files where others were just removed.
		make := func() *os.File {
			dir, err := os.MkdirTemp(all, fmt.Sprint(c))
			must(b, err)
			for i := range c.files {
				name := fmt.Sprintf("%s/out/%d/%d", dir, i/100, i%100)
				must(b, os.MkdirAll(filepath.Dir(name), 0o755))
				text := fmt.Sprintf("file %58d\n", i) // other bytes in each, and none in zeros
				must(b, os.WriteFile(name, bytes.Repeat([]byte(text), c.size/len(text)), 0o644))
			}
			work, err := os.Open(dir)
			must(b, err)
			return work
		}
		kept := make()
		defer kept.Close()
		for _, step := range []string{"collect", "adopt", "store", "place", "again"} {
			b.Run(fmt.Sprintf("%s/files=%d/size=%dKiB", step, c.files, c.size>>10), func(b *testing.B) {
				b.SetBytes(int64(c.files * c.size))
				for b.Loop() {
					b.StopTimer()
					work := kept
					if step == "adopt" {
						work = make()
					}
					benchCollect(b, work, step)
					if work != kept {
						must(b, work.Close())
					}
					b.StartTimer()
				}
			})
		}
	}
}

// benchCollect goes through the steps, and times the one.
func benchCollect(b *testing.B, work *os.File, timed string) {
	dir, err := os.MkdirTemp(filepath.Dir(work.Name()), "")
	must(b, err)
	to := dir + "/to"
	must(b, os.Mkdir(to, 0o755))
	store, err := cache.Open(filepath.Join(dir, "cache"), cache.Config{})
	must(b, err)
	there, err := os.Open(to)
	must(b, err)
	log, _, err := placing.Open(filepath.Join(dir, "journal"), logrus.New())
	must(b, err)
	t := &task{
		Executor: &Executor{cfg: Config{Cache: store}, journal: log}, caller: caller.Self(), paths: &caller.Paths{Work: there},
		spec: &executor.TaskSpec{Outputs: []string{"out"}},
	}
	defer func() {
		must(b, errors.Join(store.Close(), log.Close()))
		must(b, there.Close())
	}()
	step := func(name string, f func() error) {
		if name == timed {
			b.StartTimer()
			defer b.StopTimer()
		}
		must(b, f())
	}
	out := executor.TaskOutput{Cause: executor.CauseExited}
	if timed == "adopt" {
		step("adopt", func() error { return t.collectOutputs(b.Context(), work, work, &out) })
		return
	}
	step("collect", func() error { return t.collectOutputs(b.Context(), work, nil, &out) })
	switch timed {
	case "store":
		step("store", func() error {
			return store.PutResult("uid-0", cache.DigestOf([]byte("action")), nil, action.Blobs(&out))
		})
	case "place":
		step("place", func() error { return t.place(b.Context(), &out) })
	case "again":
		step("again", func() error { return t.collectOutputs(b.Context(), work, nil, &out) })
	}
}
