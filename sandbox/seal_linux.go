package sandbox

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// sealedEnv marks a process that Seal executed, so that a kernel which will not
// execute a memfd cannot make it do so for ever.
const sealedEnv = "_SANDBOXD_SEALED"

// Seal executes the running program again from a sealed copy in memory, with the
// same arguments, so that no sandbox can reach the file it came from and none has
// to be given a copy of its own. It returns at once in that copy. Call it first
// thing in main, before there are goroutines or open files.
func Seal() error {
	if os.Getenv(sealedEnv) != "" {
		return os.Unsetenv(sealedEnv)
	}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	defer exe.Close()
	copy, err := memfd("sandboxd", func(w io.Writer) error {
		_, err := io.Copy(w, exe)
		return err
	})
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
