package integration_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor"
)

// published are the titles of tables that were. A benchmark that is short is run again with a larger N.
var published = map[string]bool{}

// publish prints a table, and appends it to the file that make bench keeps, in Markdown.
func publish(b *testing.B, title, header string, rows ...string) {
	b.Helper()
	if published[title] {
		return
	}
	published[title] = true
	columns := strings.Count(header, "|") + 1
	text := fmt.Sprintf("\n### %s\n\n| %s |\n|%s\n", title, header, strings.Repeat("---|", columns))
	for _, r := range rows {
		text += "| " + r + " |\n"
	}
	b.Log(text)
	name := os.Getenv("SANDBOXD_BENCH_TABLES")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	must(b, err)
	_, err = f.WriteString(text)
	must(b, err)
	must(b, f.Close())
}

// residentPeak is the most memory that a process has had, in MiB.
func residentPeak(b *testing.B, pid int) int64 {
	b.Helper()
	return field(b, fmt.Sprintf("/proc/%d/status", pid), "VmHWM:") >> 10
}

// field is a number of a file of the kernel's with a name in each line.
func field(t testing.TB, file, name string) (n int64) {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	for l := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(l, name); ok {
			_, err := fmt.Sscan(rest, &n)
			must(t, err)
			return n
		}
	}
	t.Fatalf("%s has no %s", file, name)
	return 0
}

// processorTime is what a process has used of processors.
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(b, err)
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var user, system int64
	_, err = fmt.Sscan(f[11]+" "+f[12], &user, &system)
	must(b, err)
	return time.Duration(user+system) * time.Second / 100 // as the kernel counts for everyone
}

// BenchmarkStdout is a task that writes 1 GiB, to a client in Go that reads all of it, and through
// the command line; beside it, the same through a pipe, and kept in a file and hashed, which the daemon does, too. The
// memory of both ends is to be that of a small one.
func BenchmarkStdout(b *testing.B) {
	rootAndClean(b)
	d := startDaemon(b, "")
	c := d.dialAs(0)
	const size = 1 << 30
	script := "f=$(mktemp); head -c 16777216 /dev/urandom >$f; i=0; while [ $i -lt 64 ]; do cat $f; i=$((i+1)); done; rm $f"
	small := residentPeak(b, d.cmd.Process.Pid)
	rate := func(run func() (int64, error)) float64 {
		var best float64
		for range 3 {
			began := time.Now()
			n, err := run()
			took := time.Since(began)
			if err != nil || n != size {
				b.Fatalf("%d bytes, %v", n, err)
			}
			best = max(best, size/1e6/took.Seconds())
		}
		return best
	}
	var client int64
	piped := func(cmd *exec.Cmd) (int64, error) {
		r, err := cmd.StdoutPipe()
		if err != nil {
			return 0, err
		}
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		n, err := io.CopyN(io.Discard, r, size-1<<20)
		if err != nil {
			return n, err
		}
		client = residentPeak(b, cmd.Process.Pid) // the rest is more than the pipe holds: it is there
		rest, err := io.Copy(io.Discard, r)
		return n + rest, errors.Join(err, cmd.Wait())
	}
	pipe := rate(func() (int64, error) { return piped(exec.Command("sh", "-c", script)) })
	kept := rate(func() (int64, error) {
		return piped(exec.Command("sh", "-c", "{ "+script+"; } | tee "+d.dir+"/kept | { tee /dev/fd/3 | sha256sum >/dev/null; } 3>&1"))
	})
	daemon, self := processorTime(b, d.cmd.Process.Pid), processorTime(b, os.Getpid())
	over := rate(func() (n int64, err error) {
		out, err := c.Execute(executor.WithEvents(b.Context(), func(e executor.TaskEvent) { n += int64(len(e.Data)) }),
			&executor.TaskSpec{Script: script, Cache: executor.CacheOff})
		if err == nil && !out.Success() {
			err = fmt.Errorf("%+v", out)
		}
		return n, err
	})
	daemon, self = (processorTime(b, d.cmd.Process.Pid)-daemon)/3, (processorTime(b, os.Getpid())-self)/3
	line := rate(func() (int64, error) {
		return piped(d.as(0, d.dir, "run", "--workdir", "none", "--cache", "off", "--quiet", "-c", script))
	})
	row := func(name string, rate float64, rest string) string {
		return fmt.Sprintf("%s | %.0f | %.2f | %.2f | %s", name, rate, rate/pipe, rate/kept, rest)
	}
	seconds := func(d time.Duration) string { return d.Round(10 * time.Millisecond).String() }
	publish(b, "1 GiB of standard output, best of 3", "by | MB a second | of the pipe's | of the file's | processor time | most memory",
		row("pipe", pipe, "- | -"), row("pipe, kept in a file by `tee` and hashed by `sha256sum`", kept, "- | -"),
		row("socket, client in Go", over, fmt.Sprintf("daemon %s, client %s | daemon %d MiB, at its start %d",
			seconds(daemon), seconds(self), residentPeak(b, d.cmd.Process.Pid), small)),
		row("socket, `sandboxd run`", line, fmt.Sprintf("- | client %d MiB", client)))
	b.ReportMetric(over, "MB/s")
}

