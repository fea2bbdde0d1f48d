package wasm

import (
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNoFiles: what is no file of the caller's is none to a task, and is not opened.
func TestNoFiles(t *testing.T) {
	work := t.TempDir()
	must(t, unix.Mkfifo(filepath.Join(work, "fifo"), 0o600))
	l, err := net.Listen("unix", filepath.Join(work, "socket"))
	must(t, err)
	defer l.Close()
	e := openShell(t, Config{})
	for script, want := range map[string]string{
		"for f in fifo socket; do for o in e f p S d L; do if [ -$o $f ]; then echo $f $o; fi; done; done": "fifo e\nfifo p\nsocket e\nsocket S\n",
		"stat -c %F_%f *":          "fifo_11a4\nsocket_c1ed\n",
		"find . -type f":           "",
		"find . -type p":           "./fifo\n",
		"find . -type s":           "./socket\n",
		"ls -l | cut -c1 | sed 1d": "p\ns\n",
		"cat fifo && echo read; cat socket && echo read; : >fifo && echo written; true": "",
		"rm fifo; ls": "socket\n",
	} {
		spec := uncached(script)
		spec.Workdir = work
		if out := run(t, e, spec); string(out.Stdout.Inline) != want || !out.Success() && script[0] != 'c' {
			t.Errorf("%s: %q, want %q; %d %s", script, out.Stdout.Inline, want, out.ExitCode, out.Stderr.Inline)
		}
	}
	// To another module both are sockets.
	spec := uncached("type /build/fifo\ntype /build/socket\ntype /dev/null\ntype /build")
	spec.Workdir = work
	if out := run(t, openExecutor(t, Config{}), spec); string(out.Stdout.Inline) != "S--------- S--------- Dc--------- d--------- " {
		t.Errorf("%s %s", out.Stdout.Inline, out.Stderr.Inline)
	}
}
