//go:build unix

package shell_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/executor/wasm/shell"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/box"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/sh"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
	"github.com/sandboxd/sandboxd/internal/testutil"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	experimentalsys "github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/experimental/sysfs"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"
	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/expand"
)

// env is what a script sees, but for PWD.
var env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/nowhere", "LC_ALL=C.UTF-8", "TZ=UTC"}

// outcome is all that a script leaves.
type outcome struct {
	status         int
	stdout, stderr string
	tree           string // a line for each file: its mode, name, and digest or target
}

// engine compiles the module once for all tests.
var engine = sync.OnceValues(func() (*machine, error) {
	ctx := context.Background()
	bin, err := shell.Module()
	if err != nil {
		return nil, err
	}
	m := &machine{r: wazero.NewRuntime(ctx)}
	wasi := m.r.NewHostModuleBuilder(wasi_snapshot_preview1.ModuleName)
	wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(wasi)
	wasi.NewFunctionBuilder().WithFunc(exit).Export("proc_exit")
	if _, err := wasi.Instantiate(ctx); err != nil {
		return nil, err
	}
	host := m.r.NewHostModuleBuilder("sandboxd")
	host.NewFunctionBuilder().WithFunc(chmod).Export("chmod")
	host.NewFunctionBuilder().WithFunc(mode).Export("mode")
	host.NewFunctionBuilder().WithFunc(touch).Export("touch")
	host.NewFunctionBuilder().WithFunc(task).Export("task")
	host.NewFunctionBuilder().WithFunc(taskRead).Export("task_read")
	if _, err := host.Instantiate(ctx); err != nil {
		return nil, err
	}
	m.code, err = m.r.CompileModule(experimental.WithCompilationWorkers(ctx, runtime.GOMAXPROCS(0)), bin)
	return m, err
})

type machine struct {
	r    wazero.Runtime
	code wazero.CompiledModule
}

// world is the host of one instance: a folder without a wall, which is for other
// tests to build.
type world struct {
	root string
	task []string // argc, arguments, environment
	open []string // files that the module opened and has not closed
	left []string // those of them that were open as it ended
}

// exit is proc_exit, which closes all.
func exit(ctx context.Context, m api.Module, code uint32) {
	w := ctx.Value(worldKey{}).(*world)
	w.left = slices.Clone(w.open)
	_ = m.CloseWithExitCode(ctx, code)
	panic(sys.NewExitError(code))
}

// counted notes in a world what is open.
type counted struct {
	experimentalsys.FS
	w *world
}

func (c counted) OpenFile(name string, flag experimentalsys.Oflag, perm fs.FileMode) (experimentalsys.File, experimentalsys.Errno) {
	f, e := c.FS.OpenFile(name, flag, perm)
	if e != 0 {
		return f, e
	}
	if dir, _ := f.IsDir(); dir {
		return f, e
	}
	c.w.open = append(c.w.open, name)
	return countedFile{f, c.w, name}, e
}

type countedFile struct {
	experimentalsys.File
	w    *world
	name string
}

func (c countedFile) Close() experimentalsys.Errno {
	i := slices.Index(c.w.open, c.name)
	c.w.open = slices.Delete(c.w.open, i, i+1)
	return c.File.Close()
}

type worldKey struct{}

func chmod(ctx context.Context, m api.Module, p, n, mode uint32) int32 {
	name, _ := m.Memory().Read(p, n)
	if err := os.Chmod(ctx.Value(worldKey{}).(*world).root+string(name), tool.FromBits(mode)); err != nil {
		return wasiErrno(err)
	}
	return 0
}

func touch(ctx context.Context, m api.Module, p, n, at uint32) int32 {
	name, _ := m.Memory().Read(p, n)
	ns, _ := m.Memory().ReadUint64Le(at)
	times := []unix.Timespec{unix.NsecToTimespec(int64(ns)), unix.NsecToTimespec(int64(ns))}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, ctx.Value(worldKey{}).(*world).root+string(name), times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return wasiErrno(err)
	}
	return 0
}

func mode(ctx context.Context, m api.Module, p, n, follow uint32) int32 {
	name, _ := m.Memory().Read(p, n)
	stat := os.Lstat
	if follow != 0 {
		stat = os.Stat
	}
	fi, err := stat(ctx.Value(worldKey{}).(*world).root + string(name))
	if err != nil {
		return -wasiErrno(err)
	}
	return int32(tool.Bits(fi.Mode()))
}

