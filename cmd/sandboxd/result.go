package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"

	"github.com/sandboxd/sandboxd/executor"
)

// exitCode makes the exit status of a result; see the command's doc. sig is the
// signal that canceled the task, if any.
func exitCode(o *executor.TaskOutput, sig os.Signal) int {
	switch o.Cause {
	case executor.CauseTimedOut:
		return exitTimedOut
	case executor.CauseOOMKilled:
		// Also where the shell outlived its child and exited 0.
		return exitSignal + int(syscall.SIGKILL)
	case executor.CauseCanceled:
		if sig != nil {
			return exitSignal + signalNumber(sig)
		}
		return exitSandboxd // the daemon stopped
	case executor.CausePidsLimit:
		return max(o.ExitCode, exitFailure)
	case executor.CauseOutputLimit:
		return exitFailure
	}
	if o.ExitCode == 0 && len(o.MissingOutputs) > 0 {
		return exitSandboxd
	}
	return o.ExitCode
}

// shownPaths is how many paths a line lists.
const shownPaths = 3

// closingLine tells in one line how a task ended.
func closingLine(o *executor.TaskOutput) string {
	var b strings.Builder
	how := "run"
	if o.Cached {
		how = "cached"
	}
	fmt.Fprintf(&b, "sandboxd: %s %s (cpu %s, ", outcome(o), seconds(o.Duration), seconds(o.Usage.CPUUser+o.Usage.CPUSystem))
	if o.Usage.PeakMemory != nil {
		fmt.Fprintf(&b, "peak %s, ", bytesText(*o.Usage.PeakMemory))
	}
	if o.Platform != "" && o.Platform != executor.PlatformNative {
		b.WriteString(o.Platform + ", ")
	}
	b.WriteString(how + ")")
	if len(o.MissingOutputs) > 0 {
		fmt.Fprintf(&b, "; missing %s", list(o.MissingOutputs, int64(len(o.MissingOutputs)), "output"))
	}
	if n := max(o.UndeclaredTotal, int64(len(o.UndeclaredWrites))); n > 0 {
		fmt.Fprintf(&b, "; dropped %s", list(o.UndeclaredWrites, n, "write"))
	}
	if o.DeniedTotal > 0 {
		var to []string
		for _, d := range o.DeniedConnections {
			to = append(to, deniedText(d))
		}
		fmt.Fprintf(&b, "; refused %s", list(to, o.DeniedTotal, "connection"))
	}
	for _, r := range o.NeededAllow {
		fmt.Fprintf(&b, "\nsandboxd: needed --allow %s", r)
	}
	return b.String()
}

// deniedText is a destination, by its name if it has one.
func deniedText(d executor.DeniedConnection) string {
	to := d.Name
	switch {
	case d.Protocol == "dns" && d.Address != "":
		to += " (" + d.Address + ")"
	case to == "":
		to = d.Address
	}
	if d.Port != 0 && d.Protocol != "dns" {
		to = net.JoinHostPort(to, strconv.Itoa(d.Port))
	}
	return to + "/" + d.Protocol
}

func outcome(o *executor.TaskOutput) string {
	switch o.Cause {
	case executor.CauseTimedOut:
		return "timed out after"
	case executor.CauseOOMKilled:
		return "out of memory (raise --memory) after"
	case executor.CauseCanceled:
		return "canceled after"
	case executor.CausePidsLimit:
		return "out of processes (raise --pids) after"
	case executor.CauseOutputLimit:
		return "wrote too much output after"
	case executor.CauseSignaled:
		return fmt.Sprintf("killed by signal %d (%v) after", o.Signal, syscall.Signal(o.Signal))
	}
	switch {
	case o.ExitCode != 0:
		return fmt.Sprintf("exit %d after", o.ExitCode)
	case len(o.MissingOutputs) > 0:
		return "incomplete after"
	}
	return "ok in"
}

func seconds(d time.Duration) string {
	if d >= time.Minute {
		return d.Round(time.Second).String()
	}
	return strconv.FormatFloat(d.Seconds(), 'f', 2, 64) + "s"
}

