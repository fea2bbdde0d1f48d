//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/internal/vmtest"
)

const (
	qemu = "qemu-system-x86_64"
	// bootLimit bounds the way to the job, which takes seconds: an emulated
	// boot can hang on a busy host, in ways that are not the test's.
	bootLimit = 90 * time.Second
	boots     = 3
)

// accelArgs are qemu's for each accelerator. With thread=multi, two emulated
// CPUs can hang each other at boot.
var accelArgs = map[string][]string{
	"kvm": {"-accel", "kvm", "-cpu", "host"},
	"tcg": {"-accel", "tcg,thread=single", "-cpu", "max"},
}

// bestAccel is kvm where qemu can start a CPU with it: that the device is there
// and makes a VM does not say that, inside another VM.
func bestAccel(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	args := append([]string{"-M", "q35", "-m", "64", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-monitor", "stdio"}, accelArgs["kvm"]...)
	cmd := exec.CommandContext(ctx, qemu, args...)
	cmd.Stdin = strings.NewReader("quit\n")
	if cmd.Run() == nil {
		return "kvm"
	}
	return "tcg"
}

// machine is a VM to boot.
type machine struct {
	kernel                vmtest.Kernel
	image                 string // never written to; empty if disk is the root
	memoryMB              int
	accel                 string
	verbose               bool
	initrd, disk, console string        // paths
	limit                 time.Duration // of the job; zero for none
	stdout, stderr        io.Writer
}

// errBoot means that the job was not reached, so that booting anew repeats nothing.
var errBoot = errors.New("the VM did not come up")

// run boots, anew if need be, and returns the job's exit status.
func (m machine) run(ctx context.Context) (int, error) {
	for boot := 1; ; boot++ {
		status, err := m.boot(ctx)
		if boot == boots || !errors.Is(err, errBoot) || ctx.Err() != nil {
			return status, err
		}
		fmt.Fprintf(m.stderr, "vmexec: boot %d: %v; trying again\n", boot, err)
	}
}

func (m machine) args() ([]string, error) {
	extra, ok := accelArgs[m.accel]
	if !ok {
		return nil, fmt.Errorf("-accel %s: want kvm or tcg", m.accel)
	}
	cmdline := "console=ttyS0 panic=-1 reboot=t quiet"
	if khz := vmtest.TSCkHz(); khz != 0 {
		cmdline += fmt.Sprintf(" tsc_early_khz=%d tsc=reliable", khz)
	}
	drives := []string{"file=" + m.disk + ",format=raw,cache=unsafe"}
	if m.image != "" {
		drives = append([]string{"file=" + m.image + ",format=raw,cache=unsafe,snapshot=on"}, drives...)
	}
	args := append(extra[:len(extra):len(extra)],
		"-M", "q35", "-smp", "2", "-m", strconv.Itoa(m.memoryMB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", m.kernel.Image, "-initrd", m.initrd, "-append", cmdline,
		"-chardev", "file,id=console,path="+m.console, "-serial", "chardev:console",
		"-chardev", "stdio,id=job,signal=off", "-device", "isa-serial,index=1,chardev=job",
	)
	for i, d := range drives { // the guest names them in this order
		args = append(args, "-drive", fmt.Sprintf("%s,if=none,id=disk%d", d, i), "-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d", i))
	}
	return args, nil
}

func (m machine) boot(ctx context.Context) (int, error) {
	args, err := m.args()
	if err != nil {
		return 0, err
	}
	if m.verbose {
		fmt.Fprintln(m.stderr, qemu, strings.Join(args, " "))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, qemu, args...)
	cmd.Stderr = m.stderr
	// A VM must not outlive this process, even one that is killed. The signal
	// comes when the thread ends that started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("%w: run 'make deps'", err)
	}
	boot := time.AfterFunc(bootLimit, func() { cancel(fmt.Errorf("not up within %v", bootLimit)) })
	defer boot.Stop()
	var job *time.Timer
	started, status, copyErr := m.copy(out, func() {
		boot.Stop()
		if m.limit > 0 {
			job = time.AfterFunc(m.limit, func() { cancel(fmt.Errorf("still running after %v", m.limit)) })
		}
	})
	waitErr := cmd.Wait()
	if job != nil {
		job.Stop()
	}
	if m.verbose || status < 0 {
		m.showConsole()
	}
	cause := errors.Join(copyErr, waitErr, context.Cause(ctx))
	switch {
	case status >= 0:
		return status, nil
	case started:
		return 0, fmt.Errorf("the VM ended before its job did: %w", cause)
	case waitErr != nil && time.Since(began) < time.Second:
		return 0, fmt.Errorf("qemu does not start: %w", cause) // nor would it the next time
	}
	return 0, fmt.Errorf("%w: %w", errBoot, cause)
}

// copy copies the job's output from the port, without the marks. The status is
// -1 when the job did not report one.
func (m machine) copy(port io.Reader, onStart func()) (started bool, status int, err error) {
	status = -1
	r := bufio.NewReaderSize(port, 1<<16)
	for {
		line, rerr := r.ReadSlice('\n')
		text := string(line)
		if strings.HasPrefix(text, vmtest.StartMark) {
			started = true
			onStart()
			continue
		}
		if body, code, ok := strings.Cut(text, vmtest.ExitMark+" "); ok {
			text = body
			if status, err = strconv.Atoi(strings.TrimSpace(code)); err != nil {
				return started, -1, fmt.Errorf("bad exit mark: %w", err)
			}
		}
		if started {
			if _, err := io.WriteString(m.stdout, text); err != nil {
				return started, status, err
			}
		}
		switch {
		case rerr == nil || errors.Is(rerr, bufio.ErrBufferFull):
		case errors.Is(rerr, io.EOF):
			return started, status, nil
		default:
			return started, status, rerr
		}
	}
}

func (m machine) showConsole() {
	if b, err := os.ReadFile(m.console); err == nil {
		fmt.Fprintf(m.stderr, "vmexec: the guest's console:\n%s\n", b)
	}
}
