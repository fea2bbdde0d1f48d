package executor

import (
	"runtime"
	"slices"
	"strings"
	"time"
)

// Bounds on what a task may hold. Validate refuses more.
const (
	// MaxSpecBytes bounds all strings of a spec together, each with a few bytes
	// for its frame, so that every spec fits into one message on any transport.
	MaxSpecBytes = 4 << 20
	// MaxScriptBytes bounds Script; it reaches the task as a file, so the
	// kernel's 128 KiB for one argument does not apply.
	MaxScriptBytes = 2 << 20
	// MaxArgvBytes bounds the sum of Argv, well below the kernel's 2 MiB.
	MaxArgvBytes = 1 << 20
	// MaxArgBytes bounds one argument or one K=V of the environment
	// (MAX_ARG_STRLEN of execve(2), less its NUL).
	MaxArgBytes = 128<<10 - 1
	// MaxEnvBytes bounds the sum of Env.
	MaxEnvBytes = 512 << 10
	// MaxStdinBytes bounds Stdin.
	MaxStdinBytes = 2 << 20
	// MaxOutputs, MaxInputs and MaxDeps bound the lists of those names.
	MaxOutputs = 10_000
	MaxInputs  = 256
	MaxDeps    = 10_000
	// MaxPathBytes is the kernel's PATH_MAX less its NUL.
	MaxPathBytes = 4095
	// MaxPlatforms bounds Platforms, and MaxPlatformBytes each of them.
	MaxPlatforms     = 16
	MaxPlatformBytes = 64
	// MaxNameBytes bounds Name and Recipe.
	MaxNameBytes = 256
	// MaxTimeout is the longest timeout that can be asked for.
	MaxTimeout = 7 * 24 * time.Hour
	// MaxPriority bounds Priority, and its negative does.
	MaxPriority = 10
	// DefaultTimeout holds where Timeout is zero.
	DefaultTimeout = time.Hour
)

// TaskSpec is the blueprint of a task. Zero values are the safe ones: an empty
// work directory, no network, default limits, the cache in use.
//
// A TaskSpec is not changed by anyone it is handed to.
type TaskSpec struct {
	// Name and Recipe identify the task to people: in logs and the status.
	// They take no part in the signature.
	Name   string `json:"name"`
	Recipe string `json:"recipe,omitempty"`

	// Script is run by /bin/sh -e from a file. Exactly one of Script and Argv
	// is set. A script whose first line begins with #! is run by that interpreter.
	Script string `json:"script,omitempty"`
	// Argv is a command and its arguments, looked up in the sandbox's PATH.
	Argv []string `json:"argv,omitempty"`
	// Stdin is what the task reads from its standard input; empty is end of file.
	Stdin []byte `json:"stdin,omitempty"`

	// Workdir is an absolute path on the executor's machine, seen at /build;
	// empty gives the task an empty directory.
	Workdir string `json:"workdir,omitempty"`
	// WorkdirMode says what becomes of writes to it.
	WorkdirMode WorkdirMode `json:"workdir_mode,omitempty"`
	// Env is the whole environment, beside PATH, HOME, LANG, TMPDIR and USER,
	// which are set unless given here.
	Env map[string]string `json:"env,omitempty"`
	// Outputs are paths relative to the work directory, files or directories,
	// that the task must have made. What is there before takes no part in the
	// signature, so an overlay hides it from the task. One that is missing after exit code 0
	// is reported in TaskOutput.MissingOutputs, and the result is not cached.
	Outputs []string `json:"outputs,omitempty"`
	// Inputs are further read-only files and directories.
	Inputs []Input `json:"inputs,omitempty"`
	// DepSignatures are signatures of tasks that this one builds upon; they
	// take part in its own.
	DepSignatures []Signature `json:"dep_signatures,omitempty"`
	// Rootfs is an absolute path to a directory used as the root file system,
	// read-only; empty is the executor's default (the host's /usr and kin).
	Rootfs string `json:"rootfs,omitempty"`
	// Platforms are those that the task may run on, GOOS/GOARCH as in Capabilities, the one it
	// should run on first: it goes to another only where no executor of the ones before can run it. The answer tells
	// which it was. Empty is the executor's own, of several the one that its configuration says.
	Platforms []string `json:"platforms,omitempty"`

	// Timeout is the wall time from start to TERM; 0 is DefaultTimeout.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Network is what the task reaches.
	Network NetworkPolicy `json:"network,omitempty"`
	// Allow are the destinations that NetworkControlled permits, as ParseAllow reads them; all else
	// is refused at once. The executor's own deny list goes before them.
	Allow []string `json:"allow,omitempty"`
	// Audit, with NetworkControlled, permits all that the executor's deny list does not
	// refuse, and reports in TaskOutput.NeededAllow which rules would have been needed. The
	// result is not cached.
	Audit bool `json:"audit,omitempty"`
	// Limits is what the task may use.
	Limits ResourceLimits `json:"limits"`
	// Debug permits ptrace within the sandbox.
	Debug bool `json:"debug,omitempty"`
	// Cache says how the cache is used.
	Cache CacheMode `json:"cache,omitempty"`
	// Priority, from -MaxPriority to MaxPriority, is when a task's turn comes among those that wait:
	// before all of a lower one, whoever's they are. Above 0 takes root or a configuration that allows
	// it. It takes no part in the signature.
	Priority int `json:"priority,omitempty"`
}

// PlatformWasm is the platform of tasks in WebAssembly.
const PlatformWasm = "wasip1/wasm"

// PlatformNative is the platform of this program, and so of the sandboxes that it makes.
const PlatformNative = runtime.GOOS + "/" + runtime.GOARCH

