package wasm

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/executor"
)

// TestNamesThatAreNotUTF8: a file is what it is whatever its name, of the caller's tree and of the task's.
func TestNamesThatAreNotUTF8(t *testing.T) {
	work := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(work, "d\xfe"), 0o700))
	// The last two are no more than another spelling of the others.
	for _, n := range []string{"bad\xff", "\xff", "d\xfe/in\xc3", "\uefff", "e\uefc3"} {
		must(t, os.WriteFile(filepath.Join(work, n), []byte(n+"\n"), 0o600))
	}
	e := openShell(t, Config{})
	do := func(script string, outputs ...string) string {
		t.Helper()
		spec := &executor.TaskSpec{Script: script, Workdir: work, Outputs: outputs, Cache: executor.CacheOff}
		out := run(t, e, spec)
		if !out.Success() {
			t.Errorf("%s: %+v %s", script, out, out.Stderr.Inline)
		}
		return string(out.Stdout.Inline)
	}
	for script, want := range map[string]string{
		"ls":                    "bad\xff\nd\xfe\ne\uefc3\n\uefff\n\xff\n",
		"cat bad*":              "bad\xff\n",
		"cat d?/*":              "d\xfe/in\xc3\n",
		"cd d?; cat ./*; cd ..": "d\xfe/in\xc3\n",
		"for f in *; do [ -f \"$f\" ] && cat \"$f\" || echo none; done": "bad\xff\nnone\ne\uefc3\n\uefff\n\xff\n",
		"find . -type f | sort":                    "./bad\xff\n./d\xfe/in\xc3\n./e\uefc3\n./\uefff\n./\xff\n",
		"rm -r bad* d?/; ls":                       "e\uefc3\n\uefff\n\xff\n",
		"mv bad* new; cp new d?/; ls d?/; cat new": "in\xc3\nnew\nbad\xff\n",
		"n=$(printf 'x\\303'); mkdir \"$n\"; echo hi >\"$n/$n\"; ln -s \"$n\" l; ln \"$n/$n\" h; cat l/$n h x*/x*; readlink l; chmod 700 \"$n/$n\"; stat -c %a \"$n/$n\"": "hi\nhi\nhi\nx\xc3\n700\n",
	} {
		if got := do(script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	do("tar cf o.tar *", "o.tar")
	b, err := os.ReadFile(filepath.Join(work, "o.tar"))
	must(t, err)
	var names []string
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		content, err := io.ReadAll(r)
		must(t, err)
		names = append(names, h.Name)
		if h.Typeflag == tar.TypeReg && string(content) != h.Name+"\n" {
			t.Errorf("%q has %q", h.Name, content)
		}
	}
	if want := []string{"bad\xff", "d\xfe/", "d\xfe/in\xc3", "e\uefc3", "\uefff", "\xff"}; !slices.Equal(names, want) {
		t.Errorf("the archive has %q, want %q", names, want)
	}
	// What is to be told to others must be text.
	spec := uncached("mkdir o; : >o/$(printf 'x\\303')")
	spec.Workdir, spec.Outputs = work, []string{"o"}
	if out, err := e.Execute(t.Context(), spec); executor.KindOf(err) != executor.Invalid || !strings.Contains(err.Error(), "name it otherwise") {
		t.Errorf("an output: %+v, %v", out, err)
	}
}