// BenchmarkCollect is a task that makes 10,000 files of 1 GiB in all, collected into the cache and into the caller's tree,
// beside a copy of the tree by cp and the reading of all for its hash.
func BenchmarkCollect(b *testing.B) {
	rootAndClean(b)
	c := benchClient(b)
	const files, size = 10_000, 1 << 30 / 10_000
	source := newDir(b)
	for i := range files {
		text := fmt.Sprintf("file %60d\n", i) // other bytes in each, and none in zeros
		writeFile(b, fmt.Sprintf("%s/tree/%d/%d", source, i/100, i%100), strings.Repeat(text, size/len(text)+1)[:size])
	}
	var ratios []float64
	var rows []string
	for range 3 {
		work := newDir(b) // stays to the end: file systems can be slow to make files where others were just removed
		unix.Sync()
		began := time.Now()
		if out, err := exec.Command("cp", "-a", "--reflink=auto", source+"/tree", work+"/copy").CombinedOutput(); err != nil {
			b.Fatalf("cp: %v: %s", err, out)
		}
		copied := time.Since(began)
		began = time.Now()
		must(b, hashAll(work+"/copy"))
		hashed := time.Since(began)
		unix.Sync()
		began = time.Now()
		var made time.Duration // when the task's own work was done
		out, err := c.Execute(executor.WithEvents(b.Context(), func(e executor.TaskEvent) {
			if e.Kind == executor.EventStdout {
				made = time.Since(began)
			}
		}), &executor.TaskSpec{
			Script: "cp -a /source/tree out && echo done", Workdir: work, Outputs: []string{"out"}, Cache: executor.CacheRefresh,
			Inputs: []executor.Input{{Host: source, Sandbox: "/source"}},
		})
		if err != nil || !out.Success() || len(out.OutputFiles) < files {
			b.Fatalf("%v, %+v", err, out)
		}
		collected := time.Since(began) - made
		ratio := collected.Seconds() / (copied + hashed).Seconds()
		ratios = append(ratios, ratio)
		rows = append(rows, fmt.Sprintf("%v | %v | %v | %.2f", copied.Round(time.Millisecond), hashed.Round(time.Millisecond), collected.Round(time.Millisecond), ratio))
	}
	publish(b, "10,000 files, 1 GiB: outputs into the cache and the caller's tree", "cp -a --reflink=auto | reading and hashing | collection | ratio to both", rows...)
	b.ReportMetric(min(ratios[0], ratios[1], ratios[2]), "collect/cp+hash")
}

func hashAll(dir string) error {
	h := sha256.New()
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h.Reset()
		_, err = io.Copy(h, f)
		return err
	})
}

// BenchmarkHitLargeTree is a hit on a work directory of 100,000 files, unchanged and after one has
// changed.
func BenchmarkHitLargeTree(b *testing.B) {
	rootAndClean(b)
	c := benchClient(b)
	work := newDir(b)
	const files = 100_000
	for i := range files {
		writeFile(b, fmt.Sprintf("%s/%d/%d", work, i/100, i%100), fmt.Sprint("file ", i, work))
	}
	run := func(cached bool) func() error {
		return func() error {
			out, err := c.Execute(context.Background(), &executor.TaskSpec{Script: "true", Workdir: work})
			if err == nil && (out.Cached != cached || !out.Success()) {
				err = fmt.Errorf("%+v", out)
			}
			return err
		}
	}
	began := time.Now()
	must(b, run(false)())
	first := time.Since(began)
	began = time.Now()
	must(b, run(true)())
	second := time.Since(began)
	same, _ := measure(b, 20, 1, run(true))
	n := 0
	changed, _ := measure(b, 10, 1, func() error {
		n++
		if err := os.WriteFile(work+"/7/7", fmt.Append(nil, "changed ", n), 0o644); err != nil {
			return err
		}
		return run(false)()
	})
	walk, _ := measure(b, 10, 1, quiet("find", work, "-newermt", "2100-01-01"))
	p := func(d []time.Duration, n int) time.Duration { return percentile(d, n).Round(100 * time.Microsecond) }
	publish(b, "A work directory of 100,000 files", "what | p50 | p90",
		fmt.Sprintf("`find` that looks at each | %v | %v", p(walk, 50), p(walk, 90)),
		fmt.Sprintf("first task | %v |", first.Round(time.Millisecond)), fmt.Sprintf("its first hit | %v |", second.Round(time.Millisecond)),
		fmt.Sprintf("hit, nothing changed | %v | %v", p(same, 50), p(same, 90)),
		fmt.Sprintf("one file changed: looked at, run, stored | %v | %v", p(changed, 50), p(changed, 90)))
	b.ReportMetric(percentile(same, 50).Seconds()*1e3, "p50-ms")
}
