package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/internal/placing"
)

// TestJournalFull: where the state directory has no room for the journal, nothing is placed, and it is
// said whose disk is full.
func TestJournalFull(t *testing.T) {
	e := newExecutor(t)
	small := filepath.Join(openDir(t), "small")
	must(t, os.Mkdir(small, 0o755))
	must(t, unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"))
	defer func() { must(t, unix.Unmount(small, 0)) }()
	j, _, err := placing.Open(filepath.Join(small, "placing"), logrus.New())
	must(t, err)
	defer func() { must(t, j.Close()) }()
	defer func(j *placing.Journal) { e.journal = j }(e.journal)
	e.journal = j
	f, err := os.Create(filepath.Join(small, "ballast"))
	must(t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	must(t, f.Close())
	work := openDir(t)
	_, err = e.Execute(t.Context(), &executor.TaskSpec{Workdir: work, Outputs: []string{"o"}, Script: "echo new >o"})
	if executor.KindOf(err) != executor.Unavailable || !strings.Contains(err.Error(), "the file system of the state directory "+small) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(work); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}
