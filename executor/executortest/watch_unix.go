//go:build unix

package executortest

import (
	"os"
	"path/filepath"
	"syscall"

	"github.com/sandboxd/sandboxd/executor"
)

// watched makes a task whose processes all hold one end of a FIFO; gone fails the
// test if any of them is left. Where the workdir cannot be written directly, the
// task runs without.
func (s *suite) watched(script string) (spec *executor.TaskSpec, gone func()) {
	s.Helper()
	spec = sh("exec 9>alive; " + script)
	spec.Workdir, spec.WorkdirMode = s.TempDir(), executor.WorkdirDirect
	probe := *spec
	probe.Script = "true"
	if _, err := s.e.Execute(s.Context(), &probe); executor.KindOf(err) == executor.Unsupported {
		return sh(script), func() {}
	}
	fifo := filepath.Join(spec.Workdir, "alive")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		s.Fatal(err)
	}
	r, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = r.Close() })
	return spec, func() {
		raw, err := r.SyscallConn()
		if err != nil {
			s.Fatal(err)
		}
		// With a writer left the kernel says EAGAIN, without one end of file.
		err = raw.Read(func(fd uintptr) bool {
			if n, err := syscall.Read(int(fd), make([]byte, 1)); n != 0 || err != nil {
				s.Errorf("a process of the task is left: read %d, %v", n, err)
			}
			return true
		})
		if err != nil {
			s.Fatal(err)
		}
	}
}
