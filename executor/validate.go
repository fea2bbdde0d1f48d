package executor

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Validate reports the first thing wrong with the spec, as an *Error of kind
// Invalid that names the field, the value and the fix. It touches nothing: what
// paths lead to is found out when the task runs, with the caller's rights. The text
// quotes a value only as far as it is short, for it may be megabytes.
func (t *TaskSpec) Validate() error {
	if t == nil {
		return FieldErrorf("spec", "is missing; send a TaskSpec")
	}
	for _, check := range []func() error{
		t.checkNames, t.checkCommand, t.checkPaths, t.checkPlatforms, t.checkEnv, t.checkOutputs,
		t.checkInputs, t.checkModes, t.checkNetwork, t.Limits.validate,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	if n := t.size(); n > MaxSpecBytes {
		return FieldErrorf("spec", "is %d bytes large; use at most %d, and files for the rest", n, MaxSpecBytes)
	}
	return nil
}

// size is what MaxSpecBytes bounds.
func (t *TaskSpec) size() int {
	if t == nil {
		return 0
	}
	const frame = 16
	n := len(t.Name) + len(t.Recipe) + len(t.Script) + len(t.Stdin) + len(t.Workdir) + len(t.Rootfs) +
		len(t.WorkdirMode) + len(t.Network) + len(t.Cache) + 16*frame
	for _, s := range t.Argv {
		n += len(s) + frame
	}
	for k, v := range t.Env {
		n += len(k) + len(v) + frame
	}
	for _, s := range t.Outputs {
		n += len(s) + frame
	}
	for _, i := range t.Inputs {
		n += len(i.Host) + len(i.Sandbox) + frame
	}
	for _, s := range t.DepSignatures {
		n += len(s) + frame
	}
	for _, s := range t.Allow {
		n += len(s) + frame
	}
	for _, s := range t.Platforms {
		n += len(s) + frame
	}
	return n
}

func (t *TaskSpec) checkNames() error {
	for _, f := range []struct{ field, v string }{{"name", t.Name}, {"recipe", t.Recipe}} {
		switch {
		case len(f.v) > MaxNameBytes:
			return FieldErrorf(f.field, "is %d bytes long; use at most %d", len(f.v), MaxNameBytes)
		case !printable(f.v):
			return FieldErrorf(f.field, "%q holds control characters or invalid UTF-8; use printable text", f.v)
		}
	}
	if len(t.DepSignatures) > MaxDeps {
		return FieldErrorf("dep_signatures", "has %d entries; use at most %d", len(t.DepSignatures), MaxDeps)
	}
	for _, s := range t.DepSignatures {
		if _, err := ParseDigest(string(s)); err != nil {
			return FieldErrorf("dep_signatures", "%w; use the signature of a TaskOutput", err)
		}
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func (t *TaskSpec) checkCommand() error {
	switch {
	case t.Script == "" && len(t.Argv) == 0:
		return FieldErrorf("script", "is empty and so is argv; give one of them")
	case t.Script != "" && len(t.Argv) > 0:
		return FieldErrorf("script", "and argv are both given; give one of them")
	case len(t.Script) > MaxScriptBytes:
		return FieldErrorf("script", "is %d bytes long; use at most %d, or put it into an input", len(t.Script), MaxScriptBytes)
	case len(t.Stdin) > MaxStdinBytes:
		return FieldErrorf("stdin", "is %d bytes long; use at most %d, or put it into an input", len(t.Stdin), MaxStdinBytes)
	case strings.ContainsRune(t.Script, 0):
		return FieldErrorf("script", "holds a NUL byte; a shell script is text")
	}
	if len(t.Argv) > 0 && t.Argv[0] == "" {
		return FieldErrorf("argv", "begins with an empty string; name a program")
	}
	sum := 0
	for i, a := range t.Argv {
		if strings.ContainsRune(a, 0) {
			return FieldErrorf("argv", "argument %d holds a NUL byte, which no program can be given", i)
		}
		if len(a) > MaxArgBytes {
			return FieldErrorf("argv", "argument %d is %d bytes long; the kernel takes at most %d, use a file", i, len(a), MaxArgBytes)
		}
		sum += len(a) + 9 // its NUL and its pointer
	}
	if sum > MaxArgvBytes {
		return FieldErrorf("argv", "is %d bytes long; use at most %d, or a script", sum, MaxArgvBytes)
	}
	return nil
}

// absolute checks a path as the sandbox has them.
func absolute(field, p string) error {
	switch {
	case len(p) > MaxPathBytes:
		return FieldErrorf(field, "is %d bytes long; the kernel takes at most %d", len(p), MaxPathBytes)
	case !strings.HasPrefix(p, "/"):
		return FieldErrorf(field, "%q is not an absolute path; begin it with /", p)
	case strings.ContainsRune(p, 0):
		return FieldErrorf(field, "%q holds a NUL byte, which no path can", p)
	case path.Clean(p) != p:
		return FieldErrorf(field, "%q is not clean; write it as %q", p, path.Clean(p))
	}
	return nil
}

func (t *TaskSpec) checkPaths() error {
	if t.Workdir != "" {
		if err := hostPath("workdir", t.Workdir); err != nil {
			return err
		}
	}
	if t.Rootfs != "" {
		if err := hostPath("rootfs", t.Rootfs); err != nil {
			return err
		}
	}
	if t.Workdir == "" && t.WorkdirMode == WorkdirDirect {
		return FieldErrorf("workdir_mode", "is direct without a workdir; name the directory to write to")
	}
	return nil
}

func (t *TaskSpec) checkPlatforms() error {
	if err := CheckPlatforms(t.Platforms); err != nil {
		return FieldErrorf("platforms", "%w", err)
	}
	return nil
}

// CheckPlatforms says what is wrong with a list of platforms.
func CheckPlatforms(platforms []string) error {
	if len(platforms) > MaxPlatforms {
		return fmt.Errorf("has %d entries; use at most %d", len(platforms), MaxPlatforms)
	}
	for i, p := range platforms {
		system, arch, ok := strings.Cut(p, "/")
		if !ok || !isPlatformWord(system) || !isPlatformWord(arch) || len(p) > MaxPlatformBytes {
			return fmt.Errorf("%.80q is no platform; write one such as %s or %s", p, PlatformNative, PlatformWasm)
		}
		if slices.Contains(platforms[:i], p) {
			return fmt.Errorf("%q is named twice; name it once", p)
		}
	}
	return nil
}

func isPlatformWord(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

func (t *TaskSpec) checkEnv() error {
	sum := 0
	for k, v := range t.Env {
		switch {
		case k == "" || strings.ContainsAny(k, "=\x00"):
			return FieldErrorf("env", "name %.80q is empty or holds = or NUL; use a plain name", k)
		case strings.ContainsRune(v, 0):
			return FieldErrorf("env", "value of %.80q holds a NUL byte, which no environment can", k)
		case len(k)+len(v)+1 > MaxArgBytes:
			return FieldErrorf("env", "%.40s is %d bytes long; the kernel takes at most %d, use a file", k, len(k)+len(v)+1, MaxArgBytes)
		}
		sum += len(k) + len(v) + 10
	}
	if sum > MaxEnvBytes {
		return FieldErrorf("env", "is %d bytes long; use at most %d", sum, MaxEnvBytes)
	}
	return nil
}

func (t *TaskSpec) checkOutputs() error {
	if len(t.Outputs) > MaxOutputs {
		return FieldErrorf("outputs", "has %d entries; use at most %d, or name their directory", len(t.Outputs), MaxOutputs)
	}
	if len(t.Outputs) > 0 && t.WorkdirMode == WorkdirReadonly {
		return FieldErrorf("outputs", "are declared in a readonly workdir; use overlay or direct")
	}
	seen := make(map[string]bool, len(t.Outputs))
	for _, o := range t.Outputs {
		switch {
		case len(o) > MaxPathBytes:
			return FieldErrorf("outputs", "%.80q… is %d bytes long; the kernel takes at most %d", o, len(o), MaxPathBytes)
		case o == "" || strings.HasPrefix(o, "/") || strings.ContainsRune(o, 0):
			return FieldErrorf("outputs", "%q is not a path relative to the workdir; write it without a leading /", o)
		case o == "." || o == ".." || strings.HasPrefix(o, "../") || path.Clean(o) != o:
			return FieldErrorf("outputs", "%q leaves the workdir, is all of it, or is not clean; name a path below it", o)
		case !utf8.ValidString(o):
			return FieldErrorf("outputs", "%q is not UTF-8; rename it", o)
		case seen[o]:
			return FieldErrorf("outputs", "%q is named twice; name it once", o)
		}
		seen[o] = true
	}
	for _, o := range t.Outputs {
		for d := path.Dir(o); d != "."; d = path.Dir(d) {
			if seen[d] {
				return FieldErrorf("outputs", "%q lies in the output %q; name only the latter", o, d)
			}
		}
	}
	return nil
}

// reservedTargets are the sandbox's own; nothing may be put over or under them.
var reservedTargets = []string{"/proc", "/dev", "/sys", "/build", "/.sandboxd", "/etc", "/home/build", "/tmp"}

func (t *TaskSpec) checkInputs() error {
	if len(t.Inputs) > MaxInputs {
		return FieldErrorf("inputs", "has %d entries; use at most %d, or name their directory", len(t.Inputs), MaxInputs)
	}
	seen := make(map[string]bool, len(t.Inputs))
	for _, in := range t.Inputs {
		if err := hostPath("inputs", in.Host); err != nil {
			return err
		}
		to := in.Target()
		if err := absolute("inputs", to); err != nil {
			return err
		}
		if to == "/" {
			return FieldErrorf("inputs", "%q would be the root itself; use rootfs for that", in.Host)
		}
		for _, r := range reservedTargets {
			// Under /tmp a caller's tree may lie, and is then seen there; and
			// configuration goes into /etc and the home directory.
			if to == r || r != "/tmp" && r != "/etc" && r != "/home/build" && strings.HasPrefix(to, r+"/") {
				return FieldErrorf("inputs", "%q is the sandbox's own; put the input elsewhere", to)
			}
		}
		if seen[to] {
			return FieldErrorf("inputs", "%q is the place of two inputs; put one elsewhere", to)
		}
		seen[to] = true
	}
	return nil
}

func (t *TaskSpec) checkModes() error {
	switch t.WorkdirMode {
	case WorkdirOverlay, WorkdirDirect, WorkdirReadonly:
	default:
		return FieldErrorf("workdir_mode", "%.80q is unknown; use overlay (or nothing), direct or readonly", t.WorkdirMode)
	}
	switch t.Cache {
	case CacheUse, CacheRefresh, CacheOff:
	default:
		return FieldErrorf("cache", "%.80q is unknown; use use (or nothing), refresh or off", t.Cache)
	}
	if t.Priority < -MaxPriority || t.Priority > MaxPriority {
		return FieldErrorf("priority", "%d is out of range; use %d to %d", t.Priority, -MaxPriority, MaxPriority)
	}
	if t.Timeout < 0 || t.Timeout > MaxTimeout || t.Timeout > 0 && t.Timeout < time.Millisecond {
		return FieldErrorf("timeout", "%v is out of range; use 1ms to %v, or 0 for %v", t.Timeout, MaxTimeout, DefaultTimeout)
	}
	return nil
}

func (t *TaskSpec) checkNetwork() error {
	switch t.Network {
	case NetworkIsolated, NetworkLoopback, NetworkControlled, NetworkFull:
	default:
		return FieldErrorf("network", "%.80q is unknown; use isolated (or nothing), loopback, controlled or full", t.Network)
	}
	if t.Network != NetworkControlled && len(t.Allow) > 0 {
		return FieldErrorf("allow", "is given with network %s, where it has no effect; use network controlled, or leave it out", t.Network)
	}
	if t.Network != NetworkControlled && t.Audit {
		return FieldErrorf("audit", "is given with network %s, where it has no effect; use network controlled, or leave it out", t.Network)
	}
	_, err := t.AllowRules()
	return err
}

func (l ResourceLimits) validate() error {
	const most = 1 << 50
	for _, f := range []struct {
		field     string
		v         int64
		low, high int64
	}{
		{"cpu_quota_us", l.CPUQuotaUS, 1000, 100_000 * 4096},
		{"memory_bytes", l.MemoryBytes, 32 << 20, most},
		{"pids_max", l.PidsMax, 1, 4 << 20},
		{"io_weight", l.IOWeight, 1, 10_000},
		{"tmp_bytes", l.TmpBytes, 4096, most},
		{"open_files", l.OpenFiles, 64, 1 << 20},
		{"output_bytes", l.OutputBytes, 1, most},
	} {
		if f.v == 0 || f.v == Unlimited && f.field != "io_weight" && f.field != "open_files" {
			continue
		}
		if f.v < f.low || f.v > f.high {
			return FieldErrorf("limits."+f.field, "%d is out of range; use %d to %d, or 0 for the default", f.v, f.low, f.high)
		}
	}
	return nil
}