// CheckPlatform refuses a task that may not run on a platform. The error is Unsupported.
func (t *TaskSpec) CheckPlatform(platform string) error {
	if len(t.Platforms) == 0 || slices.Contains(t.Platforms, platform) {
		return nil
	}
	e := Errorf(Unsupported, "the task is for %s, and this executor runs tasks on %s; name that one, too, or use another executor", strings.Join(t.Platforms, " or "), platform)
	e.Field = "platforms"
	return e
}

// Input is a read-only file or directory of the executor's machine.
type Input struct {
	// Host is an absolute path.
	Host string `json:"host"`
	// Sandbox is the absolute path at which the task sees it; empty: as Host.
	// It may not lie over /proc, /dev, /sys, /build or the root itself.
	Sandbox string `json:"sandbox,omitempty"`
}

// Target is where the task sees the input.
func (in Input) Target() string {
	if in.Sandbox == "" {
		return in.Host
	}
	return in.Sandbox
}

// WorkdirMode says what becomes of the task's writes to its work directory.
type WorkdirMode string

const (
	// WorkdirOverlay keeps the caller's tree as it is; declared outputs are
	// moved into it after success, all other writes are dropped and listed.
	WorkdirOverlay WorkdirMode = ""
	// WorkdirDirect lets the task write to the caller's tree itself. It has no Unix sockets then
	// but pairs, and cannot make files setuid or setgid.
	WorkdirDirect WorkdirMode = "direct"
	// WorkdirReadonly refuses writes.
	WorkdirReadonly WorkdirMode = "readonly"
)

// NetworkPolicy is what of the network a task reaches.
type NetworkPolicy string

const (
	// NetworkIsolated is a network namespace with nothing up, not even loopback.
	NetworkIsolated NetworkPolicy = ""
	// NetworkLoopback is a network namespace with its own loopback up.
	NetworkLoopback NetworkPolicy = "loopback"
	// NetworkControlled is an allow-list of destinations: see TaskSpec.Allow. What is not on it is
	// refused at once. What is, is connected before the destination is: where that
	// refuses, the connection is reset.
	NetworkControlled NetworkPolicy = "controlled"
	// NetworkFull is the host's network; for callers who may.
	NetworkFull NetworkPolicy = "full"
)

// String names the policy as the command line does; the zero value is "isolated".
func (p NetworkPolicy) String() string {
	if p == NetworkIsolated {
		return "isolated"
	}
	return string(p)
}

// CacheMode says how a task uses the cache.
type CacheMode string

const (
	// CacheUse returns a stored result where there is one and stores a success.
	CacheUse CacheMode = ""
	// CacheRefresh runs the task in any case and stores a success.
	CacheRefresh CacheMode = "refresh"
	// CacheOff neither looks nor stores.
	CacheOff CacheMode = "off"
)

// ResourceLimits is what a task may use. Zero values take the defaults, or what the
// caller may have at most where that is less; -1 asks for no limit, which needs root or a
// configuration that allows it.
type ResourceLimits struct {
	// CPUQuotaUS is CPU time in microseconds per 100 ms of wall time:
	// 100000 is one processor. Default: no quota. At least 1000.
	CPUQuotaUS int64 `json:"cpu_quota_us,omitempty"`
	// MemoryBytes bounds memory, with page cache and tmpfs; swap is off.
	// Default 4 GiB, at least 32 MiB, of
	// which the sandbox's own first process takes some.
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
	// PidsMax bounds processes and threads. Default 1024. The sandbox's own, a dozen at
	// most, come on top; the kernel sees the sum.
	PidsMax int64 `json:"pids_max,omitempty"`
	// IOWeight is a share of disk time from 1 to 10000. Default 100, which
	// is the kernel's own and needs no enforcement.
	IOWeight int64 `json:"io_weight,omitempty"`
	// TmpBytes bounds /tmp and, alike, /dev/shm. Default 1 GiB; memory counts as well.
	TmpBytes int64 `json:"tmp_bytes,omitempty"`
	// OpenFiles is RLIMIT_NOFILE. Default 65536, at least 64; the soft limit is
	// at most 1024, which programs may raise.
	OpenFiles int64 `json:"open_files,omitempty"`
	// OutputBytes bounds stdout and stderr, each, and the sum of the declared
	// outputs. A stream past it ends the task with CauseOutputLimit. Default 1 GiB for
	// the streams and 64 GiB for outputs.
	OutputBytes int64 `json:"output_bytes,omitempty"`
}

// Unlimited as a value of a limit asks for no limit.
const Unlimited = -1

// Default limits.
const (
	DefaultMemoryBytes = 4 << 30
	DefaultPidsMax     = 1024
	DefaultIOWeight    = 100
	DefaultTmpBytes    = 1 << 30
	DefaultOpenFiles   = 65536
	DefaultLogBytes    = 1 << 30
	DefaultOutputBytes = 64 << 30
)

// WithDefaults fills in the defaults: no field of the result is zero but
// CPUQuotaUS, where zero is no quota, and OutputBytes, whose default differs
// between streams and files.
func (l ResourceLimits) WithDefaults() ResourceLimits {
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	def(&l.MemoryBytes, DefaultMemoryBytes)
	def(&l.PidsMax, DefaultPidsMax)
	def(&l.IOWeight, DefaultIOWeight)
	def(&l.TmpBytes, DefaultTmpBytes)
	def(&l.OpenFiles, DefaultOpenFiles)
	return l
}

// StrictLimits are limits for tasks that need little: one processor, 2 GiB,
// 512 processes, half the default share of the disk.
func StrictLimits() ResourceLimits {
	return ResourceLimits{CPUQuotaUS: 100_000, MemoryBytes: 2 << 30, PidsMax: 512, IOWeight: 50}
}
