package integration_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/rpc"
)

// doNothing runs /bin/true by a client.
func doNothing(c *rpc.Client) func() error {
	return func() error {
		out, err := c.Execute(context.Background(), &executor.TaskSpec{Argv: []string{"/bin/true"}, Cache: executor.CacheOff})
		if err == nil && !out.Success() {
			err = fmt.Errorf("%+v", out)
		}
		return err
	}
}

// BenchmarkWarm prints what /bin/true costs by a client's call, one at a time, where sandboxes are prepared, next to
// the bare command and bubblewrap. Between two calls there is a pause, in which the next sandbox is prepared.
func BenchmarkWarm(b *testing.B) {
	rootAndClean(b)
	all := []runner{{"bare", quiet("/bin/true")}}
	if _, err := exec.LookPath("bwrap"); err == nil {
		all = append(all, runner{"bwrap", quiet("bwrap", bwrapArgs()...)})
	}
	all = append(all, runner{"sandboxd", doNothing(benchClient(b))})
	const turns, tasks = 30, 20
	each := make([][]time.Duration, len(all))
	for range turns {
		for i, r := range all {
			for range tasks {
				times, _ := measure(b, 1, 1, r.run)
				each[i] = append(each[i], times...)
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
	var rows []string
	ours := slices.Sorted(slices.Values(each[len(each)-1]))
	for i, r := range all {
		e := slices.Sorted(slices.Values(each[i]))
		p50, p99 := percentile(e, 50), percentile(e, 99)
		rows = append(rows, fmt.Sprintf("%s | %v | %v | %.2f | %.2f", r.name, micro(p50), micro(p99), p99.Seconds()/p50.Seconds(), percentile(ours, 50).Seconds()/p50.Seconds()))
	}
	publish(b, "/bin/true, warm, one at a time", "by | p50 | p99 | p99/p50 | sandboxd's p50/p50", rows...)
}

func micro(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// BenchmarkSustained prints how many of /bin/true are run a second by 4 clients for each processor, so that what is
// prepared does not last.
func BenchmarkSustained(b *testing.B) {
	rootAndClean(b)
	clients, turns := 4*runtime.NumCPU(), 5
	type one struct {
		runner
		tasks int // in each turn
		took  time.Duration
		each  []time.Duration
	}
	var all []*one
	if _, err := exec.LookPath("bwrap"); err == nil {
		all = append(all, &one{runner: runner{"bwrap", quiet("bwrap", bwrapArgs()...)}, tasks: 1000})
	}
	if _, err := exec.LookPath("runc"); err == nil { // libcontainer, cold
		all = append(all, &one{runner: runner{"runc run, userns", runc(runcBundle(b, true))}, tasks: 100})
	}
	ours := &one{runner: runner{"sandboxd", doNothing(benchClient(b))}, tasks: 1000}
	all = append(all, ours)
	for range turns {
		for _, r := range all {
			times, whole := measure(b, r.tasks, clients, r.run)
			r.took += whole
			r.each = append(r.each, times...)
		}
	}
	rate := func(r *one) float64 { return float64(r.tasks*turns) / r.took.Seconds() }
	var rows []string
	for _, r := range all {
		slices.Sort(r.each)
		rows = append(rows, fmt.Sprintf("%s | %.0f | %v | %v | %.2f", r.name, rate(r), micro(percentile(r.each, 50)), micro(percentile(r.each, 99)), rate(ours)/rate(r)))
	}
	publish(b, fmt.Sprintf("/bin/true, %d clients, %d tasks", clients, ours.tasks*turns), "by | per second | p50 | p99 | sandboxd's rate/rate", rows...)
}

// BenchmarkMany starts a thousand sandboxes that sleep, one after the other, and prints how long each takes to start when
// few and when many run, and what memory the daemon has then.
func BenchmarkMany(b *testing.B) {
	rootAndClean(b)
	const tasks = 1000
	d := startDaemon(b, "")
	d.stop()
	d.reconfigure("max_parallel = 4", fmt.Sprintf("max_parallel = %d", tasks))
	d.start()
	c := d.dialAs(0)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	var took []time.Duration
	for range tasks {
		started := make(chan error, 2)
		with := executor.WithEvents(ctx, func(e executor.TaskEvent) {
			if e.Kind == executor.EventStarted {
				started <- nil
			}
		})
		began := time.Now()
		all.Go(func() {
			out, err := c.Execute(with, &executor.TaskSpec{Argv: []string{"sleep", "10000"}, Cache: executor.CacheOff})
			if err == nil && out.Cause != executor.CauseCanceled {
				err = fmt.Errorf("%+v", out)
			}
			started <- err
		})
		if err := <-started; err != nil {
			b.Fatalf("of %d: %v", len(took), err)
		}
		took = append(took, time.Since(began))
	}
	var rows []string
	var few time.Duration
	for _, n := range []int{10, 300, 600, 900} {
		p50 := percentile(slices.Sorted(slices.Values(took[n:n+90])), 50)
		if n == 10 {
			few = p50
		}
		rows = append(rows, fmt.Sprintf("%d | %v | %.2f", n, micro(p50), p50.Seconds()/few.Seconds()))
	}
	publish(b, "Sandboxes that run at once", "running | p50 of the next 90 starts | of that at 10", rows...)
	resident := field(b, fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid), "VmRSS:") >> 10
	publish(b, "Memory of the daemon", "sandboxes that run | resident, MiB | at most, MiB", fmt.Sprintf("%d | %d | %d", tasks, resident, residentPeak(b, d.cmd.Process.Pid)))
}

// BenchmarkWarmMemory prints the memory of prepared sandboxes: the part of the processes' pages that is theirs, what
// the kernel charges to their groups is besides, and what the daemon has more for them.
func BenchmarkWarmMemory(b *testing.B) {
	rootAndClean(b)
	const warm = 32
	d := startDaemon(b, fmt.Sprintf("warm = %d", warm))
	must(b, doNothing(d.dialAs(0))())
	var firsts []int
	for end := time.Now().Add(time.Minute); len(firsts) < warm; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("%d of %d sandboxes are prepared", len(firsts), warm)
		}
		firsts = nil
		for _, zygote := range children(b, d.cmd.Process.Pid) {
			firsts = append(firsts, children(b, zygote)...)
		}
	}
	var pss, private, charged int64
	for _, pid := range firsts {
		file := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
		pss += field(b, file, "Pss:")
		private += field(b, file, "Private_Dirty:") + field(b, file, "Private_Clean:")
		charged += chargedTo(b, pid)
	}
	n := int64(len(firsts))
	publish(b, fmt.Sprintf("Memory of a prepared sandbox, of %d", warm), "PSS, KiB | of that private | charged to its group, KiB",
		fmt.Sprintf("%d | %d | %d", pss/n, private/n, charged/n>>10))
	b.ReportMetric(float64(pss/n), "PSS-KiB")
}

// children are the processes that one has made.
func children(b *testing.B, pid int) (all []int) {
	b.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	must(b, err)
	for _, l := range lists {
		text, err := os.ReadFile(l)
		must(b, err)
		for _, f := range strings.Fields(string(text)) {
			n, err := strconv.Atoi(f)
			must(b, err)
			all = append(all, n)
		}
	}
	return all
}

// chargedTo is the memory of a process's control group, in bytes.
func chargedTo(b *testing.B, pid int) (n int64) {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	must(b, err)
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		file := ""
		switch f[1] {
		case "":
			file = "/sys/fs/cgroup" + f[2] + "/memory.current"
		case "memory":
			file = "/sys/fs/cgroup/memory" + f[2] + "/memory.usage_in_bytes"
		}
		if text, err := os.ReadFile(file); err == nil {
			n, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			must(b, err)
		}
	}
	return n
}
