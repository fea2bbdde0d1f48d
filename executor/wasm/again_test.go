package wasm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
)

// TestAgain: nothing of a task is left to the next one in the same worker, whatever it did, and what a task
// sees does not depend on those before it.
func TestAgain(t *testing.T) {
	e := openShell(t, Config{})
	see := &executor.TaskSpec{Cache: executor.CacheOff, Stdin: []byte("in"), Env: map[string]string{"A": "b"}, Script: strings.Join([]string{
		`env | sort`, `set | grep -c SECRET || true`, `echo $RANDOM $RANDOM`, `date +%s%N`, `mktemp`, `ls -ali / /tmp /build`, `cat`, `pwd`, `echo $-`,
	}, "\n")}
	first := run(t, e, see)
	if !first.Success() {
		t.Fatalf("%s", first.Stderr.Inline)
	}
	for _, script := range []string{
		"SECRET=verysecret; export SECRET; cd /tmp; echo $SECRET >f; set -x; alias ls=false; f() { :; }; trap 'echo trapped' EXIT",
		"sleep 1000 & exit 0",
		"exec 3>/tmp/open; exit 3",
		"exec 3>/tmp/open 4</tmp/open 5>&1 >/tmp/out; (exec 6>/tmp/sub; echo x >&3); exec {fd}>/tmp/named; set -C",
		"s=xxxxxxxxxxxxxxxx; i=0; while [ $i -lt 16 ]; do s=$s$s; i=$((i+1)); done; echo ${#s}",
		"yes | head -n 1000 | wc -l",
		"i=0; while :; do i=$((i+1)); echo $i; done",
		"exit 1",
	} {
		spec := uncached(script)
		spec.Limits.OutputBytes = 1000
		out, err := e.Execute(t.Context(), spec)
		must(t, err)
		t.Logf("%.20s: %d %s", script, out.ExitCode, out.Cause)
		for n := range 2 {
			out := run(t, e, see)
			if got, want := fmt.Sprintf("%d %s %s", out.ExitCode, out.Stdout.Inline, out.Stderr.Inline), fmt.Sprintf("0 %s %s", first.Stdout.Inline, first.Stderr.Inline); got != want {
				t.Errorf("after %q, %d: saw\n%s\nand at first\n%s", script, n, got, want)
			}
		}
	}
	// Memory that a task before had is not this one's: neither in what it is said to have had, nor by its limit.
	var peak int64
	for n := range 4 {
		spec := uncached("s=xxxxxxxxxxxxxxxx; i=0; while [ $i -lt 20 ]; do s=$s$s; i=$((i+1)); done; echo ${#s}")
		if n == 2 {
			spec.Limits.MemoryBytes = peak - 1<<20
		}
		out := run(t, e, spec)
		switch {
		case n == 0:
			peak = *out.Usage.PeakMemory
		case n == 2:
			if out.Cause != executor.CauseOOMKilled || *out.Usage.PeakMemory >= peak {
				t.Errorf("with a limit of %d: %s, %d", spec.Limits.MemoryBytes, out.Cause, *out.Usage.PeakMemory)
			}
		case !out.Success() || *out.Usage.PeakMemory != peak:
			t.Errorf("the same task had %d bytes, and at first %d: %+v", *out.Usage.PeakMemory, peak, out)
		}
	}
	// What it needs is enough, also where the instance had as much before: the first of these is given more.
	for n := range 3 {
		spec := uncached("s=xxxxxxxxxxxxxxxx; i=0; while [ $i -lt 19 ]; do s=$s$s; i=$((i+1)); done; echo ${#s}")
		if n > 0 {
			spec.Limits.MemoryBytes = peak
		}
		out := run(t, e, spec)
		if peak = max(*out.Usage.PeakMemory, 32<<20); !out.Success() {
			t.Errorf("with %d bytes, which it had before: %+v", spec.Limits.MemoryBytes, out)
		}
	}
	// A task that is wrong costs the next nothing, either.
	bad := uncached("true")
	bad.Workdir = "/nowhere/at/all"
	if _, err := e.Execute(t.Context(), bad); executor.KindOf(err) != executor.Invalid || executor.AsError(err).Field != "workdir" {
		t.Errorf("no work directory: %v", err)
	}
	peak = 0
	for range 250 {
		out := run(t, e, uncached("echo $A"))
		if peak == 0 {
			peak = *out.Usage.PeakMemory
		}
		if string(out.Stdout.Inline) != "\n" || *out.Usage.PeakMemory != peak || peak < 1<<20 {
			t.Fatalf("%+v: %d bytes of memory, and at first %d", out, *out.Usage.PeakMemory, peak)
		}
	}
	if out := run(t, e, see); string(out.Stdout.Inline) != string(first.Stdout.Inline) {
		t.Errorf("in the end it saw %s", out.Stdout.Inline)
	}
}
