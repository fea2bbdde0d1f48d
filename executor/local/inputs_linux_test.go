package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
)

// TestInputPlaces: wherever an input is to be seen, it is there, or the task is refused as one that names a bad place.
func TestInputPlaces(t *testing.T) {
	e := newExecutor(t)
	dir, work := openDir(t), openDir(t)
	write(t, dir, map[string]string{"d/f": "input", "f": "input"})
	write(t, work, map[string]string{"there": "old", "dir/f": "old"})
	must(t, os.Symlink("dir", filepath.Join(work, "link")))
	const (
		either = iota
		taken
		refused
	)
	for at, want := range map[string]int{
		"/inputs/x": taken, "/a/b/c/d/e/f": taken, "/" + strings.Repeat("deep/", 100) + "x": taken, "/tmp/x": taken, "/tmp/a/b/x": taken,
		"/home/build/x": taken, "/var/tmp/x": taken,
		"/usr/lib": either, "/usr": either, "/etc/passwd": either, "/etc/none": either, "/bin": either,
		"/usr/lib/no-such-thing": refused, "/proc/x": refused, "/proc/1/status": refused, "/proc/self": refused, "/proc": refused, "/dev/x": refused, "/dev/null": refused,
		"/sys/x": refused, "/build/x": refused, "/build/there": refused, "/build/link/f": refused, "/.sandboxd/script": refused,
		"/": refused, "/tmp": refused, "/etc": refused, "/inputs/../proc/x": refused, "/" + strings.Repeat("x", 300): refused,
	} {
		for _, name := range []string{"d", "f"} {
			seen := at
			if name == "d" {
				seen += "/f"
			}
			out, err := e.Execute(context.Background(), &executor.TaskSpec{
				// The place of an input may be that of cat and its libraries: then the shell says it.
				Script: "read x <" + seen + " || :; echo $x", Workdir: work, Inputs: []executor.Input{{Host: filepath.Join(dir, name), Sandbox: at}}, Cache: executor.CacheOff,
			})
			var kind *executor.Error
			switch {
			case errors.As(err, &kind) && kind.Kind == executor.Invalid && kind.Field == "inputs":
				if want == taken {
					t.Errorf("%s at %.60s: %v", name, at, err)
				}
			case err != nil:
				t.Errorf("%s at %.60s: %v", name, at, err)
			case want == refused:
				t.Errorf("%s at %.60s: it was taken", name, at)
			case want == taken && (!out.Success() || string(out.Stdout.Inline) != "input\n"):
				t.Errorf("%s at %.60s: %s %d %q %q", name, at, out.Cause, out.ExitCode, out.Stdout.Inline, out.Stderr.Inline)
			}
		}
	}
}
