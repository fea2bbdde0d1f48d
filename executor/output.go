package executor

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Digest names a blob as the Remote Execution API does: the lower-case hex
// SHA-256 of its bytes, and their number. The zero Digest names nothing.
type Digest struct {
	Hash string `json:"hash"`
	Size int64  `json:"size"`
}

// String is hash/size; empty for the zero Digest.
func (d Digest) String() string {
	if d == (Digest{}) {
		return ""
	}
	return d.Hash + "/" + strconv.FormatInt(d.Size, 10)
}

// ParseDigest reads what String wrote.
func ParseDigest(s string) (Digest, error) {
	hash, size, ok := strings.Cut(s, "/")
	n, err := strconv.ParseInt(size, 10, 64)
	if !ok || err != nil || n < 0 || len(hash) != 64 || strings.Trim(hash, "0123456789abcdef") != "" {
		return Digest{}, fmt.Errorf("digest %.80q is not 64 hex digits, a slash and a size", s)
	}
	return Digest{Hash: hash, Size: n}, nil
}

// Signature identifies a task with its inputs: the Digest of its Action in the
// Remote Execution API, as hash/size.
type Signature string

// Cause says why a task ended. It is claimed from evidence only: wait status,
// cgroup event counters, our own timer.
type Cause string

const (
	// CauseExited: the task's first process ended by itself; see ExitCode.
	CauseExited Cause = "exited"
	// CauseSignaled: a signal that sandboxd did not send ended it; see Signal.
	CauseSignaled Cause = "signaled"
	// CauseOOMKilled: the kernel killed one of the task's processes for its
	// memory limit, the first or any other.
	CauseOOMKilled Cause = "oom_killed"
	// CauseTimedOut: it ran longer than its timeout.
	CauseTimedOut Cause = "timed_out"
	// CauseCanceled: its caller canceled it or went away, or the daemon stopped.
	CauseCanceled Cause = "canceled"
	// CausePidsLimit: a fork was refused for pids_max, and the task failed.
	CausePidsLimit Cause = "pids_limit"
	// CauseOutputLimit: it wrote more than OutputBytes to stdout or stderr.
	CauseOutputLimit Cause = "output_limit"
)

// InlineBytes is how much of each stream a TaskOutput carries itself; the rest
// is in the CAS under its digest.
const InlineBytes = 64 << 10

// MaxListed bounds UndeclaredWrites, MissingOutputs, DeniedConnections, NetworkTraffic and
// NeededAllow in a TaskOutput, each.
const MaxListed = 1000

// TaskOutput is what became of a task.
type TaskOutput struct {
	// Signature is empty where none was needed, as nothing was looked up or stored:
	// with CacheOff, and with WorkdirDirect.
	Signature Signature `json:"signature"`
	// OutputFiles are the declared outputs, directories expanded, sorted by
	// path; empty unless the task succeeded.
	OutputFiles []OutputFile `json:"output_files"`

	Stdout Stream `json:"stdout"`
	Stderr Stream `json:"stderr"`

	// ExitCode is the exit status, or 128+n when signal n ended the task.
	ExitCode int `json:"exit_code"`
	// Signal is the number of the signal that ended the task's first process; 0 if none.
	Signal int `json:"signal,omitempty"`
	// Cause says why it ended, and Evidence what that rests on, in words.
	Cause    Cause  `json:"cause"`
	Evidence string `json:"evidence,omitempty"`
	// Duration is the wall time from start to end; for a cached result that
	// of the run that made it.
	Duration time.Duration `json:"-"`
	// Cached says that the result came from the cache.
	Cached bool `json:"cached"`

	// Platform is what it ran on, of the TaskSpec's Platforms.
	Platform string  `json:"platform"`
	Usage    Usage   `json:"usage"`
	Applied  Applied `json:"applied"`
	// UndeclaredWrites are paths in the work directory that the task made or
	// changed and that were dropped, MaxListed at most; UndeclaredTotal counts all.
	UndeclaredWrites []string `json:"undeclared_writes"`
	UndeclaredTotal  int64    `json:"undeclared_total,omitempty"`
	// MissingOutputs are declared outputs that a task which exited 0 did not make.
	MissingOutputs []string `json:"missing_outputs,omitempty"`

	// DeniedConnections are what NetworkControlled refused, MaxListed at most; DeniedTotal
	// counts all attempts.
	DeniedConnections []DeniedConnection `json:"denied_connections,omitempty"`
	DeniedTotal       int64              `json:"denied_total,omitempty"`
	// NetworkTraffic is what it let through, by rule.
	NetworkTraffic []RuleTraffic `json:"network_traffic,omitempty"`
	// NeededAllow is, of an audit, the TaskSpec.Allow that would have let it all through.
	NeededAllow []string `json:"needed_allow,omitempty"`
}

