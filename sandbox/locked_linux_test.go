package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// remount tries to make each mount writable, as whoever has taken over a sandbox's first process would.
func remount() {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		fmt.Println(err)
		return
	}
	for line := range strings.Lines(string(b)) {
		at := unescape(strings.Fields(line)[4])
		// Of a mount with several flags the kernel refuses all, if one is locked.
		fmt.Println(at, "remount", unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID|unix.MS_NODEV, ""))
		fmt.Println(at, "clear", unix.MountSetattr(unix.AT_FDCWD, at, 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}))
		fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err == nil {
			err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
			unix.Close(fd)
		}
		fmt.Println(at, "clear a copy's", err)
	}
}

// TestReadOnlyStaysReadOnly: a process with all rights in a sandbox's namespaces cannot make writable what is the host's or
// the caller's.
func TestReadOnlyStaysReadOnly(t *testing.T) {
	nsenter, err := exec.LookPath("nsenter")
	testutil.Require(t, err == nil, "there is no nsenter")
	f := newFixture(t)
	in := makeTree(t, 0, 0, map[string]string{"file": "old"})
	file, err := os.Open(in.Name() + "/file")
	must(t, err)
	t.Cleanup(func() { file.Close() })
	for name, spec := range map[string]Spec{"shared": {Shared: true}, "with inputs": {Inputs: []Bind{{File: file, Target: "/in/file"}, {File: in, Target: "/in/dir"}}}} {
		t.Run(name, func(t *testing.T) {
			spec.Argv = []string{"sleep", "1000"}
			spec.Work = Work{Dir: probeTree(t)}
			b, _, _ := f.start(spec)
			enter := exec.Command(nsenter, fmt.Sprintf("--target=%d", b.pid), "--user", "--mount", "--pid", "--setuid=0", "--setgid=0", probeAt, "remount")
			out, err := enter.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			said := string(out)
			for _, at := range []string{"/proc/sys", scriptDir} { // else the process can do nothing, and this test says nothing
				if !strings.Contains(said, at+" remount <nil>\n") {
					t.Errorf("it cannot remount what is the sandbox's own: %s", at)
				}
			}
			must := []string{"/"}
			for _, m := range f.root.Mounts() {
				must = append(must, m.Target)
			}
			for _, in := range spec.Inputs[:min(len(spec.Inputs), 1)] {
				must = append(must, in.Target)
			}
			for _, at := range must {
				for _, how := range []string{"remount", "clear", "clear a copy's"} {
					if want := fmt.Sprintf("%s %s %v\n", at, how, unix.EPERM); !strings.Contains(said, want) {
						t.Errorf("missing: %s", want)
					}
				}
			}
			if t.Failed() {
				t.Logf("%s", said)
			}
		})
	}
}