func wasiErrno(err error) int32 {
	if errors.Is(err, fs.ErrNotExist) {
		return 44
	}
	return 29
}

func task(ctx context.Context) uint32 {
	w := ctx.Value(worldKey{}).(*world)
	return uint32(len(strings.Join(w.task, "\x00")) + min(1, len(w.task)))
}

func taskRead(ctx context.Context, m api.Module, p uint32) {
	m.Memory().WriteString(p, strings.Join(ctx.Value(worldKey{}).(*world).task, "\x00")+"\x00")
}

// inWasm runs args in the module, with root for / and root/build to work in.
func inWasm(t testing.TB, root string, args []string) outcome {
	t.Helper()
	out, _ := inWorld(t, root, args)
	return out
}

func inWorld(t testing.TB, root string, args []string) (outcome, *world) {
	t.Helper()
	m, err := engine()
	if err != nil {
		t.Fatal(err)
	}
	vars := append(slices.Clone(env), "PWD=/build")
	w := &world{root: root, task: slices.Concat([]string{fmt.Sprint(len(args))}, args, vars)}
	ctx := context.WithValue(context.Background(), worldKey{}, w)
	var stdout, stderr bytes.Buffer
	config := wazero.NewModuleConfig().WithName("").WithArgs("sh").WithStdout(&stdout).WithStderr(&stderr).
		WithFSConfig(wazero.NewFSConfig().(sysfs.FSConfig).WithSysFSMount(counted{sysfs.DirFS(root), w}, "/")).
		WithSysWalltime().WithSysNanotime().WithSysNanosleep()
	inst, err := m.r.InstantiateModule(ctx, m.code, config)
	status := 0
	if exit, ok := errors.AsType[*sys.ExitError](err); ok {
		status = int(exit.ExitCode())
	} else if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	if inst != nil {
		inst.Close(ctx)
	}
	return outcome{status, stdout.String(), stderr.String(), tree(t, root)}, w
}

// TestNothingStaysOpen at the end of a shell: an instance with open files is not used again.
func TestNothingStaysOpen(t *testing.T) {
	for _, script := range []string{
		"exec 3>f; echo x >&3",
		"exec 3>f; exit 3",
		"exec 3>f 4>&3 5<f; exec 4>&-",
		"exec 3>f; exec 3>g; exec 3>>h; exec 3>&-; exec 3<h",
		"exec >f 2>&1 </dev/null; echo x; exec <f",
		"exec 6>&1 >f; exec 1>&6 6>&-; exec 7>&1",
		"exec {a}>f {b}<f; : {c}>g; exec {a}>&-",
		"exec 3<>f; (exec 4>&3 5>g; exit 2); x=$(exec 6>&3 7<f; echo y); echo z | { exec 8>h; cat >&3; } | cat",
		"exec 3>f; { exec 4>g; exec 3>h; } 3>i; f() { exec 5>j; }; f 5>k",
		"exec 3>f; (echo x >&3; exec 4>g) & wait",
		"exec 3>f; sh -c 'exec 4>g; echo x >&3; exec 3>&-'; sh -c 'exec 4>g; exit 1'; sh -c 'exec true 3>&-'",
		"exec 3<<<text 4<<E\nlines\nE\nread x <&3",
		"exec 3>f 4<nothing",
		"exec 3>f 4>&3-; : 5>&4-; exec 3>&7",
		"set -e; exec 3>f; false",
		"set -u; exec 3>f; { echo $nothing; } 4>g",
		"exec 3>f; trap 'exec 4>g; echo x >&3' EXIT; exit 1",
		"exec 3>f; f() { f; }; f 4>&3",
		"exec 3>f; exec true",
		"exec 3>f; exec sh -c 'exec 4>g'",
		"while read x <&3; do exec 4>g; break; done 3<<<x; for i in 1 2; do continue; done 5>h; g() { return 3; } 6>i; g",
		"exec 3>f; timeout 0.1 sh -c 'exec 4>g; sleep 5'; :",
		"exec 3>f; yes | head -n 1 >&3; while :; do echo x; done 4>g | head -n 1",
		"trap 'echo x; exec 5>i' EXIT; f() { { exit 1; } 3>f; }; (f >g); { f 4>h; } >g",
		"set -e; { { false; } 3>f >g; } 4>h",
		"x=$({ sleep 0.02; echo y; } >f & echo z); { (sleep 0.02; echo y) 3>f & } | cat; { : & } 3>f | : & wait",
	} {
		if out, w := inWorld(t, newRoot(t), []string{"sh", "-c", script}); len(w.left) > 0 {
			t.Errorf("%s: %v stay open: %+v", script, w.left, out)
		}
	}
}

