package tree

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTerminal: a terminal that took a file's place does not become that of the process, which whoever holds its other end could then
// interrupt, and hang up.
func TestTerminal(t *testing.T) {
	const inside = "SANDBOXD_TEST_TERMINAL"
	if os.Getenv(inside) == "" {
		self, err := os.Executable()
		must(t, err)
		cmd := exec.Command(self, "-test.run=^TestTerminal$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // as a daemon
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer far.Close()
	must(t, unix.IoctlSetPointerInt(int(far.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(far.Fd()), unix.TIOCGPTN)
	must(t, err)
	if f, err := (Dir{Root: openRoot(t, "/dev/pts")}).Open(strconv.Itoa(n)); err == nil {
		t.Errorf("%v was opened", f)
	}
	if f, err := os.Open("/dev/tty"); !errors.Is(err, unix.ENXIO) {
		t.Errorf("the process has a terminal: %v, %v", f, err)
	}
}
