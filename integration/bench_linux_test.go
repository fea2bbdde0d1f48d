package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/executortest"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/pool"
)

// runner runs one command that does nothing, in some way.
type runner struct {
	name string
	run  func() error
}

// measure runs f n times, by so many at a time, and returns how long each took, sorted,
// and the whole.
func measure(b *testing.B, n, parallel int, f func() error) (each []time.Duration, all time.Duration) {
	b.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := make(chan struct{}, n)
	for range n {
		next <- struct{}{}
	}
	close(next)
	began := time.Now()
	for range parallel {
		wg.Go(func() {
			for range next {
				start := time.Now()
				err := f()
				took := time.Since(start)
				mu.Lock()
				if each = append(each, took); err != nil {
					b.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	all = time.Since(began)
	slices.Sort(each)
	return each, all
}

func percentile(sorted []time.Duration, p int) time.Duration { return sorted[(len(sorted)-1)*p/100] }

func quiet(name string, args ...string) func() error {
	return func() error {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, out)
		}
		return nil
	}
}

// benchClient is a connection to a daemon of the benchmark's own.
func benchClient(b *testing.B) *rpc.Client {
	b.Helper()
	return startDaemon(b, fmt.Sprintf("warm = %d\n", 2*runtime.NumCPU())).dialAs(0)
}

// runcBundle prepares what runc needs: the mounts and programs of the others, and
// the namespaces that runc makes unless told otherwise. Ours has a user and a
// cgroup namespace too; own adds these, so that the same work is compared.
func runcBundle(b *testing.B, own bool) string {
	b.Helper()
	dir := newDir(b)
	spec := exec.Command("runc", "spec")
	spec.Dir = dir
	if out, err := spec.CombinedOutput(); err != nil {
		b.Fatalf("runc spec: %v: %s", err, out)
	}
	text, err := os.ReadFile(dir + "/config.json")
	if err != nil {
		b.Fatal(err)
	}
	var c map[string]any
	if err := json.Unmarshal(text, &c); err != nil {
		b.Fatal(err)
	}
	process := c["process"].(map[string]any)
	process["terminal"], process["args"] = false, []string{"/bin/true"}
	mounts := c["mounts"].([]any)
	for _, d := range hostDirs() {
		mounts = append(mounts, map[string]any{"destination": d, "source": d, "type": "bind", "options": []string{"rbind", "ro"}})
		if err := os.MkdirAll(dir+"/rootfs"+d, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	c["mounts"] = mounts
	if own {
		ownUsers(b, c, dir+"/rootfs")
	}
	if text, err = json.Marshal(c); err != nil {
		b.Fatal(err)
	}
	writeFile(b, dir+"/config.json", string(text))
	return dir
}

// ownUsers adds a user and a cgroup namespace to a bundle. The mount points that are
// missing in its root are made by the root of that user namespace.
func ownUsers(b *testing.B, c map[string]any, rootfs string) {
	b.Helper()
	const base = 1 << 30
	linux := c["linux"].(map[string]any)
	spaces := linux["namespaces"].([]any)
	// runc's own spec has the cgroup namespace only where the whole tree is v2.
	spaces = slices.DeleteFunc(spaces, func(s any) bool { return s.(map[string]any)["type"] == "cgroup" })
	linux["namespaces"] = append(spaces, map[string]any{"type": "user"}, map[string]any{"type": "cgroup"})
	ids := []map[string]any{{"containerID": 0, "hostID": base, "size": 1 << 16}}
	linux["uidMappings"], linux["gidMappings"] = ids, ids
	if err := os.Chown(rootfs, base, base); err != nil {
		b.Fatal(err)
	}
}

func hostDirs() (dirs []string) {
	for _, d := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib64"} {
		if _, err := os.Stat(d); err == nil {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

func bwrapArgs() []string {
	args := []string{"--unshare-all", "--unshare-user", "--cap-drop", "ALL", "--die-with-parent", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--hostname", "sandbox"}
	for _, d := range hostDirs() {
		args = append(args, "--ro-bind", d, d)
	}
	return append(args, "/bin/true")
}

// BenchmarkColdStart prints what /bin/true costs where nothing is prepared, bare and in the sandboxes that people
// know, in one table. Ratios are what to look at.
func BenchmarkColdStart(b *testing.B) {
	rootAndClean(b)
	c := startDaemon(b, "").dialAs(0)
	all := []runner{{"bare", quiet("/bin/true")}}
	if _, err := exec.LookPath("bwrap"); err == nil {
		all = append(all, runner{"bwrap", quiet("bwrap", bwrapArgs()...)})
	} else {
		b.Log("bwrap is not there: install bubblewrap")
	}
	if _, err := exec.LookPath("runc"); err == nil {
		all = append(all, runner{"runc run", runc(runcBundle(b, false))}, runner{"runc, userns", runc(runcBundle(b, true))})
	} else {
		b.Log("runc is not there: install runc")
	}
	all = append(all, runner{"sandboxd", func() error {
		out, err := c.Execute(context.Background(), &executor.TaskSpec{Argv: []string{"/bin/true"}, Cache: executor.CacheOff})
		if err == nil && !out.Success() {
			err = fmt.Errorf("%+v", out)
		}
		return err
	}})
	var rows []string
	for _, parallel := range []int{1, 2 * runtime.NumCPU()} {
		rows = append(rows, coldRows(b, all, parallel)...)
	}
	publish(b, "/bin/true, nothing prepared", "by | at a time | p50 | p90 | per second | sandboxd's p50/p50", rows...)
}

// runc returns what runs the bundle, each time as another container.
func runc(bundle string) func() error {
	var n atomic.Int64
	name := filepath.Base(filepath.Dir(bundle)) + "-" + filepath.Base(bundle)
	return func() error {
		id := fmt.Sprintf("sandboxd-bench-%d-%s-%d", os.Getpid(), name, n.Add(1))
		return quiet("runc", "run", "--bundle", bundle, id)()
	}
}

// coldRows has a line for each that works; who does not is an error. They run by turns,
// a few tasks each, so that what else the machine does falls upon all of them.
func coldRows(b *testing.B, all []runner, parallel int) (rows []string) {
	b.Helper()
	all = slices.DeleteFunc(slices.Clone(all), func(r runner) bool {
		err := r.run() // once before, for what is done once
		if err != nil {
			b.Errorf("%s: %v", r.name, err)
		}
		return err != nil
	})
	const turns, tasks = 20, 10
	each, took := make([][]time.Duration, len(all)), make([]time.Duration, len(all))
	for range turns {
		for i, r := range all {
			times, whole := measure(b, tasks, parallel, r.run)
			each[i], took[i] = append(each[i], times...), took[i]+whole
		}
	}
	for _, e := range each {
		slices.Sort(e)
	}
	ours := slices.IndexFunc(all, func(r runner) bool { return r.name == "sandboxd" })
	for i, r := range all {
		ratio := "-"
		if ours >= 0 {
			ratio = fmt.Sprintf("%.2f", percentile(each[ours], 50).Seconds()/percentile(each[i], 50).Seconds())
		}
		rows = append(rows, fmt.Sprintf("%s | %d | %v | %v | %.0f | %s", r.name, parallel, micro(percentile(each[i], 50)),
			micro(percentile(each[i], 90)), float64(len(each[i]))/took[i].Seconds(), ratio))
	}
	return rows
}

// moduleDir is where a Go module that carries C files was downloaded to.
func moduleDir(b *testing.B, module string) string {
	b.Helper()
	dir := b.TempDir()
	writeFile(b, dir+"/go.mod", "module bench\n\ngo 1.26\n")
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Dir = dir
	out, err := cmd.Output()
	var m struct{ Dir string }
	if err == nil {
		err = json.Unmarshal(out, &m)
	}
	if err != nil {
		b.Skipf("a large C program cannot be had: %v: %s", err, out)
	}
	return m.Dir
}

// BenchmarkCompile compiles C programs bare and in a sandbox, by turns, and reports the
// ratio of the two: sqlite3, which is one file that takes long, and zstd, whose many take all processors at once.
func BenchmarkCompile(b *testing.B) {
	rootAndClean(b)
	c := benchClient(b)
	for _, p := range []struct{ name, module, files, script, output string }{
		{"sqlite3", "github.com/mattn/go-sqlite3@v1.14.32", "sqlite3-binding.*", "cc -O1 -c -o sqlite3.o sqlite3-binding.c", "sqlite3.o"},
		{"zstd", "github.com/DataDog/zstd@v1.5.7", "*.[chS]", "make -s -j$(nproc) CFLAGS=-O2", "libzstd.a"},
	} {
		b.Run(p.name, func(b *testing.B) {
			src, work := moduleDir(b, p.module), newDir(b)
			files, err := filepath.Glob(filepath.Join(src, p.files))
			must(b, err)
			for _, f := range files {
				text, err := os.ReadFile(f)
				must(b, err)
				writeFile(b, filepath.Join(work, filepath.Base(f)), string(text))
			}
			writeFile(b, filepath.Join(work, "Makefile"), "libzstd.a: $(patsubst %.c,%.o,$(wildcard *.c))\n\t$(AR) rcs $@ $^\n")
			compare(b, c, p.name, &executor.TaskSpec{Script: p.script, Workdir: work, Outputs: []string{p.output}, Cache: executor.CacheRefresh})
		})
	}
}

// compare runs a task and its script bare, by turns, from a work directory that is the same each time.
func compare(b *testing.B, c *rpc.Client, name string, spec *executor.TaskSpec) {
	bare := func() time.Duration {
		dir := filepath.Join(newDir(b), "work")
		must(b, os.CopyFS(dir, os.DirFS(spec.Workdir)))
		cmd := exec.Command("sh", "-c", spec.Script)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}
		began := time.Now()
		out, err := cmd.CombinedOutput()
		took := time.Since(began)
		if err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		must(b, os.RemoveAll(dir))
		return took
	}
	boxed := func() time.Duration {
		began := time.Now()
		out, err := c.Execute(context.Background(), spec)
		if err != nil || !out.Success() {
			b.Fatalf("%+v, %v", out, err)
		}
		return time.Since(began)
	}
	bare()
	boxed()
	var ratios []float64
	var rows []string
	for i := range 7 {
		var t, s time.Duration
		if i%2 == 0 {
			t, s = bare(), boxed()
		} else {
			s, t = boxed(), bare()
		}
		ratios = append(ratios, s.Seconds()/t.Seconds())
		rows = append(rows, fmt.Sprintf("%v | %v | %.3f", t.Round(time.Millisecond), s.Round(time.Millisecond), s.Seconds()/t.Seconds()))
	}
	slices.Sort(ratios)
	publish(b, "Compilation of "+name, "bare | in a sandbox | ratio", append(rows, fmt.Sprintf("| median | %.3f", ratios[len(ratios)/2]))...)
	b.ReportMetric(ratios[len(ratios)/2], "sandboxd/bare")
}

// BenchmarkCacheHit is a task that ran already, over the socket.
func BenchmarkCacheHit(b *testing.B) {
	rootAndClean(b)
	c := benchClient(b)
	for _, files := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("%d files", files), func(b *testing.B) {
			work := newDir(b)
			for i := range files {
				writeFile(b, fmt.Sprintf("%s/%d/%d", work, i/100, i%100), fmt.Sprint("file ", i, work)) // not cached by the last round
			}
			warm := false
			hit := func() error {
				out, err := c.Execute(context.Background(), &executor.TaskSpec{Script: "true", Workdir: work})
				if err == nil && (out.Cached != warm || !out.Success()) {
					err = fmt.Errorf("%+v", out)
				}
				return err
			}
			if err := hit(); err != nil {
				b.Fatal(err)
			}
			warm = true
			each, _ := measure(b, 100, 1, hit)
			publish(b, fmt.Sprintf("A cache hit over the socket, %d files", files), "p50 | p90", fmt.Sprintf("%v | %v", percentile(each, 50), percentile(each, 90)))
			b.ReportMetric(float64(percentile(each, 50).Microseconds()), "p50-µs")
		})
	}
}

// BenchmarkPing is a question and its answer through a pool, in this process and over the socket.
func BenchmarkPing(b *testing.B) {
	rootAndClean(b)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p, err := pool.New(ctx, pool.Config{
		Executors: []pool.ExecutorConfig{{Name: "fake"}},
		Open: func(context.Context, pool.ExecutorConfig) (executor.Executor, error) {
			return executortest.NewFake(), nil
		},
	})
	if err != nil {
		b.Fatal(err)
	}
	inside := executor.NewHandle(executor.Start(ctx, p, 0))
	defer inside.Close(ctx) //nolint:errcheck // the fake's
	over := benchClient(b)
	var rows []string
	for _, r := range []runner{
		{"channels", func() error { return inside.Ping(ctx) }},
		{"socket", func() error { return over.Ping(ctx) }},
	} {
		each, _ := measure(b, 5000, 1, r.run)
		rows = append(rows, fmt.Sprintf("%s | %v | %v", r.name, percentile(each, 50), percentile(each, 90)))
		b.ReportMetric(float64(percentile(each, 50).Nanoseconds()), r.name+"-p50-ns")
	}
	publish(b, "Ping", "by | p50 | p90", rows...)
}