func bytesText(n int64) string {
	return units.CustomSize("%.4g %s", float64(n), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"})
}

// list is "3 writes: a, b, …". The task chose the paths, so control characters are quoted.
func list(paths []string, total int64, noun string) string {
	if total != 1 {
		noun += "s"
	}
	var shown []string
	for _, p := range paths[:min(len(paths), shownPaths)] {
		if q := strconv.Quote(p); q != `"`+p+`"` {
			p = q
		}
		shown = append(shown, p)
	}
	if total > int64(len(shown)) {
		shown = append(shown, "…")
	}
	return fmt.Sprintf("%d %s: %s", total, noun, strings.Join(shown, ", "))
}

// taskJSON is the object of run --json. Its keys are relied on by scripts.
type taskJSON struct {
	Signature   executor.Signature    `json:"signature"`
	OutputFiles []executor.OutputFile `json:"output_files"`
	streamJSON
	ExitCode         int              `json:"exit_code"`
	Signal           int              `json:"signal,omitempty"`
	DurationMS       int64            `json:"duration_ms"`
	Cause            executor.Cause   `json:"cause"`
	Evidence         string           `json:"evidence,omitempty"`
	Cached           bool             `json:"cached"`
	Platform         string           `json:"platform"`
	Usage            usageJSON        `json:"usage"`
	Applied          executor.Applied `json:"applied"`
	UndeclaredWrites []string         `json:"undeclared_writes"`
	UndeclaredTotal  int64            `json:"undeclared_total,omitempty"`
	MissingOutputs   []string         `json:"missing_outputs,omitempty"`

	DeniedConnections []executor.DeniedConnection `json:"denied_connections,omitempty"`
	DeniedTotal       int64                       `json:"denied_total,omitempty"`
	NetworkTraffic    []executor.RuleTraffic      `json:"network_traffic,omitempty"`
	NeededAllow       []string                    `json:"needed_allow,omitempty"`
}

// streamJSON holds the first executor.InlineBytes of each stream as text, with
// U+FFFD for what is not UTF-8; the bytes themselves are in _base64 then. The
// digest names the whole, which a Go client reads by ReadBlob.
type streamJSON struct {
	Stdout          string          `json:"stdout"`
	StdoutBase64    []byte          `json:"stdout_base64,omitempty"`
	StdoutDigest    executor.Digest `json:"stdout_digest,omitzero"`
	StdoutTruncated bool            `json:"stdout_truncated,omitempty"`
	Stderr          string          `json:"stderr"`
	StderrBase64    []byte          `json:"stderr_base64,omitempty"`
	StderrDigest    executor.Digest `json:"stderr_digest,omitzero"`
	StderrTruncated bool            `json:"stderr_truncated,omitempty"`
}

type usageJSON struct {
	CPUUserMS   int64 `json:"cpu_user_ms"`
	CPUSystemMS int64 `json:"cpu_system_ms"`
	executor.Usage
}

func jsonOf(o *executor.TaskOutput) taskJSON {
	j := taskJSON{
		Signature: o.Signature, OutputFiles: o.OutputFiles, ExitCode: o.ExitCode, Signal: o.Signal,
		DurationMS: o.Duration.Milliseconds(), Cause: o.Cause, Evidence: o.Evidence, Cached: o.Cached, Platform: o.Platform,
		Usage:   usageJSON{o.Usage.CPUUser.Milliseconds(), o.Usage.CPUSystem.Milliseconds(), o.Usage},
		Applied: o.Applied, UndeclaredWrites: o.UndeclaredWrites, UndeclaredTotal: o.UndeclaredTotal,
		MissingOutputs: o.MissingOutputs, DeniedConnections: o.DeniedConnections, DeniedTotal: o.DeniedTotal,
		NetworkTraffic: o.NetworkTraffic, NeededAllow: o.NeededAllow,
	}
	j.Stdout, j.StdoutBase64 = text(o.Stdout)
	j.Stderr, j.StderrBase64 = text(o.Stderr)
	j.StdoutDigest, j.StdoutTruncated = o.Stdout.Digest, o.Stdout.Truncated
	j.StderrDigest, j.StderrTruncated = o.Stderr.Digest, o.Stderr.Truncated
	// A reader in another language wants [] and {}, not null.
	if j.OutputFiles == nil {
		j.OutputFiles = []executor.OutputFile{}
	}
	if j.UndeclaredWrites == nil {
		j.UndeclaredWrites = []string{}
	}
	if j.Applied.Limits == nil {
		j.Applied.Limits = map[string]string{}
	}
	if j.Applied.Sandbox == nil {
		j.Applied.Sandbox = []string{}
	}
	return j
}

func text(s executor.Stream) (string, []byte) {
	if utf8.Valid(s.Inline) {
		return string(s.Inline), nil
	}
	return strings.ToValidUTF8(string(s.Inline), "\uFFFD"), s.Inline
}

// writeJSON writes one object on one line.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