// DeniedConnection is a destination that was refused to a task.
type DeniedConnection struct {
	// Protocol is tcp, udp, icmp, icmpv6 or the number of another; dns for a name that was
	// not resolved, or an address that was left out of its answer.
	Protocol string `json:"protocol"`
	// Address is the destination; empty for a name.
	Address string `json:"address,omitempty"`
	// Port is 0 where the protocol has none.
	Port int `json:"port,omitempty"`
	// Name is the one that was resolved to Address, if any was.
	Name string `json:"name,omitempty"`
	// Count is how many attempts there were.
	Count int64 `json:"count"`
	// Rule is what refused it: an entry of the deny list, or that no rule allows it.
	Rule string `json:"rule"`
}

// RuleTraffic is what passed by one rule.
type RuleTraffic struct {
	// Rule is in canonical form; of an audit, the one that was needed.
	Rule string `json:"rule"`
	// Connections counts those of TCP and the flows of UDP.
	Connections int64 `json:"connections"`
	// Sent and Received are bytes of payload, as the task sees them.
	Sent     int64 `json:"sent_bytes"`
	Received int64 `json:"received_bytes"`
}

// Success reports whether the task exited by itself with code 0 and left all
// its outputs.
func (o *TaskOutput) Success() bool {
	return o.Cause == CauseExited && o.ExitCode == 0 && len(o.MissingOutputs) == 0
}

// size is about what o takes in memory.
func (o *TaskOutput) size() int {
	if o == nil {
		return 0
	}
	const frame = 64
	n := 16*frame + len(o.Stdout.Inline) + len(o.Stderr.Inline) + len(o.Evidence)
	for _, f := range o.OutputFiles {
		n += len(f.Path) + len(f.Digest.Hash) + len(f.Target) + 2*frame
	}
	for _, list := range [][]string{o.UndeclaredWrites, o.MissingOutputs, o.Applied.Sandbox, o.NeededAllow} {
		for _, s := range list {
			n += len(s) + frame
		}
	}
	for k, v := range o.Applied.Limits {
		n += len(k) + len(v) + frame
	}
	for _, d := range o.DeniedConnections {
		n += len(d.Protocol) + len(d.Address) + len(d.Name) + len(d.Rule) + 2*frame
	}
	for _, r := range o.NetworkTraffic {
		n += len(r.Rule) + 2*frame
	}
	return n
}

// FileKind tells the kinds of output entries apart.
type FileKind string

const (
	KindFile    FileKind = "file"
	KindDir     FileKind = "dir"
	KindSymlink FileKind = "symlink"
)

// OutputFile is one entry of the outputs.
type OutputFile struct {
	// Path is relative to the work directory, with slashes.
	Path string   `json:"path"`
	Kind FileKind `json:"kind"`
	// Digest names a file's contents in the CAS.
	Digest Digest `json:"digest,omitzero"`
	// Mode holds the permission bits; setuid, setgid and sticky never come back.
	Mode uint32 `json:"mode"`
	// Target is where a symlink points, unresolved.
	Target string `json:"target,omitempty"`
}

// Stream is stdout or stderr.
type Stream struct {
	// Inline holds the first InlineBytes, as text where they are UTF-8.
	Inline []byte `json:"inline"`
	// Digest names the whole stream in the CAS.
	Digest Digest `json:"digest,omitzero"`
	// Truncated says that Inline is not the whole.
	Truncated bool `json:"truncated,omitempty"`
}

// Usage is what a task used, all its processes together. A nil pointer means
// that the host does not measure it, which is not the same as none.
type Usage struct {
	CPUUser    time.Duration `json:"-"`
	CPUSystem  time.Duration `json:"-"`
	PeakMemory *int64        `json:"peak_memory_bytes,omitempty"`
	PeakPids   *int64        `json:"peak_pids,omitempty"`
	IORead     *int64        `json:"io_read_bytes,omitempty"`
	IOWrite    *int64        `json:"io_write_bytes,omitempty"`
}

// Applied is what was in force, as read back from the kernel.
type Applied struct {
	// Network is the policy, and of NetworkControlled what was found in the task's network.
	Network string `json:"network"`
	// Limits maps the kernel's own file (memory.max, pids.max, …) to its value.
	Limits map[string]string `json:"limits"`
	// Sandbox names the walls: namespaces, seccomp mode, no_new_privs, …
	Sandbox []string `json:"sandbox"`
}
