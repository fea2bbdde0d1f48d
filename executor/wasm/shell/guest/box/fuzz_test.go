package box

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// run runs one tool in dir, and returns its status and output. It must end in time.
func run(t testing.TB, dir, stdin string, args ...string) (status int, stdout string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	c := &tool.Call{Args: args, Dir: dir, Env: []string{"TZ=UTC"}, Stdin: strings.NewReader(stdin), Stdout: &limited{w: &out, left: 1 << 20}, Stderr: &errs, Proc: tool.NewProcess(),
		Exec: func(context.Context, *tool.Call) int { return 0 }}
	status = tool.Run(ctx, Tools()[args[0]], c)
	if ctx.Err() != nil {
		t.Fatalf("%q did not end", args)
	}
	if status != 0 && status != tool.StatusPipe && out.Len() == 0 && errs.Len() == 0 && !silent[args[0]] {
		t.Errorf("%q: status %d without a word", args, status)
	}
	return status, out.String()
}

// silent are tools whose status alone is an answer.
var silent = map[string]bool{"grep": true, "sed": true, "jq": true, "sort": true, "awk": true}

// limited is a reader that goes away when it has had enough.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, io.ErrClosedPipe
	}
	return l.w.Write(p)
}

func FuzzExpr(f *testing.F) {
	for _, s := range []string{"1 + 2", "( 1 + 2 ) * 3", "abc : a\\(.\\)", "substr hello 2 3", "length x", "a | b & c", "1 / 0", "index ab b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		status, out := run(t, t.TempDir(), "", append([]string{"expr"}, strings.Fields(s)...)...)
		if status > 2 || status == 2 && out != "" || status < 2 && !strings.HasSuffix(out, "\n") {
			t.Errorf("%q: status %d, output %q", s, status, out)
		}
	})
}

func FuzzTextTools(f *testing.F) {
	for _, s := range []string{"cut -d: -f1,3-", "tr a-z [:upper:]", "tr -s a[b*3]", "sort -k2,3nr -t:", "sort -V", "uniq -cd -f1", "head -n -2", "tail -c +3", "wc -lwL", "cat -A",
		"grep -no -e a.", "grep -E (a|b)*", "grep -w -A1 x", "seq 1 2 9", "seq -w 8 11", "basename a/b .c", "date -u -d @0 +%F%N%5Y", "date -d 2020-01-01", "xargs -n1", "xargs -I{} e", "tr -cd \\001-\\177",
		"jq .a[0]?", "awk {print$1}", "diff - -", "cmp - -", "sha256sum -c"} {
		f.Add(s, "a:1:x\nb 2\ta\n\nÄ'q' \x00\xff\n")
	}
	f.Fuzz(func(t *testing.T, line, in string) {
		args := strings.Fields(line)
		if len(args) == 0 || len(line) > 80 || len(in) > 1000 {
			return
		}
		// These write or read files, wait, or go on for as long as they are asked to.
		switch args[0] {
		case "cut", "tr", "sort", "uniq", "head", "tail", "wc", "cat", "grep", "basename", "date", "xargs", "diff", "cmp", "sha256sum", "expr", "jq":
		default:
			return
		}
		run(t, t.TempDir(), in, args...)
	})
}

