//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sandboxd/sandboxd/internal/vmtest"
)

// diskSize is sparse: what the guest does not write takes no space.
const diskSize = 4 << 30

// modules is what privileged tests use, as far as the kernel has it as modules.
var modules = []string{
	"virtio_pci", "virtio_blk", "?crc32c_generic", "ext4",
	"overlay", "veth", "bridge", "dummy", "tun", "loop", "?bfq",
	"nf_tables", "nf_conntrack", "nft_ct", "nft_reject_inet", "nft_masq", "nft_nat",
	"nft_chain_nat", "nft_log", "nft_limit", "nft_fib_inet",
	"nft_tproxy", "nft_socket",
}

// buildInitrd writes the initramfs: the init, the modules and the job.
func buildInitrd(dst string, k vmtest.Kernel, job *vmtest.Job) error {
	mods, err := vmtest.LoadOrder(k.Modules, modules...)
	if err != nil {
		return err
	}
	path, err := vminitPath()
	if err != nil {
		return err
	}
	vminit, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("build vminit beside vmexec: %w", err)
	}
	var a vmtest.Archive
	for _, d := range []string{"dev", "proc", "sys", "root"} {
		a.Dir(d)
	}
	a.Char("dev/console", 5, 1)
	a.File("init", 0o755, vminit)
	for _, m := range mods {
		p := "modules/" + m.Name + ".ko"
		a.File(p, 0o644, m.ELF)
		job.Modules = append(job.Modules, "/"+p)
	}
	b, err := json.Marshal(job)
	if err != nil {
		return err
	}
	a.File(vmtest.JobPath, 0o644, b)
	return os.WriteFile(dst, a.Bytes(), 0o600)
}

func vminitPath() (string, error) {
	self, err := os.Executable()
	return filepath.Join(filepath.Dir(self), "vminit"), err
}

// buildDisk fills the folder root with the guest's system and the test, and
// makes an ext4 image of it.
func buildDisk(ctx context.Context, disk, root string, job testJob, files []string) error {
	if err := fillRoot(root, job, files); err != nil {
		return err
	}
	f, err := os.OpenFile(disk, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-d", root, disk)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if cmd.Path == "mkfs.ext4" { // outside of an ordinary user's PATH
		cmd = exec.CommandContext(ctx, "/sbin/mkfs.ext4", cmd.Args[1:]...)
	}
	if uid := os.Getuid(); uid != 0 { // so that the files are root's in the image
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd, err, out)
	}
	return nil
}

func fillRoot(root string, job testJob, files []string) error {
	fill := fillSystem
	if job.Systemd {
		fill = fillPayload
	}
	if err := fill(root, job); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(root, job.Argv[0]), job.binary); err != nil {
		return err
	}
	if _, err := os.Stat("testdata"); err == nil {
		files = append(files, filepath.Join(job.Dir, "testdata")+"=testdata")
	}
	for _, f := range files {
		guest, host, _ := strings.Cut(f, "=")
		if err := copyTree(filepath.Join(root, guest), host); err != nil {
			return err
		}
	}
	return nil
}

// fillPayload makes what is laid over a system that is there: see vminit.
func fillPayload(root string, job testJob) error {
	const units = "etc/systemd/system"
	for _, d := range []string{filepath.Dir(vmtest.GuestInit), units, vmtest.ScratchDir, vmtest.OutDir, job.Dir} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	path, err := vminitPath()
	if err != nil {
		return err
	}
	if err := copyFile(filepath.Join(root, vmtest.GuestInit), path); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, units, vmtest.Unit), []byte(jobUnit), 0o644)
}

// jobUnit starts the test once the system is up. What the test does to the system's units
// must not end it.
const jobUnit = `[Unit]
Description=The test
Requires=multi-user.target
After=multi-user.target
[Service]
ExecStart=` + vmtest.GuestInit + `
TasksMax=infinity
OOMPolicy=continue
`

// fillSystem makes a small system around busybox.
func fillSystem(root string, job testJob) error {
	dirs := []string{
		"bin", "dev", "etc", "lib", "lib64", "mnt", "proc", "root", "run", "sbin", "sys", "tmp",
		"usr/bin", "usr/lib", "usr/sbin", "usr/share", "var/lib", "var/tmp",
		vmtest.ScratchDir, vmtest.OutDir, job.Dir,
	}
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"passwd":      "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
		"group":       "root:x:0:\nnogroup:x:65534:\n",
		"hosts":       "127.0.0.1 localhost\n::1 localhost\n",
		"resolv.conf": "",
		"os-release":  "ID=vmtest\nPRETTY_NAME=\"sandboxd test VM\"\n",
	} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return addBusybox(root)
}

// addBusybox puts the static busybox in /bin with a link for each of its tools.
func addBusybox(root string) error {
	host, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w: run 'make deps'", err)
	}
	if b, err := os.ReadFile(host); err != nil {
		return err
	} else if bytes.Contains(b, []byte("/ld-linux")) {
		return fmt.Errorf("%s is not static: install busybox-static ('make deps')", host)
	}
	if err := copyFile(filepath.Join(root, "bin/busybox"), host); err != nil {
		return err
	}
	tools, err := exec.Command(host, "--list").Output()
	if err != nil {
		return fmt.Errorf("%s --list: %w", host, err)
	}
	for _, t := range strings.Fields(string(tools)) {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", t)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// copyFile links where it can, since it only feeds mkfs.
func copyFile(dst, src string) error {
	if real, err := filepath.EvalSymlinks(src); err == nil && os.Link(real, dst) == nil {
		return nil
	}
	b, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	fi, err := os.Stat(src)
	if err != nil {
		return err
	}
	return os.WriteFile(dst, b, fi.Mode().Perm())
}

func copyTree(dst, src string) error {
	return filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dst, strings.TrimPrefix(p, src))
		switch {
		case d.IsDir():
			return os.MkdirAll(to, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return os.Symlink(target, to)
		case !d.Type().IsRegular():
			return fmt.Errorf("%s: neither file, folder nor link", p)
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return copyFile(to, p)
	})
}

// fetch copies what the job left out of the image. A file that the test did not
// get to write is not an error: its own exit status tells.
func fetch(ctx context.Context, disk string, back map[string]string) error {
	for name, host := range back {
		if strings.ContainsAny(host, "\"\n") {
			return fmt.Errorf("%q: cannot copy a profile to a path with such characters", host)
		}
		ask := fmt.Sprintf("dump \"%s/%s\" \"%s\"", vmtest.OutDir, name, host)
		cmd := exec.CommandContext(ctx, "/sbin/debugfs", "-R", ask, disk)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", cmd, err, out)
		}
	}
	return nil
}
