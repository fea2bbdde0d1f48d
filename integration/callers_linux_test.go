package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/rpc"
)

// alice and bob are users that no account belongs to; nor does anything on this machine.
const alice, bob = 4001, 4002

// dialAs connects as a user.
func (d *daemon) dialAs(uid int) *rpc.Client {
	d.t.Helper()
	var c *rpc.Client
	err := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever, so that the thread ends with this function
		const keep = ^uintptr(0)
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, uintptr(uid), keep); e != 0 {
			err <- e
			return
		}
		var e error
		c, e = rpc.Dial(d.t.Context(), d.socket)
		err <- e
	}()
	if e := <-err; e != nil {
		d.t.Fatal(e)
	}
	d.t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			d.t.Error(err)
		}
	})
	return c
}

// ownDir is a directory of a user's, with a file "f".
func ownDir(t *testing.T, uid int, mode os.FileMode) string {
	t.Helper()
	dir := filepath.Join(newDir(t), "own")
	writeFile(t, filepath.Join(dir, "f"), fmt.Sprintf("of %d\n", uid))
	for _, p := range []string{dir, filepath.Join(dir, "f")} {
		if err := os.Chown(p, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestTwoUsers: by the program, as they have it.
func TestTwoUsers(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "[[access]]\nuser = 4001\nnetworks = [\"isolated\", \"full\"]\npids_max = 100\n")
	hers, closed, open := ownDir(t, alice, 0o700), ownDir(t, bob, 0o700), ownDir(t, bob, 0o755)
	run := func(uid int, dir string, args ...string) outcome {
		t.Helper()
		return finish(t, d.as(uid, dir, append([]string{"run"}, args...)...))
	}
	task := []string{"--output", "o", "-c", "cat f | tee o"}
	for _, c := range []struct {
		name         string
		uid          int
		args         []string
		code         int
		stdout, says string
	}{
		{"her own", alice, append([]string{"--workdir", hers}, task...), 0, "of 4001\n", ""},
		{"again", alice, append([]string{"--workdir", hers}, task...), 0, "of 4001\n", "cached"},
		{"his, closed", alice, append([]string{"--workdir", closed}, task...), 125, "", "permission denied"},
		{"his, open", alice, append([]string{"--workdir", open}, task...), 125, "", "you may not write to"},
		{"his, open, to read", alice, []string{"--workdir", open, "-c", "cat f"}, 0, "of 4002\n", ""},
		{"his file", alice, []string{"--workdir", "none", "--input", closed + "/f:/inputs/f", "-c", "cat /inputs/f"}, 125, "", "permission denied"},
		{"hers, by him", bob, append([]string{"--workdir", hers}, task...), 125, "", "permission denied"},
		{"full", alice, []string{"--workdir", "none", "--network", "full", "-c", "true"}, 0, "", ""},
		{"loopback", alice, []string{"--workdir", "none", "--network", "loopback", "-c", "true"}, 125, "", "network: loopback is more than access rule 1 (user 4001) allows user 4001"},
		{"many processes", alice, []string{"--workdir", "none", "--pids", "101", "-c", "true"}, 125, "", "limits.pids_max"},
		{"his full", bob, []string{"--workdir", "none", "--network", "full", "-c", "true"}, 125, "", "have the administrator add an [[access]] rule"},
		{"root's full", 0, []string{"--workdir", "none", "--network", "full", "-c", "true"}, 0, "", ""},
	} {
		if o := run(c.uid, d.dir, c.args...); o.code != c.code || o.stdout != c.stdout || !strings.Contains(o.stderr, c.says) {
			t.Errorf("%s: %+v; want %d, %q, %q", c.name, o, c.code, c.stdout, c.says)
		}
	}
	st, err := os.Stat(filepath.Join(hers, "o"))
	if err != nil {
		t.Fatal(err)
	}
	if s := st.Sys().(*syscall.Stat_t); s.Uid != alice || s.Gid != alice {
		t.Errorf("her output is of %d:%d", s.Uid, s.Gid)
	}
	for _, dir := range []string{open, closed} {
		if _, err := os.Lstat(filepath.Join(dir, "o")); err == nil {
			t.Errorf("%s has an output", dir)
		}
	}
	// What one made, another neither gets as a result nor reads by its digest.
	long := &executor.TaskSpec{Script: "head -c 100000 /dev/urandom"}
	a, b := d.dialAs(alice), d.dialAs(bob)
	made, err := a.Execute(t.Context(), long)
	if err != nil || !made.Success() || !made.Stdout.Truncated {
		t.Fatalf("%+v, %v", made, err)
	}
	var mine bytes.Buffer
	if err := a.ReadBlob(t.Context(), made.Stdout.Digest, &mine); err != nil || mine.Len() != 100000 {
		t.Errorf("her log: %d bytes, %v", mine.Len(), err)
	}
	if err := b.ReadBlob(t.Context(), made.Stdout.Digest, io.Discard); executor.KindOf(err) != executor.Denied {
		t.Errorf("her log, by him: %v", err)
	}
	other, err := b.Execute(t.Context(), long)
	if err != nil || other.Cached || other.Signature != made.Signature || other.Stdout.Digest == made.Stdout.Digest {
		t.Errorf("the same task by him: %+v, %v", other, err)
	}
	if err := a.ReadBlob(t.Context(), other.Stdout.Digest, io.Discard); executor.KindOf(err) != executor.Denied {
		t.Errorf("his log, by her: %v", err)
	}
}

// TestManyTasksHoldUpNobodyElses: one user's task is answered after a few of another's who has hundreds waiting.
func TestManyTasksHoldUpNobodyElses(t *testing.T) {
	rootAndClean(t)
	d := startDaemon(t, "")
	tasks, slots := 200, 4
	if inVM() {
		tasks = 40
	}
	a, b := d.dialAs(alice), d.dialAs(bob)
	var done atomic.Int64
	var all sync.WaitGroup
	first := make(chan struct{}, tasks)
	for i := range tasks {
		all.Go(func() {
			out, err := a.Execute(t.Context(), &executor.TaskSpec{Name: fmt.Sprint(i), Script: "sleep 0.05", Cache: executor.CacheOff})
			if err != nil || !out.Success() {
				t.Errorf("task %d: %+v, %v", i, out, err)
			}
			done.Add(1)
			first <- struct{}{}
		})
	}
	<-first
	for range 3 {
		before := done.Load()
		out, err := b.Execute(t.Context(), &executor.TaskSpec{Name: "bob", Script: "echo bob", Cache: executor.CacheOff})
		if err != nil || string(out.Stdout.Inline) != "bob\n" {
			t.Fatalf("%+v, %v", out, err)
		}
		n := done.Load() - before
		t.Logf("%d of alice's %d tasks were done meanwhile", n, tasks)
		// Those that ran, as many beside bob's own, and what has ended and not been told yet.
		if n > int64(3*slots) {
			t.Errorf("bob's waited for %d of alice's tasks", n)
		}
	}
	if left := int64(tasks) - done.Load(); left < int64(tasks)/4 {
		t.Errorf("%d of alice's tasks were left: she was not waiting any more", left)
	}
	all.Wait()
}