// FuzzTarExtract: an archive, whatever it says, writes below the folder that it is
// extracted to and nowhere else.
func FuzzTarExtract(f *testing.F) {
	add := func(hs ...tar.Header) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range hs {
			h.Mode, h.Size = 0o644, 0
			w.WriteHeader(&h)
		}
		w.Close()
		f.Add(b.Bytes(), "x")
	}
	add(tar.Header{Name: "a"}, tar.Header{Name: "d/b"}, tar.Header{Name: "d/", Typeflag: tar.TypeDir})
	add(tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, tar.Header{Name: "l/evil"})
	add(tar.Header{Name: "../evil"}, tar.Header{Name: "/evil"}, tar.Header{Name: "a/../../evil"})
	add(tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../secret"}, tar.Header{Name: "l", Typeflag: tar.TypeReg}, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "../secret"})
	add(tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, tar.Header{Name: "l", Typeflag: tar.TypeDir})
	f.Fuzz(func(t *testing.T, archive []byte, option string) {
		root := t.TempDir()
		in := filepath.Join(root, "in")
		os.Mkdir(in, 0o755)
		os.WriteFile(filepath.Join(root, "secret"), []byte("secret"), 0o600)
		before, _ := os.Lstat(root)
		args := []string{"tar", "-x"}
		switch option {
		case "strip":
			args = append(args, "--strip-components=1")
		case "p":
			args = append(args, "-p")
		}
		run(t, in, string(archive), args...)
		run(t, in, string(archive), "tar", "-tv")
		list, err := os.ReadDir(root)
		if err != nil {
			t.Fatal(err)
		}
		after, _ := os.Lstat(root)
		secret, err := os.ReadFile(filepath.Join(root, "secret"))
		if len(list) != 2 || string(secret) != "secret" || err != nil || before.Mode() != after.Mode() || !before.ModTime().Equal(after.ModTime()) {
			t.Fatalf("it wrote outside: %v, secret %q %v, mode %v", list, secret, err, after.Mode())
		}
	})
}

func FuzzFind(f *testing.F) {
	for _, s := range []string{"-name *.c -o ! -type d", "( -size +1c , -perm -644 ) -print0", "-printf %p%f%T@\\n", "-exec e {} +", "-exec e {} ;", "-maxdepth 1 -prune", "-regex .*a", "-newermt 2020-01-01"} {
		f.Add(s)
	}
	dir := f.TempDir()
	os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755)
	os.WriteFile(filepath.Join(dir, "a", "x.c"), []byte("1"), 0o644)
	os.Symlink("..", filepath.Join(dir, "a", "up"))
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Contains(s, "-delete") || len(s) > 200 {
			return
		}
		run(t, dir, "", append([]string{"find", "."}, strings.Fields(s)...)...)
	})
}

// FuzzDifference: the edits turn the one file into the other.
func FuzzDifference(f *testing.F) {
	f.Add("abcabba", "cbabac")
	f.Add("", "x")
	f.Fuzz(func(t *testing.T, x, y string) {
		if len(x) > 200 || len(y) > 200 {
			return
		}
		a, b := strings.Split(x, ""), strings.Split(y, "")
		edits := difference(a, b)
		var got []string
		at := 0
		for _, e := range edits {
			got = append(got, a[at:e.a0]...)
			got = append(got, b[e.b0:e.b1]...)
			at = e.a1
		}
		got = append(got, a[at:]...)
		if strings.Join(got, "") != y {
			t.Errorf("%q to %q by %v is %q", x, y, edits, got)
		}
	})
}

func FuzzDate(f *testing.F) {
	for _, s := range []string{"@0", "2020-02-29 12:00 +1 day", "yesterday", "3 days ago", "Mon, 2 Jan 2006 15:04:05 -0700", "next month"} {
		f.Add(s, "%a %-d %_5H %:z %N")
	}
	now := time.Unix(1700000000, 0)
	f.Fuzz(func(t *testing.T, s, format string) {
		d, err := parseDate(s, now, time.UTC)
		if err == nil && len(format) < 100 {
			tool.Strftime(format, d)
		}
		tool.FixedZone(s)
		parseStamp(s, now, time.UTC)
	})
}

func TestLinesTooLong(t *testing.T) {
	// A line without an end must not take all memory.
	endless := io.MultiReader(strings.NewReader("x"), zeroReader{})
	if err := lines(bufio.NewReader(endless), '\n', func(string, bool) bool { return true }); err != errLongLine {
		t.Fatal(err)
	}
}

func TestDifferenceOfWhatHasNothingInCommon(t *testing.T) {
	var a, b []string
	for i := range 5000 {
		a, b = append(a, fmt.Sprint("a", i)), append(b, fmt.Sprint("b", i))
	}
	if got := difference(a, b); len(got) != 1 || got[0] != (edit{0, 5000, 0, 5000}) {
		t.Errorf("%d edits, the first %v", len(got), got[0])
	}
}
