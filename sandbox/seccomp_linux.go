package sandbox

import (
	"fmt"
	"slices"

	libseccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	profile "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// FilterOptions are the variants of a Filter.
type FilterOptions struct {
	// Debug permits ptrace and access to other processes' memory, which stay
	// within the task's pid namespace and user.
	Debug bool
	// Direct is for a command that writes to a directory of its caller's own. It refuses to give
	// a file a setuid or setgid bit, since a program that is setuid to the caller would await
	// others there, and Unix sockets but for pairs, since those that the caller's other
	// programs listen at may be there.
	Direct bool
}

// denied are calls that the profile permits and a build has no need of: each
// reaches much of the kernel, or another task.
var denied = []string{
	"io_uring_setup", "io_uring_enter", "io_uring_register", // bypass this filter
	"keyctl", "add_key", "request_key", // keyrings are not namespaced
	"socketcall",   // would hide the address family
	"memfd_secret", // memory that the host cannot read or move
	"userfaultfd", "open_by_handle_at",
	"setns", "unshare",
}

// debugging are the calls that only FilterOptions.Debug permits.
var debugging = []string{"ptrace", "process_vm_readv", "process_vm_writev", "kcmp"}

// Filter is the seccomp program of a task: the moby default profile for a
// process without capabilities, tightened. What it does not permit gives EPERM,
// clone3 ENOSYS so that C libraries fall back to clone, whose flags can be seen.
// Calls of another architecture, 32-bit ones included, give EPERM and x32 ones
// ENOSYS. Of sockets it permits Unix, IPv4, IPv6 and route netlink, and of
// terminal ioctls all but TIOCSTI and TIOCLINUX, which type into a terminal. It
// refuses leases on files (fcntl F_SETLEASE).
func Filter(o FilterOptions) ([]unix.SockFilter, error) {
	none := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}}
	p, err := profile.GetDefaultProfile(none)
	if err != nil {
		return nil, fmt.Errorf("default seccomp profile: %w", err)
	}
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	groups, err := rules(p.Syscalls, info, o)
	if err != nil {
		return nil, err
	}
	policy := libseccomp.Policy{DefaultAction: libseccomp.ActionErrno, Syscalls: groups}
	code, err := policy.Assemble()
	if err != nil {
		return nil, fmt.Errorf("assemble the seccomp filter: %w", err)
	}
	before := typing(info)
	if o.Direct {
		before = append(before, settingID(info)...)
	}
	return assemble(append(before, code...))
}

// rules turns the profile's into groups: what is permitted without condition,
// what is permitted for some arguments, and what looks unimplemented.
func rules(calls []specs.LinuxSyscall, info *arch.Info, o FilterOptions) ([]libseccomp.SyscallGroup, error) {
	drop := append(slices.Clone(denied), "socket")
	if !o.Debug {
		drop = append(drop, debugging...)
	}
	always := map[string]bool{}
	var some []libseccomp.NameWithConditions
	for _, c := range calls {
		if c.Action != specs.ActAllow {
			continue // clone3, below
		}
		conditions, err := conditions(c.Args)
		if err != nil {
			return nil, fmt.Errorf("seccomp profile, %v: %w", c.Names, err)
		}
		for _, n := range c.Names {
			if _, known := info.SyscallNames[n]; !known || slices.Contains(drop, n) {
				continue
			}
			if len(conditions) == 0 {
				always[n] = true
			} else {
				some = append(some, libseccomp.NameWithConditions{Name: n, Conditions: conditions})
			}
		}
	}
	if o.Debug {
		for _, n := range debugging {
			always[n] = true
		}
	}
	some = slices.DeleteFunc(some, func(n libseccomp.NameWithConditions) bool { return always[n.Name] })
	some = append(some, sockets(o)...)
	var names []string
	for n := range always {
		names = append(names, n)
	}
	slices.Sort(names) // one profile, one program
	return []libseccomp.SyscallGroup{
		{Names: names, Action: libseccomp.ActionAllow},
		{NamesWithCondtions: some, Action: libseccomp.ActionAllow},
		{Names: []string{"clone3"}, Action: unix.SECCOMP_RET_ERRNO | libseccomp.Action(unix.ENOSYS)},
	}, nil
}

