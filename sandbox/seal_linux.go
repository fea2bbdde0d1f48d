package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// sealedEnv marks a process that Seal executed, so that a kernel which will not
// execute a memfd cannot make it do so for ever.
const sealedEnv = "_SANDBOXD_SEALED"

// Seal executes the running program again from a sealed copy in memory, with the
// same arguments, which saves libcontainer a copy for each sandbox. It returns at
// once in that copy. Call it first thing in main, before there are goroutines or
// open files.
func Seal() error {
	if os.Getenv(sealedEnv) != "" {
		return errors.Join(os.Unsetenv(sealedEnv), first.SetName("sandboxd"))
	}
	copy, err := sealedProgram()
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	defer copy.Close()
	env := append(os.Environ(), sealedEnv+"=1")
	if err := unix.Exec(fmt.Sprintf("/proc/self/fd/%d", copy.Fd()), os.Args, env); err != nil {
		return fmt.Errorf("seal: execute the copy in memory: %w", err)
	}
	return nil
}

// sealedProgram is the running program as a file that no one can write to, so that
// a sandbox which gets hold of it has nothing of the machine's.
func sealedProgram() (*os.File, error) {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if has, err := unix.FcntlInt(exe.Fd(), unix.F_GET_SEALS, 0); err == nil && has&seals == seals {
		return exe, nil
	}
	defer exe.Close()
	return first.Memfd("sandboxd", func(w io.Writer) error {
		_, err := io.Copy(w, exe)
		return err
	})
}
