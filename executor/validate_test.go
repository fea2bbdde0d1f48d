package executor_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

func TestValidateNamesTheField(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	for field, specs := range map[string][]executor.TaskSpec{
		"name":   {{Script: "x", Name: "a\nb"}, {Script: "x", Name: "\xff"}, {Script: "x", Name: long}},
		"recipe": {{Script: "x", Recipe: "\x1b[2J"}},
		"script": {{}, {Script: "x", Argv: []string{"x"}}, {Script: "a\x00b"}, {Script: strings.Repeat("x", executor.MaxScriptBytes+1)}},
		"argv":   {{Argv: []string{""}}, {Argv: []string{"a\x00"}}, {Argv: []string{long}}, {Argv: make([]string, 1<<20)}},
		"stdin":  {{Script: "x", Stdin: make([]byte, executor.MaxStdinBytes+1)}},
		"workdir": {{Script: "x", Workdir: "rel"}, {Script: "x", Workdir: "/a/../b"}, {Script: "x", Workdir: "/a\x00"},
			{Script: "x", Workdir: "/" + long}, {Script: "x", Workdir: "/a/"}},
		"rootfs": {{Script: "x", Rootfs: "rel"}},
		"platforms": {{Script: "x", Platforms: []string{"linux"}}, {Script: "x", Platforms: []string{"linux/"}}, {Script: "x", Platforms: []string{"a/b/c"}},
			{Script: "x", Platforms: []string{"Linux/amd64"}}, {Script: "x", Platforms: []string{"a/b", "a/b"}}, {Script: "x", Platforms: make([]string, executor.MaxPlatforms+1)},
			{Script: "x", Platforms: []string{"a/" + long}}},
		"workdir_mode":   {{Script: "x", WorkdirMode: "rw"}, {Script: "x", WorkdirMode: executor.WorkdirDirect}},
		"network":        {{Script: "x", Network: "host"}},
		"cache":          {{Script: "x", Cache: "no"}},
		"timeout":        {{Script: "x", Timeout: -1}, {Script: "x", Timeout: 1}, {Script: "x", Timeout: 365 * 24 * time.Hour}},
		"dep_signatures": {{Script: "x", DepSignatures: []executor.Signature{"nonsense"}}},
		"env": {{Script: "x", Env: map[string]string{"": "v"}}, {Script: "x", Env: map[string]string{"A=B": "v"}},
			{Script: "x", Env: map[string]string{"A": "\x00"}}, {Script: "x", Env: map[string]string{"A": long}}},
		"outputs": {{Script: "x", Outputs: []string{"/abs"}}, {Script: "x", Outputs: []string{"../up"}}, {Script: "x", Outputs: []string{"a/../../b"}},
			{Script: "x", Outputs: []string{""}}, {Script: "x", Outputs: []string{"."}}, {Script: "x", Outputs: []string{"a", "a"}},
			{Script: "x", Outputs: []string{"a", "a/b"}}, {Script: "x", Outputs: []string{"\xff"}}, {Script: "x", Outputs: make([]string, executor.MaxOutputs+1)},
			{Script: "x", Workdir: "/w", WorkdirMode: executor.WorkdirReadonly, Outputs: []string{"a"}}},
		"inputs": {{Script: "x", Inputs: []executor.Input{{Host: "rel"}}}, {Script: "x", Inputs: []executor.Input{{Host: "/a", Sandbox: "/proc/self"}}},
			{Script: "x", Inputs: []executor.Input{{Host: "/"}}}, {Script: "x", Inputs: []executor.Input{{Host: "/a", Sandbox: "/build/x"}}},
			{Script: "x", Inputs: []executor.Input{{Host: "/a"}, {Host: "/b", Sandbox: "/a"}}}},
		"limits.memory_bytes": {{Script: "x", Limits: executor.ResourceLimits{MemoryBytes: 1}}, {Script: "x", Limits: executor.ResourceLimits{MemoryBytes: -2}}},
		"limits.cpu_quota_us": {{Script: "x", Limits: executor.ResourceLimits{CPUQuotaUS: 999}}},
		"limits.pids_max":     {{Script: "x", Limits: executor.ResourceLimits{PidsMax: -2}}, {Script: "x", Limits: executor.ResourceLimits{PidsMax: 4<<20 + 1}}},
		"limits.io_weight":    {{Script: "x", Limits: executor.ResourceLimits{IOWeight: -1}}, {Script: "x", Limits: executor.ResourceLimits{IOWeight: 10001}}},
		"limits.open_files":   {{Script: "x", Limits: executor.ResourceLimits{OpenFiles: -1}}},
	} {
		for i, s := range specs {
			var e *executor.Error
			if err := s.Validate(); !errors.As(err, &e) || e.Kind != executor.Invalid || e.Field != field {
				t.Errorf("%s, case %d: got %v; want an invalid %s", field, i, err, field)
			}
		}
	}
}

func TestValidateAcceptsWhatIsMeant(t *testing.T) {
	for i, s := range []executor.TaskSpec{
		{Script: "true"},
		{Argv: []string{"true", ""}},
		{Script: "x", Outputs: []string{"a", "b/c", "-x", "a b", "…"}, Workdir: "/w", WorkdirMode: executor.WorkdirDirect},
		{Script: "x", Inputs: []executor.Input{{Host: "/tmp/a"}, {Host: "/a", Sandbox: "/opt/a"}}},
		{Script: "x", Limits: executor.StrictLimits()},
		{Script: "x", Platforms: []string{executor.PlatformNative, executor.PlatformWasm}},
		{Script: "x", Limits: executor.ResourceLimits{MemoryBytes: executor.Unlimited}},
		{Script: "x", Limits: executor.ResourceLimits{}.WithDefaults()},
	} {
		if err := s.Validate(); err != nil {
			t.Errorf("case %d: %v", i, err)
		}
	}
}

func FuzzParseDigest(f *testing.F) {
	f.Add(strings.Repeat("a", 64) + "/1")
	f.Add("/")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := executor.ParseDigest(s)
		if err != nil {
			return
		}
		if again, err := executor.ParseDigest(d.String()); err != nil || again != d {
			t.Errorf("%q gives %v, which gives %v, %v", s, d, again, err)
		}
	})
}