// TestArgumentsOfWASI: a host that describes no task gives arguments and environment as
// to any command.
func TestArgumentsOfWASI(t *testing.T) {
	m, err := engine()
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.WithValue(t.Context(), worldKey{}, &world{root: newRoot(t)})
	var stdout bytes.Buffer
	config := wazero.NewModuleConfig().WithName("").WithArgs("/usr/bin/sh", "-c", `echo "$0 $1 $X $(pwd)"; exit 9`, "name", "arg").WithEnv("X", "y").WithEnv("PWD", "/tmp").
		WithStdout(&stdout).WithFSConfig(wazero.NewFSConfig().WithDirMount(ctx.Value(worldKey{}).(*world).root, "/"))
	_, err = m.r.InstantiateModule(ctx, m.code, config)
	exit, ok := errors.AsType[*sys.ExitError](err)
	if !ok || exit.ExitCode() != 9 || stdout.String() != "name arg y /tmp\n" {
		t.Errorf("%v, %q", err, &stdout)
	}
}

// lockedBuffer is written by all that a script runs at once.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// patched tells whether the interpreter of this process is that of the module: see build.sh --modfile,
// which `make test` uses.
var _, patched = reflect.TypeFor[expand.Config]().FieldByName("FailGlob")

// natively runs args in this process, so that the race detector sees it.
func natively(t testing.TB, root string, args []string) outcome {
	t.Helper()
	in, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var stdout, stderr lockedBuffer
	dir := filepath.Join(root, "build")
	s := &sh.Shell{Tools: box.Tools(), Proc: tool.NewProcess()}
	status := s.Exec(t.Context(), &tool.Call{Args: args, Dir: dir, Env: append(slices.Clone(env), "PWD="+dir), Stdin: in, Stdout: &stdout, Stderr: &stderr})
	strip := strings.NewReplacer(root, "")
	return outcome{status, strip.Replace(stdout.b.String()), strip.Replace(stderr.b.String()), tree(t, root)}
}

