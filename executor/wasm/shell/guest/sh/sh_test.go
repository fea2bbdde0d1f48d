package sh

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
	"mvdan.cc/sh/v3/syntax"
)

// run runs a command in dir with the tool `args`, which writes its arguments.
func run(t testing.TB, dir string, env []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	in, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out, errs bytes.Buffer
	s := &Shell{Proc: tool.NewProcess(), Tools: map[string]tool.Func{"args": func(_ context.Context, c *tool.Call) int {
		c.Out.WriteString(strings.Join(c.Args, "|") + "\n")
		return 0
	}}}
	status = s.Exec(t.Context(), &tool.Call{Args: args, Dir: dir, Env: env, Stdin: in, Stdout: &out, Stderr: &errs})
	return status, out.String(), errs.String()
}

func TestExecFinds(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("script", "#!/bin/sh -e\necho $0 $1\nfalse\necho never\n", 0o755)
	write("bare", "echo bare $1\n", 0o755)
	write("other", "#!/usr/bin/perl\n", 0o755)
	write("byenv", "#!/usr/bin/env args\n", 0o755)
	write("binary", "\x7fELF\x00\x00", 0o755)
	write("plain", "echo no\n", 0o644)
	write("args", "echo from PATH\n", 0o755)
	for _, c := range []struct {
		args   string
		path   string
		status int
		out    string
	}{
		{"args a", "/usr/bin", 0, "args|a\n"},
		{"/usr/bin/args a", "", 0, "/usr/bin/args|a\n"},
		{"args", dir + ":/usr/bin", 0, "from PATH\n"},
		{"args", "/usr/bin:" + dir, 0, "args\n"},
		{"./script x", "", 1, "./script x\n"},
		{"./bare x", "", 0, "bare x\n"},
		{"./byenv x", "", 126, ""},
		{"./other", "", 126, ""},
		{"./binary", "", 126, ""},
		{"./plain", "", 126, ""},
		{"./", "", 126, ""},
		{"./missing", "", 127, ""},
		{"missing", "/usr/bin", 127, ""},
		{"sh script y", "", 0, "script y\n"},
		{"sh missing", "", 127, ""},
		{"bash -ec false", "", 1, ""},
		{"sh -c", "", 2, ""},
		{"sh --nonsense", "", 2, ""},
		{"[ a = a ]", "", 0, ""},
		{"test -e missing", "", 1, ""},
	} {
		want := c.out
		if c.args == "sh script y" {
			want, c.status = "script y\nnever\n", 0 // only the first line had the -e
		}
		status, out, errs := run(t, dir, []string{"PATH=" + c.path}, strings.Fields(c.args)...)
		if status != c.status || out != want {
			t.Errorf("%s with PATH=%s: %d %q %q, want %d %q", c.args, c.path, status, out, errs, c.status, want)
		}
		if status > 125 && errs == "" {
			t.Errorf("%s: %d without a word", c.args, status)
		}
	}
}

func TestEndOfContextEndsLoops(t *testing.T) {
	for _, script := range []string{"while :; do :; done", "while true; do args; done", "f() { while :; do f2; done; }; f2() { :; }; f"} {
		ctx, cancel := context.WithCancel(t.Context())
		in, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		started := make(chan struct{}, 1)
		s := &Shell{Proc: tool.NewProcess(), Tools: map[string]tool.Func{
			"started": func(context.Context, *tool.Call) int { started <- struct{}{}; return 0 },
			"args":    func(context.Context, *tool.Call) int { return 0 },
		}}
		done := make(chan int)
		go func() {
			done <- s.Exec(ctx, &tool.Call{Args: []string{"sh", "-c", "started; " + script}, Dir: t.TempDir(), Stdin: in, Stdout: new(bytes.Buffer), Stderr: new(bytes.Buffer)})
		}()
		<-started
		cancel()
		if status := <-done; status != 137 {
			t.Errorf("%s: status %d", script, status)
		}
		in.Close()
	}
}

// FuzzAdapt: whatever can be parsed can be adapted, and what comes of it still can be
// walked, which it must not be forever.
func FuzzAdapt(f *testing.F) {
	for _, s := range []string{
		"a | b | while read x; do :; done", "! (a || ! b) | c", "declare -A m; m+=([a]=b); m[x]+=1; echo ${#m[@]}", "(trap x EXIT) &", "cat <(a | b) >(c) >|f",
		"if ! x; then :; fi", "${x/#a/b} ${PIPESTATUS[0]} ${x##+(a)}", "while ! (a; b) && c | d; do declare -A y; done", "cat <<E\n$(a | read x)\nE\n", "f() { ! g | h; }", "((a+=1)); let x=1; [[ a && ! b ]]",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, script string) {
		if len(script) > 1000 {
			return
		}
		file, err := syntax.NewParser().Parse(strings.NewReader(script), "")
		if err != nil {
			return
		}
		r := &runner{funcs: map[string]bool{}}
		r.adapt(file)
		n := 0
		syntax.Walk(file, func(syntax.Node) bool {
			if n++; n > 200*len(script)+1000 {
				t.Fatalf("%q has become too much", script)
			}
			return true
		})
	})
}

// TestPanicIsToldOnce: whoever embeds the shell hears of a bug in a tool, in a goroutine of a script's too, and may end as it likes.
func TestPanicIsToldOnce(t *testing.T) {
	for _, script := range []string{"boom", "boom | true; true", "x=$(boom)", "(boom)"} {
		told := make(chan any, 8)
		s := &Shell{Proc: tool.NewProcess(), Crash: func(v any) { told <- v }, Tools: map[string]tool.Func{
			"boom": func(context.Context, *tool.Call) int { panic("as told") },
		}}
		in, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		s.Exec(t.Context(), &tool.Call{Args: []string{"sh", "-c", script}, Dir: t.TempDir(), Stdin: in, Stdout: new(bytes.Buffer), Stderr: new(bytes.Buffer)})
		in.Close()
		if len(told) != 1 || <-told != "as told" {
			t.Errorf("%s: told %d times", script, len(told))
		}
	}
}
