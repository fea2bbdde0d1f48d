//go:build linux

// Command vmexec is a `go test -exec` program: it runs the test binary that go
// built in a throwaway VM, in a folder of the same name and with the same
// arguments, so that -v, -json, -run, -count, -timeout, profiles and the exit
// status work as they do without it. It ends with 125 if the VM itself fails.
//
//	go test -exec "bin/vmexec -kernel $(internal/vmtest/kernel.sh linux-image-cloud-amd64)" ./limits
//
// The program vminit must lie beside it. The test binary must be static, since
// the guest has no libraries.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/vmtest"
)

// failed is the exit status for "no test ran": no test binary ends with it.
const failed = 125

// config is what the command line says.
type config struct {
	kernel   string
	image    string // with systemd; empty for a guest with busybox alone
	memoryMB int
	accel    string
	verbose  bool
	files    []string // guest=host
	env      []string
	binary   string
	args     []string // of the test binary
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	status, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmexec:", err)
		status = failed
	}
	os.Exit(status)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	c, err := parse(args, stderr)
	if err != nil {
		return 0, err
	}
	k, err := vmtest.OpenKernel(c.kernel)
	if err != nil {
		return 0, err
	}
	tmp, err := os.MkdirTemp("", "vmexec-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	job, err := newJob(c.binary, c.args)
	if err != nil {
		return 0, err
	}
	job.Env = append(job.Env, c.env...)
	job.Systemd = c.image != ""
	m := machine{
		kernel: k, image: c.image, memoryMB: c.memoryMB, accel: c.accel, verbose: c.verbose,
		initrd: filepath.Join(tmp, "initrd"), disk: filepath.Join(tmp, "disk"), console: filepath.Join(tmp, "console"),
		limit: job.limit, stdout: stdout, stderr: stderr,
	}
	if m.accel == "" {
		m.accel = bestAccel(ctx)
	}
	fmt.Fprintf(stderr, "vmexec: Linux %s (%s)\n", k.Version, m.accel)
	if err := buildDisk(ctx, m.disk, filepath.Join(tmp, "root"), job, c.files); err != nil {
		return 0, err
	}
	if err := buildInitrd(m.initrd, k, &job.Job); err != nil {
		return 0, err
	}
	status, err := m.run(ctx)
	if err != nil {
		return 0, err
	}
	return status, fetch(ctx, m.disk, job.back)
}

func parse(args []string, stderr io.Writer) (config, error) {
	var c config
	fs := flag.NewFlagSet("vmexec", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&c.kernel, "kernel", "", "folder of an unpacked kernel package")
	fs.StringVar(&c.image, "image", "", "image of a system with systemd, of which a unit runs the test (default: busybox and no systemd)")
	fs.IntVar(&c.memoryMB, "memory", 2048, "the guest's memory in MiB")
	fs.StringVar(&c.accel, "accel", "", "kvm or tcg (default: kvm where it works)")
	fs.BoolVar(&c.verbose, "verbose", false, "show qemu's command and the guest's console")
	fs.Func("file", "GUEST=HOST: a file or folder to give to the guest (repeatable)", func(s string) error {
		if g, h, ok := strings.Cut(s, "="); !ok || !filepath.IsAbs(g) || h == "" {
			return errors.New("want /guest/path=host/path")
		}
		c.files = append(c.files, s)
		return nil
	})
	fs.Func("env", "NAME=VALUE for the test (repeatable)", func(s string) error {
		c.env = append(c.env, s)
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return config{}, err
	}
	if c.kernel == "" || fs.NArg() == 0 {
		return config{}, errors.New("usage: vmexec -kernel DIR [flags] TEST-BINARY [its arguments]")
	}
	c.binary, c.args = fs.Arg(0), fs.Args()[1:]
	return c, nil
}

// testJob is a guest's job and what the host does about it.
type testJob struct {
	vmtest.Job
	binary string
	limit  time.Duration     // from the start of the job; zero for none
	back   map[string]string // name under vmtest.OutDir → host path
}

// profiles are the flags of a test binary that name a file to write.
var profiles = map[string]bool{
	"coverprofile": true, "cpuprofile": true, "memprofile": true,
	"blockprofile": true, "mutexprofile": true, "trace": true,
}

// newJob turns the test's arguments into the guest's: files to write are
// redirected to the folder that comes back, and what only the go command reads
// is left out, so that it never takes a VM's result from its cache.
func newJob(binary string, args []string) (testJob, error) {
	wd, err := os.Getwd()
	if err != nil {
		return testJob{}, err
	}
	j := testJob{
		// Not the host's folder: that may lie below /tmp, which the guest mounts over.
		Job:    vmtest.Job{Argv: []string{"/test"}, Dir: "/srv/test"},
		binary: binary,
		back:   make(map[string]string),
	}
	outputDir := wd
	for _, a := range args {
		name, value, _ := strings.Cut(strings.TrimPrefix(a, "-test."), "=")
		switch {
		case !strings.HasPrefix(a, "-test."):
		case name == "gocoverdir" || name == "testlogfile":
			continue
		case name == "outputdir":
			outputDir = value
			continue
		case name == "timeout":
			d, err := time.ParseDuration(value)
			if err != nil {
				return testJob{}, fmt.Errorf("%s: %w", a, err)
			}
			if d > 0 { // the test's own panic, with its stacks, comes first
				j.limit = d + 30*time.Second
			}
		case profiles[name]:
			j.back[name] = value
			a = "-test." + name + "=" + filepath.Join(vmtest.OutDir, name)
		}
		j.Argv = append(j.Argv, a)
	}
	for name, p := range j.back {
		if !filepath.IsAbs(p) {
			j.back[name] = filepath.Join(outputDir, p)
		}
	}
	return j, nil
}
