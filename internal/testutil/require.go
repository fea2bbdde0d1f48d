// Package testutil is what the tests of several packages share: skips that
// cannot rot, and the check that a test left nothing on the machine.
package testutil

import (
	"os"
	"testing"
)

// MustRun reports whether tests must run here rather than skip: in CI and in
// the test VM, where SANDBOXD_MUST_RUN=1 says that all they need is there.
func MustRun() bool { return os.Getenv("SANDBOXD_MUST_RUN") == "1" }

// Require skips the test with the reason unless ok; where MustRun, it fails it.
func Require(t testing.TB, ok bool, reason string) {
	t.Helper()
	switch {
	case ok:
	case MustRun():
		t.Fatalf("must run here but cannot: %s", reason)
	default:
		t.Skip(reason)
	}
}

// RequireRoot is Require for user id 0.
func RequireRoot(t testing.TB) {
	t.Helper()
	Require(t, os.Geteuid() == 0, "needs root: it makes namespaces, mounts or cgroups")
}
