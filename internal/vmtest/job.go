package vmtest

// Where the two programs meet: paths in the guest.
const (
	// JobPath is the file in the initramfs that holds the [Job] as JSON.
	JobPath = "job.json"
	// ScratchDir is the guest's TMPDIR. It lies on ext4, so that overlays and
	// id-mapped mounts are tested on a real file system; /tmp is a tmpfs.
	ScratchDir = "/var/lib/vmtest"
	// OutDir is where the job leaves the files that the host wants back.
	OutDir = "/var/lib/vmtest-out"
	// Port is the serial port that carries the job's output to the host.
	Port = "/dev/ttyS1"
	// RootDevice is the disk with the guest's root.
	RootDevice = "/dev/vda"
	// PayloadDevice is, beside a root with systemd, the disk with the test; it is
	// mounted at PayloadDir.
	PayloadDevice = "/dev/vdb"
	PayloadDir    = "/payload"
	// GuestInit is where a guest with systemd has vminit, which runs the job as a unit.
	GuestInit = "/usr/lib/vmtest/vminit"
	// GuestJob is where it finds the job then, and Unit what systemd is to start.
	GuestJob = "/run/vmtest-job.json"
	Unit     = "vmtest.service"
)

// Marks on the port. Neither is what a test prints: both begin with a control
// character, and not with the one that `go test -json` uses (0x16).
const (
	// StartMark is a line of its own: all output before it is the boot's.
	StartMark = "\x01vmtest-start"
	// ExitMark is followed by a blank and the job's exit status.
	ExitMark = "\x01vmtest-exit"
)

// Job is what the guest is to do.
type Job struct {
	Argv    []string // the command, its path in the guest first
	Env     []string // NAME=value, beyond what the init sets
	Dir     string   // the working directory
	Modules []string // paths in the initramfs, in load order
	Systemd bool     // the root is an image with systemd, which a unit of runs the job
}