// sockets permits address families by name: the profile's list is much longer.
// The comparison is of all 64 bits, so that a family with high bits set, which
// the kernel would cut off, is refused.
func sockets(o FilterOptions) []libseccomp.NameWithConditions {
	var out []libseccomp.NameWithConditions
	for _, family := range []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK} {
		if family == unix.AF_UNIX && o.Direct {
			continue
		}
		c := libseccomp.ArgumentConditions{{Argument: 0, Operation: libseccomp.Equal, Value: family}}
		if family == unix.AF_NETLINK {
			c = append(c, libseccomp.Condition{Argument: 2, Operation: libseccomp.Equal, Value: unix.NETLINK_ROUTE})
		}
		out = append(out, libseccomp.NameWithConditions{Name: "socket", Conditions: c})
	}
	return out
}

// conditions fails on an operator that it does not know, since a rule left out
// or read wrongly would weaken the filter.
func conditions(args []specs.LinuxSeccompArg) (libseccomp.ArgumentConditions, error) {
	var out libseccomp.ArgumentConditions
	for _, a := range args {
		c := libseccomp.Condition{Argument: uint32(a.Index), Value: a.Value}
		switch {
		case a.Op == specs.OpEqualTo:
			c.Operation = libseccomp.Equal
		case a.Op == specs.OpLessThan:
			c.Operation = libseccomp.LessThan
		case a.Op == specs.OpMaskedEqual && a.ValueTwo == 0:
			c.Operation = libseccomp.BitsNotSet
		default:
			return nil, fmt.Errorf("operator %s with %d is not known", a.Op, a.ValueTwo)
		}
		out = append(out, c)
	}
	return out, nil
}

// typing refuses the ioctls that put characters into a terminal's input, and leases:
// with one on an input, a task could hold up whoever else opens that file. Only the low 32
// bits of the request are looked at, as the kernel does: a filter that compares all
// 64 is passed by (CVE-2019-10063).
func typing(info *arch.Info) []bpf.Instruction {
	const nr, request = 0, 16 + 8 // offsets in struct seccomp_data; little-endian low half
	refuse := bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: nr, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(info.SyscallNames["ioctl"]), SkipTrue: 4},
		bpf.LoadAbsolute{Off: request, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.TIOCSTI, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.TIOCLINUX, SkipTrue: 1},
		refuse,
		bpf.LoadAbsolute{Off: nr, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(info.SyscallNames["fcntl"]), SkipTrue: 3},
		bpf.LoadAbsolute{Off: request, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.F_SETLEASE, SkipTrue: 1},
		refuse,
	}
}

// settingID refuses modes with a setuid or setgid bit in all calls that take a mode and keep
// those bits. openat2 has it in memory, where a filter cannot look, and seems
// unimplemented, as before Linux 5.6.
func settingID(info *arch.Info) []bpf.Instruction {
	const nr, args = 0, 16 // offsets in struct seccomp_data
	code := []bpf.Instruction{
		bpf.LoadAbsolute{Off: nr, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_OPENAT2, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
	}
	modes := []struct {
		name string
		arg  uint32
	}{{"chmod", 1}, {"fchmod", 1}, {"fchmodat", 2}, {"fchmodat2", 2}, {"creat", 1}, {"open", 2}, {"openat", 3}, {"mknod", 1}, {"mknodat", 2}}
	for _, m := range modes {
		n, known := info.SyscallNames[m.name]
		if !known {
			continue // arm64 has no chmod, creat, open and mknod
		}
		code = append(code,
			bpf.LoadAbsolute{Off: nr, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(n), SkipTrue: 3},
			bpf.LoadAbsolute{Off: args + 8*m.arg, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: unix.S_ISUID | unix.S_ISGID, SkipTrue: 1},
			bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)})
	}
	return code
}

func assemble(code []bpf.Instruction) ([]unix.SockFilter, error) {
	raw, err := bpf.Assemble(code)
	if err != nil {
		return nil, fmt.Errorf("assemble the seccomp filter: %w", err)
	}
	if len(raw) > 4096 { // BPF_MAXINSNS
		return nil, fmt.Errorf("the seccomp filter has %d instructions; the kernel takes 4096", len(raw))
	}
	out := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		out[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return out, nil
}