// inBash runs a script by bash and the tools of this machine.
func inBash(t testing.TB, root, script string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	file := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(file, []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", file)
	cmd.Dir = filepath.Join(root, "build")
	cmd.Env = append(slices.Clone(env), "PWD="+cmd.Dir)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	status := cmd.ProcessState.ExitCode()
	// GNU's quotes depend on the character set; those of the shell do not.
	strip := strings.NewReplacer(root, "", "‘", "'", "’", "'")
	return outcome{status, strip.Replace(stdout.String()), strip.Replace(stderr.String()), tree(t, root)}
}

func tree(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		what := ""
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			what, err = os.Readlink(p)
			fmt.Fprintf(&b, "link %s -> %s\n", p[len(root):], strings.ReplaceAll(what, root, ""))
			return err
		case fi.Mode().IsRegular():
			c, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			what = fmt.Sprintf("%x", sha256.Sum256(bytes.ReplaceAll(c, []byte(root), nil)))[:12]
		}
		fmt.Fprintf(&b, "%v %s %s\n", fi.Mode(), p[len(root):], what)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// newRoot is a tree for one run, with the umask that env promises.
func newRoot(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"build", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// snippet is one of testdata/snippets.txt.
type snippet struct {
	name, script string
	differs      string // why the outcome is not bash's; empty if it is
}

func snippets(t testing.TB) []snippet {
	t.Helper()
	b, err := os.ReadFile("testdata/snippets.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []snippet
	for s := range strings.SplitSeq("\n"+string(b), "\n=== ") {
		title, script, _ := strings.Cut(s, "\n")
		if title == "" {
			continue
		}
		name, differs, _ := strings.Cut(title, " | differs: ")
		all = append(all, snippet{name, script + "\n", differs})
	}
	return all
}

// TestSnippets runs each snippet by bash, by the shell built for this machine and by
// the wasm module. The two of ours agree unless the snippet says that it takes the patch; the module and
// bash do unless it says why not, which docs/wasm.md says too.
func TestSnippets(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		testutil.Require(t, false, "there is no bash to compare with")
	}
	docs, err := os.ReadFile("../../../docs/wasm.md")
	if err != nil {
		t.Fatal(err)
	}
	syscall.Umask(0o022)
	names := map[string]bool{}
	for _, s := range snippets(t) {
		if names[s.name] {
			t.Errorf("two snippets are named %q", s.name)
		}
		names[s.name] = true
		t.Run(s.name, func(t *testing.T) {
			args := []string{"sh", "-c", s.script, "sh"}
			bash := inBash(t, newRoot(t), s.script)
			wasm := inWasm(t, newRoot(t), args)
			if patched {
				compare(t, "the module and the native build", natively(t, newRoot(t), args), wasm)
			}
			if s.differs == "" {
				compare(t, "bash", bash, wasm)
				return
			}
			if same(bash, wasm) {
				t.Error("it is as in bash by now: say so here and in docs/wasm.md")
			}
			if !strings.Contains(string(docs), s.differs) {
				t.Errorf("docs/wasm.md does not say %q", s.differs)
			}
		})
	}
	if len(names) < 150 {
		t.Errorf("there are %d snippets; 150 is what was promised", len(names))
	}
}

func same(a, b outcome) bool {
	return a.status == b.status && a.stdout == b.stdout && a.tree == b.tree
}

// compare leaves standard error out: a shell's own messages begin with its name and
// the number of a line. A snippet about messages writes them to standard output.
func compare(t *testing.T, who string, want, got outcome) {
	t.Helper()
	if want.status != got.status {
		t.Errorf("exit status: %s %d, wasm %d", who, want.status, got.status)
	}
	if want.stdout != got.stdout {
		t.Errorf("output of %s:\n%s\nof wasm:\n%s", who, want.stdout, got.stdout)
	}
	if want.tree != got.tree {
		t.Errorf("files of %s:\n%s\nof wasm:\n%s", who, want.tree, got.tree)
	}
	if t.Failed() {
		t.Logf("errors of %s:\n%s\nof wasm:\n%s", who, want.stderr, got.stderr)
	}
}

// TestDevicesForInput: /dev/stdin is what was redirected from. The interpreter natively puts a pipe between.
func TestDevicesForInput(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		testutil.Require(t, false, "there is no bash to compare with")
	}
	s := `for o in c p f e r; do
		test -$o /dev/stdin && echo $o; test -$o /dev/stdin </dev/null && echo $o null; test -$o /dev/fd/0 </dev/zero && echo $o zero
		echo | if test -$o /dev/stdin </dev/null; then echo $o inner; fi
	done; stat -L -c %F /dev/stdin </dev/null; cp /dev/stdin f </dev/null; ls -l f | cut -c1-10; (test -c /dev/stdin && stat -L -c %F /dev/stdin)`
	compare(t, "bash", inBash(t, newRoot(t), s), inWasm(t, newRoot(t), []string{"sh", "-c", s}))
}

// TestRecursionWithoutEnd: it ends the shell as bash does that is told of a bound (FUNCNEST), and not the host by
// its own.
func TestRecursionWithoutEnd(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		testutil.Require(t, false, "there is no bash to compare with")
	}
	for _, s := range []string{
		"f() { f; }; f; echo never",
		"f() { g x; }; g() { f; }; trap 'echo bye $?' EXIT; f; echo never",
		"f() { f; }; (f; echo never); echo after $?",
		"f() { f; }; x=$(f; echo never); echo after $?",
		"f() { f; }; if f; then echo never; fi",
		// Each level is a deep one.
		"f() { if true; then for i in 1; do case x in x) { { [ -n a ] && { f || false; }; } && echo never;; esac; done; fi; }; f",
		// Nearly as many levels as there may be.
		"f() { [ $1 = 0 ] && return 7; f $(($1-1)); }; f 990; echo $?",
		"f() { if [ $1 != 0 ]; then f $(($1-1)); fi; }; f 900; f 900; echo $?",
	} {
		t.Run(s, func(t *testing.T) {
			bash := inBash(t, newRoot(t), "FUNCNEST=1000; "+s)
			wasm := inWasm(t, newRoot(t), []string{"sh", "-c", s})
			compare(t, "bash", bash, wasm)
			const said = "maximum function nesting level exceeded (1000)"
			if strings.Contains(bash.stderr, said) != strings.Contains(wasm.stderr, "sh: f: "+said) {
				t.Errorf("bash said %q, and wasm %q", bash.stderr, wasm.stderr)
			}
		})
	}
	// Of these bash has no bound, or another.
	for s, want := range map[string]string{
		`x='eval "$x"'; eval "$x"; echo never`:                "1 sh: eval: maximum eval nesting level exceeded (1000)\n",
		`echo '. ./x' >x; . ./x; echo never`:                  "1 sh: .: maximum . nesting level exceeded (1000)\n",
		`echo 'sh ./x' >x; sh ./x`:                            "126 sh: maximum shell nesting level exceeded (1000)\n",
		`printf '#!/bin/sh\n./x\n' >x; chmod +x x; ./x; exit`: "126 /bin/sh: maximum shell nesting level exceeded (1000)\n",
	} {
		t.Run(s, func(t *testing.T) {
			got := inWasm(t, newRoot(t), []string{"sh", "-c", s})
			if have := fmt.Sprintf("%d %s", got.status, got.stderr); have != want || got.stdout != "" {
				t.Errorf("%q, and %q; want %q", have, got.stdout, want)
			}
		})
	}
}

