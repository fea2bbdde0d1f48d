package netpolicy

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKnobs: those of a namespace are written also where /proc/sys is mounted read-only, as a daemon's
// may be, and are not the host's.
func TestKnobs(t *testing.T) {
	require(t)
	const knob = "net/ipv4/icmp_ratelimit"
	before, err := os.ReadFile("/proc/sys/" + knob)
	if err != nil {
		t.Fatal(err)
	}
	n, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	err = n.do(func() error {
		// A mount namespace of this thread's, which ends with it.
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return err
		}
		if err := writeKnob(unix.AT_FDCWD, "/proc/sys/"+knob, "2000"); err != unix.EROFS {
			t.Errorf("the mount is not read-only: %v", err)
		}
		if err := setSysctls(map[string]string{knob: "2000"}); err != nil {
			return err
		}
		got, err := os.ReadFile("/proc/sys/" + knob)
		if strings.TrimSpace(string(got)) != "2000" {
			t.Errorf("the knob is %q", got)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile("/proc/sys/" + knob); err != nil || string(after) != string(before) {
		t.Errorf("the host's knob was %q and is %q, %v", before, after, err)
	}
}
