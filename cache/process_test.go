package cache

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("CACHE_TEST_DIR"); dir != "" {
		if err := otherProcess(dir, os.Getenv("CACHE_TEST_DO")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// otherProcess is what a process started by start does.
func otherProcess(dir, do string) error {
	c, err := Open(dir, Config{MaxBytes: 20_000, Grace: -1})
	if err != nil {
		return err
	}
	switch do {
	case "work":
		return errors.Join(work(c), c.Close())
	case "hold":
		w, err := c.Create()
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, "half of a blob"); err != nil {
			return err
		}
		fmt.Println("ready")
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	}
	return fmt.Errorf("unknown: %s", do)
}

// work puts, evicts and reads results until it has seen some of each, and fails if one is
// not what it should be. Results are one blob and a record that names it.
func work(c *Cache) error {
	hits := 0
	for n := 0; n < 150 || hits < 5; n++ {
		i := rand.IntN(30)
		content := strings.Repeat(fmt.Sprintf("%05d", i), 200)
		action := DigestOf(fmt.Append(nil, "action ", i))
		record, blobs, err := c.Result("u0", action)
		switch {
		case err == nil:
			hits++
			b, err := c.Bytes(blobs[0], 10_000)
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // there is no grace here
				return err
			}
			if string(record) != blobs[0].Hash || err == nil && string(b) != content {
				return fmt.Errorf("result %d is %q and a blob of %d bytes", i, record, len(b))
			}
		case errors.Is(err, fs.ErrNotExist):
			d, err := c.Put(testContext, strings.NewReader(content))
			if err != nil {
				return err
			}
			if err := c.PutResult("u0", action, []byte(d.Hash), []Digest{d}); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		default:
			return err
		}
		if n%10 == 0 {
			if _, err := c.GC(testContext); err != nil {
				return err
			}
		}
	}
	return nil
}

type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr strings.Builder
}

func start(t *testing.T, dir, do string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), "CACHE_TEST_DIR="+dir, "CACHE_TEST_DO="+do)
	p.cmd.Stderr = &p.stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin, p.stdout = in, bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestProcesses: three processes put, read and evict in one directory, and none ever
// sees a wrong or incomplete result.
func TestProcesses(t *testing.T) {
	testutil.CheckLeaks(t)
	c, dir := openTest(t, Config{MaxBytes: 20_000, Grace: -1})
	var ps []*process
	for range 2 {
		ps = append(ps, start(t, dir, "work"))
	}
	if err := work(c); err != nil {
		t.Error(err)
	}
	for _, p := range ps {
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, &p.stderr)
		}
	}
	r, err := c.Verify(t.Context())
	if err != nil || r.CorruptBlobs != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if r := gc(t, c); r.Left >= 20_000 {
		t.Errorf("%+v", r)
	}
	noTempFiles(t, dir)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestKilled: what a process was writing when it was killed is swept by the next, and
// not before.
func TestKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	p := start(t, dir, "hold")
	if line, err := p.stdout.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	left := func() int {
		files, err := filepath.Glob(filepath.Join(dir, "tmp", "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	c := reopen(t, dir, Config{})
	if n := left(); n != 1 {
		t.Errorf("while it lives: %d files, want 1", n)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
	reopen(t, dir, Config{})
	if n := left(); n != 0 {
		t.Errorf("after its death: %d files", n)
	}
	put(t, c, "x")
	if ls, err := filepath.Glob(filepath.Join(dir, "tmp", "*")); err != nil || len(ls) != 4 {
		t.Errorf("%v, %v; want two directories and their locks", ls, err)
	}
}

// testContext is for what runs without a test.
var testContext = context.Background()

// TestTempDir: a temporary directory is empty, the process's own, and gone with the cache.
func TestTempDir(t *testing.T) {
	at := filepath.Join(t.TempDir(), "cache")
	c, err := Open(at, Config{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.TempDir()
	if err != nil || a == b || !filepath.IsAbs(a) {
		t.Errorf("%q and %q, %v", a, b, err)
	}
	if err := os.WriteFile(filepath.Join(a, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a); !os.IsNotExist(err) {
		t.Errorf("after Close: %v", err)
	}
}