// TestElementsCostTheSame however many an array has: it is not copied for each that is set.
func TestElementsCostTheSame(t *testing.T) {
	testutil.Require(t, patched, "the interpreter is not that of the module: see build.sh --modfile")
	for _, body := range []string{"a[i]=x", "a+=(x)", "m[k$i]=x", "m+=([k$i]=x)", "a[${#a[@]}]=x", "m[${#m[@]}]+=x", "((a[i]+=1))", `: "${a[i]:=x}"`} {
		allocated := func(n int) uint64 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if got := natively(t, newRoot(t), []string{"sh", "-c", fmt.Sprintf("declare -A m; for ((i=0; i<%d; i++)); do %s; done; ((${#a[@]}+${#m[@]}==%d))", n, body, n)}); got.status != 0 {
				t.Fatalf("%s: %+v", body, got)
			}
			runtime.ReadMemStats(&after)
			return after.TotalAlloc - before.TotalAlloc
		}
		allocated(10)
		if few, many := allocated(500), allocated(5000); many > 20*few {
			t.Errorf("%s: 500 times allocates %d bytes, and 5000 times %d", body, few, many)
		}
	}
}

// TestJobs runs what a build really does, as a script of some length.
func TestJobs(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		testutil.Require(t, false, "there is no bash to compare with")
	}
	syscall.Umask(0o022)
	for _, name := range []string{"site.sh", "install.sh"} {
		t.Run(name, func(t *testing.T) {
			script, err := os.ReadFile("testdata/" + name)
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"sh", "-c", string(script), "sh"}
			bash := inBash(t, newRoot(t), string(script))
			wasm := inWasm(t, newRoot(t), args)
			if patched {
				compare(t, "the module and the native build", natively(t, newRoot(t), args), wasm)
			}
			compare(t, "bash", bash, wasm)
			if len(bash.stdout) < 100 {
				t.Errorf("bash wrote only %q, and %q", bash.stdout, bash.stderr)
			}
		})
	}
}

// BenchmarkShell compares the module with the same interpreter built for this machine (with build.sh --modfile): a
// small task with the start of its instance, and loops that only compute.
func BenchmarkShell(b *testing.B) {
	for _, s := range []snippet{
		{name: "echo", script: "echo hi"},
		{name: "additions", script: "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"},
		{name: "files", script: "for i in $(seq 100); do echo $i >f$i; done; cat f* | sort -n | sha256sum; rm f*"},
	} {
		args := []string{"sh", "-c", s.script}
		root := newRoot(b)
		b.Run(s.name+"/native", func(b *testing.B) {
			if !patched {
				b.Skip("the interpreter is not that of the module")
			}
			for b.Loop() {
				natively(b, root, args)
			}
		})
		inWasm(b, root, args)
		b.Run(s.name+"/wasm", func(b *testing.B) {
			for b.Loop() {
				inWasm(b, root, args)
			}
		})
	}
}
