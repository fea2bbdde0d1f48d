//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/vmtest"
)

const hardened = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountKernel mounts what loading modules and finding the disk needs.
func mountKernel() error {
	for _, m := range []struct {
		typ, at string
		flags   uintptr
	}{
		{"proc", "/proc", hardened}, {"sysfs", "/sys", hardened}, {"devtmpfs", "/dev", unix.MS_NOSUID},
	} {
		if err := mount(m.typ, m.at, m.typ, m.flags, ""); err != nil {
			return err
		}
	}
	return nil
}

// switchRoot moves the disk's file system over the initramfs. After that the
// root is a mount like any other, so that pivot_root(2) works, which it does not
// on an initramfs.
func switchRoot() error {
	const root = "/root"
	if err := waitFor(vmtest.RootDevice); err != nil {
		return err
	}
	if err := mount(vmtest.RootDevice, root, "ext4", unix.MS_NOATIME, ""); err != nil {
		return err
	}
	for _, at := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(at, root+at, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", at, err)
		}
	}
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// As systemd has it: what shields itself from propagation is tested for real.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// mountSystem mounts what programs expect of a running system.
func mountSystem() error {
	for _, m := range []struct {
		typ, at string
		flags   uintptr
		data    string
	}{
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"},
		{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", "/dev/mqueue", hardened, ""},
		{"securityfs", "/sys/kernel/security", hardened, ""},
		{"bpf", "/sys/fs/bpf", hardened, ""},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	} {
		if err := mount(m.typ, m.at, m.typ, m.flags, m.data); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	return os.Chmod(vmtest.ScratchDir, 0o777|os.ModeSticky)
}

// startSystemd lays the test's files over the root, and becomes systemd.
func startSystemd(job vmtest.Job) error {
	if err := waitFor(vmtest.PayloadDevice); err != nil {
		return err
	}
	if err := mount(vmtest.PayloadDevice, vmtest.PayloadDir, "ext4", unix.MS_NOATIME, ""); err != nil {
		return err
	}
	if out, err := exec.Command("/bin/cp", "-a", vmtest.PayloadDir+"/.", "/").CombinedOutput(); err != nil {
		return fmt.Errorf("lay the test over the root: %w: %s", err, out)
	}
	// From there the host fetches.
	if err := mount(vmtest.PayloadDir+vmtest.OutDir, vmtest.OutDir, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := os.Chmod(vmtest.ScratchDir, 0o777|os.ModeSticky); err != nil {
		return err
	}
	// systemd would mount its own over what is written there, but not over a mount.
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return err
	}
	b, err := json.Marshal(job)
	if err != nil {
		return err
	}
	if err := os.WriteFile(vmtest.GuestJob, b, 0o600); err != nil {
		return err
	}
	const systemd = "/lib/systemd/systemd"
	return unix.Exec(systemd, []string{systemd, "--unit=" + vmtest.Unit, "--show-status=no"}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
}
