//go:build linux

// Command vminit is the first process of a test VM: it makes the VM's disk the
// root of a small system, runs one command with its output on a serial port,
// reports how it ended and powers off. Where the disk holds a system with
// systemd, it lays the test over it and executes systemd, of which a unit runs
// this program again, for the rest. See package vmtest.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/vmtest"
)

func main() {
	run, job := boot, "/"+vmtest.JobPath
	if os.Getpid() != 1 {
		if os.Getenv("INVOCATION_ID") == "" {
			fmt.Fprintln(os.Stderr, "vminit: only for test VMs, as the first process or as a unit of systemd's")
			os.Exit(1)
		}
		run, job = report, vmtest.GuestJob
	}
	if err := read(job, run); err != nil {
		fmt.Fprintln(os.Stderr, "vminit:", err) // on the console, which vmexec shows
	}
	unix.Sync()
	// So that the host finds a clean file system when it fetches profiles.
	for _, at := range []string{"/", vmtest.OutDir} { // whichever it is on
		_ = unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // qemu runs with -no-reboot
	select {}
}

func read(path string, run func(vmtest.Job) error) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var job vmtest.Job
	if err := json.Unmarshal(b, &job); err != nil {
		return err
	}
	return run(job)
}

// boot boots to the job, or to systemd, from which it does not return.
func boot(job vmtest.Job) error {
	if err := mountKernel(); err != nil {
		return err
	}
	for _, m := range job.Modules {
		if err := loadModule(m); err != nil {
			return fmt.Errorf("%s: %w", m, err)
		}
	}
	if err := switchRoot(); err != nil {
		return err
	}
	if job.Systemd {
		return startSystemd(job)
	}
	if err := errors.Join(mountSystem(), cgroups(), network()); err != nil {
		return err
	}
	return report(job)
}

// report runs the job and tells the host how it ended.
func report(job vmtest.Job) error {
	port, err := openPort()
	if err != nil {
		return err
	}
	fmt.Fprintf(port, "%s\n", vmtest.StartMark)
	fmt.Fprintf(port, "%s %d\n", vmtest.ExitMark, runJob(job, port))
	return unix.IoctlSetInt(int(port.Fd()), unix.TCSBRK, 1) // wait until it is sent
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// cgroups mounts cgroup v2, moves this process to a leaf (a group that gives
// controllers to its children must hold no process itself) and gives all of them.
func cgroups() error {
	const root = "/sys/fs/cgroup"
	if err := mount("cgroup2", root, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "nsdelegate,memory_recursiveprot"); err != nil {
		return err
	}
	if err := os.Mkdir(root+"/init", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(root+"/init/cgroup.procs", []byte("1"), 0); err != nil {
		return err
	}
	all, err := os.ReadFile(root + "/cgroup.controllers")
	if err != nil {
		return err
	}
	give := "+" + strings.Join(strings.Fields(string(all)), " +")
	return os.WriteFile(root+"/cgroup.subtree_control", []byte(give), 0)
}

func network() error {
	if out, err := exec.Command("/bin/ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("loopback: %w: %s", err, out)
	}
	return unix.Sethostname([]byte("vmtest"))
}

// openPort opens the serial port as a plain pipe for bytes: no echo, and no
// carriage return before a newline.
func openPort() (*os.File, error) {
	f, err := os.OpenFile(vmtest.Port, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	t.Iflag = 0
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	return f, unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
}

// runJob runs the job and returns its exit status, 128+n for signal n.
func runJob(job vmtest.Job, port *os.File) int {
	cmd := exec.Command(job.Argv[0], job.Argv[1:]...)
	cmd.Dir = job.Dir
	cmd.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
		"TMPDIR=" + vmtest.ScratchDir, "SANDBOXD_VM=1", "SANDBOXD_MUST_RUN=1",
	}, job.Env...)
	cmd.Stdout, cmd.Stderr = port, port
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(port, "vminit:", err)
		return 127
	}
	for { // reap whatever ends, as the first process must, until the job has
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			fmt.Fprintln(port, "vminit: wait:", err)
			return 127
		case pid == cmd.Process.Pid && ws.Signaled():
			return 128 + int(ws.Signal())
		case pid == cmd.Process.Pid:
			return ws.ExitStatus()
		}
	}
}

// waitFor waits for a device that a driver is about to make.
func waitFor(path string) error {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := os.Stat(path)
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", filepath.Clean(target), err)
	}
	return nil
}
