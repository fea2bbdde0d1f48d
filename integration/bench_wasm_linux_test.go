package integration_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm"
)

// inWasm runs a script that must succeed.
func inWasm(e executor.Executor, script string) func() error {
	return func() error {
		out, err := e.Execute(context.Background(), &executor.TaskSpec{Script: script, Cache: executor.CacheOff})
		if err == nil && !out.Success() {
			err = fmt.Errorf("%+v", out)
		}
		return err
	}
}

// BenchmarkWasm prints what tasks in WebAssembly cost, all but the last two by a client of a daemon.
func BenchmarkWasm(b *testing.B) {
	rootAndClean(b)
	const loop = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
	var rows []string
	row := func(what string, value any, target string) {
		rows = append(rows, fmt.Sprintf("%s | %v | %s", what, value, target))
	}
	once := func(began time.Time, d *daemon) time.Duration {
		must(b, inWasm(d.dialAs(0), "echo hi")())
		return time.Since(began)
	}
	began := time.Now()
	d := startDaemon(b, fmt.Sprintf("[[executor]]\nname = \"wasm\"\nbackend = \"wasm\"\nmax_parallel = %d\n", runtime.NumCPU()))
	row("first task ever, with the daemon's start", micro(once(began, d)), "6 s")
	d.stop()
	began = time.Now()
	d.start()
	row("first task with compiled code, with the daemon's start", micro(once(began, d)), "250 ms, without the task")
	c := d.dialAs(0)
	each, _ := measure(b, 1000, 1, inWasm(c, "echo hi"))
	row("`echo hi` over the socket: p50", micro(percentile(each, 50)), "3 ms")
	row("the same: p99", micro(percentile(each, 99)), "")
	const tasks = 4000
	_, all := measure(b, tasks, 4*runtime.NumCPU(), inWasm(c, "echo hi"))
	row("tasks a second", fmt.Sprintf("%.0f", tasks/all.Seconds()), "500")
	each, _ = measure(b, 5, 1, inWasm(c, loop))

	native := filepath.Join(newDir(b), "guest")
	modfile, err := exec.Command("../executor/wasm/shell/build.sh", "--modfile").Output()
	must(b, err)
	must(b, quiet("go", "build", "-modfile="+strings.TrimSpace(string(modfile)), "-o", native, "../executor/wasm/shell/guest")())
	must(b, os.Symlink(native, filepath.Join(filepath.Dir(native), "sh")))
	natively, _ := measure(b, 5, 1, quiet(filepath.Join(filepath.Dir(native), "sh"), "-c", loop))
	row("20,000 additions in the shell, next to the interpreter built for this machine",
		fmt.Sprintf("%v / %v = %.1f", micro(percentile(each, 50)), micro(percentile(natively, 50)), percentile(each, 50).Seconds()/percentile(natively, 50).Seconds()), "8")

	time.Sleep(2 * time.Second) // a worker that waits for one gives back memory
	var resident, private, workers int64
	for _, pid := range children(b, d.cmd.Process.Pid) {
		file := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
		resident += field(b, file, "Rss:")
		private += field(b, file, "Private_Dirty:") + field(b, file, "Private_Clean:")
		workers++
	}
	row(fmt.Sprintf("memory of a worker that waits, after all that, of %d: resident, MiB", workers), resident/workers>>10, "60")
	row("of that its own, MiB", private/workers>>10, "")

	to := newDir(b)
	if out, err := exec.Command("../examples/components/c/build.sh", to).CombinedOutput(); err != nil {
		b.Logf("the component in C: %v\n%s", err, out)
	} else {
		module, err := os.ReadFile(filepath.Join(to, "executor.wasm"))
		must(b, err)
		store, err := cache.Open(filepath.Join(to, "cache"), cache.Config{})
		must(b, err)
		e, err := wasm.New(wasm.Config{Module: module, Cache: store, CodeDir: filepath.Join(to, "code"), MaxParallel: 1})
		must(b, err)
		each, _ := measure(b, 5000, 1, inWasm(e, "say x"))
		row("`execute-task` of the component in C, an instance for each: p50", each[len(each)/2].Round(time.Microsecond), "150 µs")
		must(b, e.Close(context.Background()))
		must(b, store.Close())
	}
	publish(b, "Tasks in WebAssembly", "what | measured | target", rows...)
}
