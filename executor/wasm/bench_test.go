package wasm

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
)

// measure runs a task b.N times and reports the median.
func measure(b *testing.B, e executor.Executor, spec *executor.TaskSpec) {
	var all []time.Duration
	for b.Loop() {
		began := time.Now()
		if out := run(b, e, spec); !out.Success() {
			b.Fatalf("%+v", out)
		}
		all = append(all, time.Since(began))
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(all[len(all)*9/10].Microseconds()), "p90-µs")
	b.ReportMetric(0, "ns/op")
}

// warm waits for all workers, once the first has compiled.
func warm(b *testing.B, e *Executor) {
	b.Helper()
	for range e.cfg.MaxParallel {
		s := <-e.seats
		<-s.ready
		e.seats <- s
		run(b, e, uncached("true"))
	}
}

func BenchmarkShell(b *testing.B) {
	for _, script := range []string{"echo hi", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"} {
		b.Run(script[:7], func(b *testing.B) {
			e := openShell(b, Config{})
			warm(b, e)
			measure(b, e, uncached(script))
		})
	}
	b.Run("a file", func(b *testing.B) {
		e := openShell(b, Config{})
		warm(b, e)
		spec := uncached("echo hi >out")
		spec.Workdir, spec.Outputs = b.TempDir(), []string{"out"}
		measure(b, e, spec)
	})
	b.Run("cached", func(b *testing.B) {
		e := openShell(b, Config{})
		warm(b, e)
		measure(b, e, &executor.TaskSpec{Script: "echo hi"})
	})
}

func BenchmarkThroughput(b *testing.B) {
	e := openShell(b, Config{MaxParallel: 2})
	warm(b, e)
	began := time.Now()
	var n atomic.Int64
	b.SetParallelism(4)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			n.Add(1)
			run(b, e, uncached("echo hi"))
		}
	})
	b.ReportMetric(float64(n.Load())/time.Since(began).Seconds(), "tasks/s")
}

// BenchmarkComponent is the one in C where that can be built.
func BenchmarkComponent(b *testing.B) {
	to := b.TempDir()
	if out, err := exec.Command("../../examples/components/c/build.sh", to).CombinedOutput(); err != nil {
		b.Skipf("%v\n%s", err, out)
	}
	module, err := os.ReadFile(to + "/executor.wasm")
	must(b, err)
	e := openShell(b, Config{Module: module})
	run(b, e, uncached("say x"))
	measure(b, e, uncached("say x"))
}

// BenchmarkStart is a daemon's, with the shell compiled before; and what a worker that waits has resident.
func BenchmarkStart(b *testing.B) {
	run(b, openShell(b, Config{}), uncached("true"))
	var all []time.Duration
	var resident int
	for b.Loop() {
		began := time.Now()
		e := openShell(b, Config{})
		s := <-e.seats
		<-s.ready
		all = append(all, time.Since(began))
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.worker.cmd.Process.Pid))
		e.seats <- s
		if err == nil {
			_, rest, _ := strings.Cut(string(status), "VmRSS:")
			_, _ = fmt.Sscan(rest, &resident)
		}
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Milliseconds()), "p50-ms")
	b.ReportMetric(float64(resident)/1024, "worker-MiB")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkFirstTask is from the start of a daemon with no compiled code to the end of its first task.
func BenchmarkFirstTask(b *testing.B) {
	var all []time.Duration
	for b.Loop() {
		began := time.Now()
		e := openShell(b, Config{CodeDir: b.TempDir() + "/code"})
		run(b, e, uncached("echo hi"))
		all = append(all, time.Since(began))
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Milliseconds()), "p50-ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRead is of a task that reads a work directory of a thousand small files, next to the same script run natively.
func BenchmarkRead(b *testing.B) {
	const files = 1000
	work := b.TempDir()
	for i := range files {
		must(b, os.WriteFile(fmt.Sprintf("%s/%d", work, i), make([]byte, 100+10*i), 0o644))
	}
	for _, script := range []string{"cat * >/dev/null", "sha256sum * >/dev/null"} {
		b.Run(script[:strings.Index(script, " ")], func(b *testing.B) {
			e := openShell(b, Config{})
			warm(b, e)
			spec := uncached(script)
			spec.Workdir = work
			measure(b, e, spec)
			began, n := time.Now(), 0
			for ; n < 10 || time.Since(began) < 100*time.Millisecond; n++ {
				cmd := exec.Command("sh", "-c", script)
				cmd.Dir = work
				must(b, cmd.Run())
			}
			b.ReportMetric(float64(time.Since(began).Microseconds())/float64(n), "native-µs")
		})
	}
}
