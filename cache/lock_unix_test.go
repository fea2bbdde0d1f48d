//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package cache

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStoppedProcess: where another process holds the lock and does not go on, the error says so.
func TestStoppedProcess(t *testing.T) {
	c, dir := openTest(t, Config{})
	d := put(t, c, "x")
	old := lockTime
	lockTime = 50 * time.Millisecond
	defer func() { lockTime = old }()
	held, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if !tryFlock(held) {
		t.Fatal("somebody has it")
	}
	_, missing := c.Missing([]Digest{d})
	_, open := Open(dir, Config{})
	for _, err := range []error{missing, open} {
		if err == nil || !strings.Contains(err.Error(), "held by another process") || !strings.Contains(err.Error(), dir) {
			t.Errorf("%v", err)
		}
	}
}
