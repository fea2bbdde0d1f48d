package integration_test

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
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
	var all []runner
	if _, err := exec.LookPath("bwrap"); err == nil {
		all = append(all, runner{"bwrap", quiet("bwrap", bwrapArgs()...)})
	}
	all = append(all, runner{"sandboxd", doNothing(benchClient(b))})
	clients, tasks := 4*runtime.NumCPU(), 5000
	const turns = 5
	rate := make([]time.Duration, len(all))
	each := make([][]time.Duration, len(all))
	for range turns {
		for i, r := range all {
			times, whole := measure(b, tasks/turns, clients, r.run)
			rate[i] += whole
			each[i] = append(each[i], times...)
		}
	}
	var rows []string
	for i, r := range all {
		slices.Sort(each[i])
		rows = append(rows, fmt.Sprintf("%s | %.0f | %v | %v | %.2f", r.name, float64(tasks)/rate[i].Seconds(),
			micro(percentile(each[i], 50)), micro(percentile(each[i], 99)), rate[i].Seconds()/rate[len(all)-1].Seconds()))
	}
	publish(b, fmt.Sprintf("/bin/true, %d clients, %d tasks", clients, tasks), "by | per second | p50 | p99 | sandboxd's rate/rate", rows...)
}
