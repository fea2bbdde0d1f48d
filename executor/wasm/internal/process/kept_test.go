package process

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestKeptHalf: a file that another worker is about to write is neither removed nor taken for whole; one that nobody
// writes any more goes.
func TestKeptHalf(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	k := kept{t.TempDir()}
	at := func(name string) string { return filepath.Join(k.dir, "wazero-v0", name) }
	must(os.Mkdir(filepath.Dir(at("x")), 0o700))
	for _, name := range []string{"whole", "whole.1.tmp", "other.2.tmp"} {
		must(os.WriteFile(at(name), []byte(name), 0o600))
	}
	long := time.Now().Add(-2 * time.Hour)
	must(os.Chtimes(at("other.2.tmp"), long, long))
	must(k.sum())
	must(k.check())
	for name, want := range map[string]bool{
		at("whole"): true, at("whole.1.tmp"): true, at("other.2.tmp"): false,
		k.sumOf("whole"): true, k.sumOf("whole.1.tmp"): false, k.sumOf("other.2.tmp"): false,
	} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
