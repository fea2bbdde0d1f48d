package sandbox

import (
	"fmt"
	"os"
	"path"
	"time"

	"github.com/sandboxd/sandboxd/limits"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// Who a command is inside, and where.
const (
	// UID and GID of the user "build".
	UID, GID = first.UID, first.GID
	// WorkDir is where the work directory is seen.
	WorkDir = first.WorkDir
	// HomeDir is empty, writable and gone afterwards.
	HomeDir = first.HomeDir
	// Hostname is every sandbox's.
	Hostname = "sandboxd"
	// DefaultPath is PATH where the environment has none.
	DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// Spec is the blueprint of a Sandbox. Its files stay the caller's, who may close
// them once Start has returned.
type Spec struct {
	// Root is the tree that the command sees.
	Root *rootfs.Rootfs
	// Shared says that Root stays for other tasks, until Host.Forget: what they have in common is kept.
	Shared bool
	// Work is its work directory.
	Work Work
	// Inputs are further read-only mounts.
	Inputs []Bind

	// Script is the content of an executable file to run: by /bin/sh -e unless it
	// begins with #!. Exactly one of Script and Argv is set.
	Script string
	// Argv is a command, found through the PATH of Env, and its arguments.
	Argv []string
	// Env is the whole environment, K=V.
	Env []string
	// Stdio are standard input, output and error.
	Stdio [3]*os.File

	// Network is what it reaches, and Router, for netpolicy.Controlled alone, by which rules.
	Network netpolicy.Policy
	Router  netpolicy.RouterSpec
	// Limits are enforced before the first instruction. Memory counts the sandbox's own
	// first process in: less than 2 MB. PidsMax is raised by what is its at most.
	Limits limits.Limits
	// TmpBytes bounds /tmp, /var/tmp and the home directory together, and
	// /dev/shm alike. 0 is half of the machine's memory.
	TmpBytes int64
	// OpenFiles is the hard limit of RLIMIT_NOFILE; the soft one is 1024 at most. 0 is 65536.
	OpenFiles int64
	// Debug permits ptrace inside.
	Debug bool
}

// WorkMode says what becomes of writes to a work directory.
type WorkMode int

const (
	// WorkOverlay keeps Dir as it is and takes writes in a layer of the sandbox's.
	WorkOverlay WorkMode = iota
	// WorkDirect lets the command write to Dir.
	WorkDirect
	// WorkReadonly refuses writes.
	WorkReadonly
)

// Work is a work directory.
type Work struct {
	// Dir is the open directory; nil is an empty one, writable unless Mode is WorkReadonly.
	Dir *os.File
	// Mode says what becomes of writes.
	Mode WorkMode
	// Hide are paths in Dir that the command does not find, with all below them: for
	// WorkOverlay only. None leads through a symbolic link.
	Hide []string
	// UID and GID own Dir's files on disk: they are the command's inside, and
	// what it makes is theirs outside.
	UID, GID uint32
	// Groups are further groups, of which the first 64 count: the command is in none of them, but may
	// write to UID's files that are of one, as UID may.
	Groups []uint32
}

// Bind is a read-only mount of a file or directory.
type Bind struct {
	// File is the source, opened with O_PATH or for reading.
	File *os.File
	// UID and GID are whose files are the command's.
	UID, GID uint32
	// Target is absolute. What is missing of its path is made, unless it lies in
	// a directory of the root's that is mounted itself, such as /usr.
	Target string
}

// Exit is how a command ended.
type Exit struct {
	// Code is its exit code, or 128+Signal.
	Code int
	// Signal ended it; 0 if none.
	Signal int
	// Lost says that the sandbox's first process was killed, and with it the
	// command: by Kill, or by the kernel for memory. There is no work directory then.
	Lost bool
	// Started is when the command's execution began, Duration how long it went on.
	Started  time.Time
	Duration time.Duration
}

// UnmappableError is a work directory whose file system cannot be id-mapped.
type UnmappableError struct {
	Path string
	Err  error
}

// Error names the directory and a way out.
func (e *UnmappableError) Error() string {
	return fmt.Sprintf("%q: its file system cannot be id-mapped (%v); put the work directory on ext4, xfs, btrfs or tmpfs", e.Path, e.Err)
}

// Unwrap returns the kernel's error.
func (e *UnmappableError) Unwrap() error { return e.Err }

// MountBelowError is a work directory or an input with a mount in it: an overlay would show
// what the mount covers.
type MountBelowError struct {
	Path, Mount string
	Input       bool
}

// Error names the mount and the way out.
func (e *MountBelowError) Error() string {
	if e.Input {
		return fmt.Sprintf("%q holds the mount %q; give that as an input of its own, or choose a directory without mounts", e.Path, e.Mount)
	}
	return fmt.Sprintf("work directory %q holds the mount %q; unmount it, or choose a directory without mounts", e.Path, e.Mount)
}

// TargetError is an input that cannot be put where it is to be seen.
type TargetError struct{ Target, Reason string }

// Error says why, and names another place.
func (e *TargetError) Error() string {
	return fmt.Sprintf("%q: there is no place to mount it (%s); choose another path, such as /inputs/%s", e.Target, e.Reason, path.Base(e.Target))
}

// OutputError is an earlier output that cannot be hidden from the command.
type OutputError struct{ Output, Reason string }

// Error says why, and what to do.
func (e *OutputError) Error() string {
	return fmt.Sprintf("%q: what is there cannot be hidden from the task (%s); remove it, or name another path", e.Output, e.Reason)
}

// OpenFilesError is a limit of open files beyond the daemon's own.
type OpenFilesError struct {
	Asked int64
	Most  uint64
}

// Error says what can be had.
func (e *OpenFilesError) Error() string {
	return fmt.Sprintf("%d open files are more than the daemon's own hard limit of %d; ask for fewer, or raise that", e.Asked, e.Most)
}
