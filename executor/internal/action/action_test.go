package action

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
)

func openCache(t testing.TB) *cache.Cache {
	t.Helper()
	c, err := cache.Open(filepath.Join(t.TempDir(), "cache"), cache.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestRulesAreSigned: each of a task's rules is part of what it is, and their order is not.
func TestRulesAreSigned(t *testing.T) {
	names := map[string]bool{}
	for _, allow := range [][]string{nil, {"a.example"}, {"a.example:1"}, {"a.example/tcp"}, {"a.example", "b.example"}, {"b.example", "a.example"}} {
		c, err := command(&executor.TaskSpec{Script: "true", Network: executor.NetworkControlled, Allow: allow}, nil, Ground{"p", "root"})
		if err != nil {
			t.Fatal(err)
		}
		names[fmt.Sprint(c.Platform)] = true
	}
	if len(names) != 5 {
		t.Errorf("%d tasks of 5: %v", len(names), names)
	}
}

// TestSign: what a task is made of, and runs on, changes its signature, and its outputs do not.
func TestSign(t *testing.T) {
	c := openCache(t)
	work := t.TempDir()
	sign := func(change func(*executor.TaskSpec), on Ground) string {
		t.Helper()
		d, err := os.Open(work)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		spec := &executor.TaskSpec{Script: "true", Workdir: work, Outputs: []string{"out"}}
		if change != nil {
			change(spec)
		}
		s, err := Sign(t.Context(), c, spec, Environment("/bin", "/home", spec.Env), Files{Work: d}, on)
		if err != nil {
			t.Fatal(err)
		}
		return s.String()
	}
	r := Ground{"p", "r"}
	seen := map[string]bool{}
	for name, s := range map[string]string{
		"plain": sign(nil, r), "root": sign(nil, Ground{"p", "r2"}), "platform": sign(nil, Ground{"p2", "r"}),
		"env":   sign(func(s *executor.TaskSpec) { s.Env = map[string]string{"A": "b"} }, r),
		"stdin": sign(func(s *executor.TaskSpec) { s.Stdin = []byte("x") }, r),
		"deps":  sign(func(s *executor.TaskSpec) { s.DepSignatures = []executor.Signature{"a/1"} }, r),
	} {
		if seen[s] {
			t.Errorf("%s does not change the signature", name)
		}
		seen[s] = true
	}
	before := sign(nil, r)
	if sign(func(s *executor.TaskSpec) { s.Platforms = []string{"p", "q"} }, r) != before {
		t.Error("where else it might run changes the signature")
	}
	if err := os.WriteFile(filepath.Join(work, "out"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if sign(nil, r) != before {
		t.Error("an output changes the signature")
	}
	if err := os.WriteFile(filepath.Join(work, "in"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if sign(nil, r) == before {
		t.Error("a file of the work directory does not change the signature")
	}
}

// TestStored: a result comes back as it was, and one that cannot be read is told from one that is not there.
func TestStored(t *testing.T) {
	c := openCache(t)
	s := Signature{Digest: cache.DigestOf([]byte("a"))}
	if out, err := LookUp(c, "n", s); out != nil || err != nil {
		t.Errorf("nothing stored: %v, %v", out, err)
	}
	in := &executor.TaskOutput{Cause: executor.CauseExited, Duration: time.Second, Usage: executor.Usage{CPUUser: 2, CPUSystem: 3}, Stdout: executor.Stream{Inline: []byte("x")}}
	if err := Store(c, "n", s, in); err != nil {
		t.Fatal(err)
	}
	out, err := LookUp(c, "n", s)
	if err != nil {
		t.Fatal(err)
	}
	in.Cached = true
	if !reflect.DeepEqual(in, out) {
		t.Errorf("stored %+v, found %+v", in, out)
	}
	if err := c.PutResult("n", s.Digest, []byte("{"), nil); err != nil {
		t.Fatal(err)
	}
	if out, err := LookUp(c, "n", s); out != nil || !errors.Is(err, ErrRecord) {
		t.Errorf("of another version: %v, %v", out, err)
	}
}

// BenchmarkSign is the signature of a task whose work directory is as the cache remembers it.
func BenchmarkSign(b *testing.B) {
	c := openCache(b)
	for _, files := range []int{0, 100, 10_000} {
		b.Run(fmt.Sprintf("files=%d", files), func(b *testing.B) {
			work := b.TempDir()
			for i := range files {
				if err := os.WriteFile(fmt.Sprintf("%s/%d", work, i), fmt.Append(nil, i), 0o644); err != nil {
					b.Fatal(err)
				}
			}
			d, err := os.Open(work)
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			spec := &executor.TaskSpec{Script: "true", Workdir: work}
			time.Sleep(3 * time.Second) // what was written just now is read again
			if _, err := Sign(b.Context(), c, spec, nil, Files{Work: d}, Ground{"p", "root"}); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := Sign(b.Context(), c, spec, nil, Files{Work: d}, Ground{"p", "root"}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
