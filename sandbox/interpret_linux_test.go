package sandbox

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// interpret has a first process run a program that ends by saying that it is ready.
func (f *fixture) interpret(write func(p *program)) error {
	f.Helper()
	b, err := f.host.single(&Spec{Root: f.root, Network: netpolicy.Isolated})
	must(f.T, err)
	defer func() { must(f.T, b.undoAll()) }()
	p := newProgram()
	defer p.close()
	write(p)
	p.do("say that it is ready", first.OpSend, int(first.Ready), 0, 0, 0, 0)
	_, files, err := b.run(p, first.Ready)
	first.CloseAll(files)
	return err
}

// TestInterpreterChecks: a step that fails, or finds another value than it is to, is told of with its error, and no
// later one is done.
func TestInterpreterChecks(t *testing.T) {
	f := newFixture(t)
	eight := binary.NativeEndian.AppendUint64(nil, 0x1234)
	for name, c := range map[string]struct {
		write func(p *program)
		want  string
		errno unix.Errno
	}{
		"all well": {write: func(p *program) {
			p.call("getpid", unix.SYS_GETPID)
			pid := p.keep()
			p.do("it is not the first", first.OpEqual, pid, 1, ^uint64(0))
			p.do("memory", first.OpMemory, raw(eight), 0x0034, 0x00ff)
			p.call("none", unix.SYS_CLOSE, 12345)
			p.ignore(unix.ENOENT, unix.EBADF)
		}},
		"a value": {func(p *program) {
			p.call("getpid", unix.SYS_GETPID)
			p.do("it is the first", first.OpEqual, p.keep(), 2, ^uint64(0))
			p.call("later", unix.SYS_EXIT_GROUP, 9)
		}, "it is the first", 0},
		"a masked value": {func(p *program) { p.do("bits", first.OpEqual, 6, 2, 4) }, "bits", 0},
		"memory":         {func(p *program) { p.do("memory", first.OpMemory, raw(eight), 0x1235, ^uint64(0)) }, "memory", 0},
		"a call":         {func(p *program) { p.call("close it", unix.SYS_CLOSE, 12345) }, "close it: bad file descriptor", unix.EBADF},
		"another than the ignored": {func(p *program) {
			p.call("close it", unix.SYS_CLOSE, 12345)
			p.ignore(unix.ENOENT, unix.EEXIST, unix.EROFS, unix.EPERM)
		}, "close it: bad file descriptor", unix.EBADF},
		"a call that there is not": {func(p *program) { p.call("none", 99999) }, "none: function not implemented", unix.ENOSYS},
		"a bad address":            {func(p *program) { p.call("open", unix.SYS_OPENAT, 0, 1, 0, 0) }, "open: bad address", unix.EFAULT},
	} {
		err := f.interpret(c.write)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || err.Error() != c.want || c.errno != 0 && !errors.Is(err, c.errno)):
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// TestInterpreterSlots: a slot keeps its result until another is kept there.
func TestInterpreterSlots(t *testing.T) {
	f := newFixture(t)
	must(t, f.interpret(func(p *program) {
		var all []slot
		for i := range keptSlots - 1 {
			p.call("dup", unix.SYS_FCNTL, 0, unix.F_DUPFD, 100+i)
			p.ignore(unix.EBADF)
			p.call("umask", unix.SYS_UMASK, i)
			all = append(all, p.keep())
		}
		for i, s := range all[1:] {
			p.do(fmt.Sprintf("slot %d", i+1), first.OpEqual, s, i, ^uint64(0))
		}
		p.call("getpid", unix.SYS_GETPID)
		p.keepIn(all[7])
		p.do("slot again", first.OpEqual, all[7], 1, ^uint64(0))
		p.do("its neighbour", first.OpEqual, all[8], 7, ^uint64(0))
	}))
}

// TestInterpreterFiles: descriptors in any number that a program may have arrive in order, and none too many.
func TestInterpreterFiles(t *testing.T) {
	f := newFixture(t)
	dir := t.TempDir()
	open := func(n int) (all []*os.File) {
		for i := range n {
			x, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
			must(t, err)
			_, err = x.WriteAt(make([]byte, i), 0) // told apart by their sizes
			must(t, err)
			all = append(all, x)
		}
		return all
	}
	// One message takes 253, the program among them.
	for _, n := range []int{0, 1, 251, 252, 253, 254, 505, 506, 507, first.MaxFiles} {
		err := f.interpret(func(p *program) {
			for _, x := range open(n) {
				p.made(x)
			}
			for _, i := range []int{0, 1, 251, 252, 253, 505, 506, n - 1} {
				if i < 0 || i >= n {
					continue
				}
				p.call("seek", unix.SYS_LSEEK, file(i), 0, unix.SEEK_END)
				p.do(fmt.Sprintf("file %d", i), first.OpEqual, p.keep(), i, ^uint64(0))
				p.slots--
			}
		})
		if err != nil {
			t.Errorf("%d files: %v", n, err)
		}
	}
	err := f.interpret(func(p *program) {
		for _, x := range open(first.MaxFiles + 1) {
			p.made(x)
		}
	})
	if err == nil || !strings.Contains(err.Error(), "1025 files") {
		t.Errorf("too many files: %v", err)
	}
}

// TestCommandCannotBeExecuted: what a shell would say of a command, the sandbox says in the command's own standard error.
func TestCommandCannotBeExecuted(t *testing.T) {
	f := newFixture(t)
	work := makeTree(t, 0, 0, map[string]string{
		"bad/tool": "#!/bin/sh\necho bad\n", "good/tool": "#!/bin/sh\necho good\n", "text/tool": "no program", "loop": "",
		"wrong/tool": "#!/no/such/interpreter\n", "plain": "", "cut/tool": cutOff(t),
	})
	for name, mode := range map[string]os.FileMode{"bad/tool": 0o644, "good/tool": 0o755, "text/tool": 0o755, "wrong/tool": 0o755, "cut/tool": 0o755} {
		must(t, os.Chmod(filepath.Join(work.Name(), name), mode))
	}
	must(t, os.Mkdir(filepath.Join(work.Name(), "good/dir"), 0o755))
	must(t, os.Symlink("self", filepath.Join(work.Name(), "self")))
	for _, c := range []struct {
		argv, path string
		code       int
		out, err   string
	}{
		{"tool", "bad:good", 0, "good\n", ""}, // not executable before executable
		{"tool", "none:good", 0, "good\n", ""},
		{"tool", "plain:good", 0, "good\n", ""}, // a file on the way is no directory
		{"tool", "bad:none", 126, "", `sandboxd: "tool": permission denied` + "\n"},
		{"tool", "bad", 126, "", `sandboxd: "tool": permission denied` + "\n"},
		{"tool", "none:nowhere", 127, "", `sandboxd: "tool": not found in PATH` + "\n"},
		{"tool", "none", 127, "", `sandboxd: "tool": no such file or directory` + "\n"},
		{"tool", "text:good", 126, "", `sandboxd: "tool": exec format error` + "\n"},
		{"tool", "wrong", 127, "", `sandboxd: "tool": no such file or directory` + "\n"},
		{"tool", "cut", 126, "", `sandboxd: "tool": input/output error` + "\n"},
		{"none/tool", "good", 127, "", `sandboxd: "none/tool": no such file or directory` + "\n"},
		{"/build/bad/tool", "good", 126, "", `sandboxd: "/build/bad/tool": permission denied` + "\n"},
		{"good/dir", "", 126, "", `sandboxd: "good/dir": permission denied` + "\n"},
		{"plain/tool", "", 126, "", `sandboxd: "plain/tool": not a directory` + "\n"},
		{"self/tool", "", 126, "", `sandboxd: "self/tool": too many levels of symbolic links` + "\n"},
		{strings.Repeat("x", 300), "good", 126, "", `sandboxd: "` + strings.Repeat("x", 200) + `": file name too long` + "\n"},
	} {
		r := f.run(Spec{Work: Work{Dir: work}, Argv: []string{c.argv}, Env: []string{"PATH=" + c.path}})
		if r.Code != c.code || r.out != c.out || r.err != c.err {
			t.Errorf("%.20s over %s: code %d, %q, %q", c.argv, c.path, r.Code, r.out, r.err)
		}
	}
	if r := f.run(Spec{Argv: []string{"tool"}, Env: []string{"HOME=/"}}); r.Code != 127 || !strings.Contains(r.err, "not found in PATH") {
		t.Errorf("without PATH: code %d, %q", r.Code, r.err)
	}
}

// cutOff is a program whose interpreter's name lies behind its end: elf(5).
func cutOff(t *testing.T) string {
	t.Helper()
	self, err := elf.Open("/proc/self/exe")
	must(t, err)
	defer self.Close()
	head := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(self.Data), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(self.Machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64, Phoff: 64, Phentsize: 56, Phnum: 1,
	}
	b, err := binary.Append(nil, self.ByteOrder, head)
	must(t, err)
	b, err = binary.Append(b, self.ByteOrder, elf.Prog64{Type: uint32(elf.PT_INTERP), Off: 1 << 20, Filesz: 20})
	must(t, err)
	return string(b)
}

// TestCommandBusy: a program that somebody has open for writing.
func TestCommandBusy(t *testing.T) {
	f := newFixture(t)
	work := makeTree(t, 0, 0, map[string]string{"tool": "#!/bin/sh\n"})
	tool := filepath.Join(work.Name(), "tool")
	must(t, os.Chmod(tool, 0o755))
	w, err := os.OpenFile(tool, os.O_WRONLY, 0)
	must(t, err)
	defer w.Close()
	r := f.run(Spec{Work: Work{Dir: work, Mode: WorkDirect}, Argv: []string{"./tool"}})
	if r.Code != 126 || r.err != `sandboxd: "./tool": text file busy`+"\n" {
		t.Errorf("code %d, %q", r.Code, r.err)
	}
}

// TestLargeCommands: a script, arguments and an environment of the sizes that a task may have, and too large ones.
func TestLargeCommands(t *testing.T) {
	f := newFixture(t)
	script := "echo begun\n" + strings.Repeat("# "+strings.Repeat("x", 1021)+"\n", 2<<10) + "echo $(stat -c %s /.sandboxd/script)\n"
	if r := f.run(Spec{Script: script}); r.Code != 0 || r.out != fmt.Sprintf("begun\n%d\n", len(script)) {
		t.Errorf("a script of %d bytes: %+v %q %q", len(script), r.Exit, r.out, r.err)
	}
	const longest = 128<<10 - 1 // MAX_ARG_STRLEN, with its NUL
	one := strings.Repeat("y", longest)
	r := f.run(Spec{Argv: []string{"sh", "-c", `echo ${#1} $#; echo ${#LONG}`, "sh", one, one, one}, Env: []string{"PATH=" + DefaultPath, "LONG=" + one[5:]}})
	if r.Code != 0 || r.out != fmt.Sprintf("%d 3\n%d\n", longest, longest-5) {
		t.Errorf("long strings: %+v %q %q", r.Exit, r.out, r.err)
	}
	many := []string{"sh", "-c", "echo $#", "sh"}
	for range 100_000 {
		many = append(many, "a")
	}
	if r := f.run(Spec{Argv: many}); r.Code != 0 || r.out != "100000\n" {
		t.Errorf("many arguments: %+v %.100q", r.Exit, r.err)
	}
	r = f.run(Spec{Argv: []string{"sh", "-c", "true", one + "y"}})
	if r.Code != 126 || r.err != `sandboxd: "sh": argument list too long`+"\n" {
		t.Errorf("too long a string: %+v %q", r.Exit, r.err)
	}
}

// TestManyInputs: more than the descriptors of one message, and each in its place.
func TestManyInputs(t *testing.T) {
	f := newFixture(t)
	files := map[string]string{}
	for i := range 300 {
		files[fmt.Sprint(i)] = fmt.Sprint(i)
	}
	dir := makeTree(t, 0, 0, files)
	var in []Bind
	for i := range 300 {
		x, err := os.Open(filepath.Join(dir.Name(), fmt.Sprint(i)))
		must(t, err)
		defer x.Close()
		in = append(in, Bind{File: x, Target: fmt.Sprintf("/inputs/%d/in", i)})
	}
	r := f.run(Spec{Inputs: in, Script: "i=0; while [ $i -lt 300 ]; do [ $(cat /inputs/$i/in) = $i ] || echo $i; i=$((i+1)); done"})
	if r.Code != 0 || r.out != "" {
		t.Errorf("%+v: others are at %s %s", r.Exit, r.out, r.err)
	}
}

// TestInputPlaces: an input is where it was asked for, or an error says that it cannot be there. None is an internal one.
func TestInputPlaces(t *testing.T) {
	f := newFixture(t)
	src := makeTree(t, 0, 0, map[string]string{"d/f": "input", "f": "input"})
	work := makeTree(t, 0, 0, map[string]string{"there": "old", "dir/there": "old"})
	must(t, os.Symlink("dir", filepath.Join(work.Name(), "link")))
	must(t, os.Symlink("/etc", filepath.Join(work.Name(), "etc")))
	for _, c := range []struct {
		target string
		ok     bool
	}{
		{"/inputs/x", true}, {"/a/b/c/d/e/f/g/h/i/j", true}, {"/" + strings.Repeat("deep/", 200) + "x", true},
		{"/tmp/x", true}, {"/tmp/a/b/x", true}, {"/var/tmp/x", true}, {"/home/build/x", true}, {"/dev/shm/x", true},
		{"/build/new/x", true}, {"/build/dir/x", true},
		{"/usr/lib/no-such-thing-here", false}, {"/usr/no/such/thing", false},
		{"/proc/x", false}, {"/proc/1/x", false}, {"/proc/sys/x", false}, {"/dev/x", false}, {"/sys/x", true},
		{"/build/link/x", false}, {"/build/etc/x", false}, {"/build/there/x", false},
		{"/" + strings.Repeat("x", 300), false},
	} {
		for _, name := range []string{"d", "f"} {
			x, err := os.Open(filepath.Join(src.Name(), name))
			must(t, err)
			defer x.Close()
			f.place(Bind{File: x, Target: c.target}, work, name == "d", c.ok)
		}
	}
	// What is there is covered by its like, and by nothing else.
	for target, dir := range map[string]bool{
		"/etc/passwd": false, "/usr/lib": true, "/usr": true, "/build": true, "/build/there": false, "/build/dir": true, "/build/dir/there": false,
		"/dev/null": false, "/tmp": true, "/etc": true,
	} {
		for _, name := range []string{"d", "f"} {
			x, err := os.Open(filepath.Join(src.Name(), name))
			must(t, err)
			defer x.Close()
			b, _, _, err := f.try(Spec{Inputs: []Bind{{File: x, Target: target}}, Work: Work{Dir: work}, Argv: []string{"true"}})
			var at *TargetError
			if b != nil {
				_, err := b.Wait(context.Background())
				must(t, errors.Join(err, b.Close()))
			}
			if err != nil && !errors.As(err, &at) {
				t.Errorf("%s over %s: %v", name, target, err)
			}
			if err == nil && dir != (name == "d") {
				t.Errorf("%s is over %s", name, target)
			}
		}
	}
}

// place starts a task with an input, and sees that the input is there or refused.
func (f *fixture) place(in Bind, work *os.File, dir, ok bool) {
	f.Helper()
	at := in.Target
	if dir {
		at += "/f"
	}
	b, out, errs, err := f.try(Spec{Inputs: []Bind{in}, Work: Work{Dir: work}, Argv: []string{"cat", at}})
	if err != nil {
		var target *TargetError
		if !errors.As(err, &target) || target.Target != in.Target {
			f.Errorf("%.60s: %v", in.Target, err)
		} else if ok {
			f.Errorf("%.60s (directory %t) is refused: %v", in.Target, dir, err)
		}
		return
	}
	exit, err := b.Wait(context.Background())
	must(f.T, errors.Join(err, b.Close()))
	if got := <-out; exit.Code != 0 || got != "input" {
		f.Errorf("%.60s: %+v %q %q", in.Target, exit, got, <-errs)
	}
	if !ok {
		f.Errorf("%.60s (directory %t) was taken", in.Target, dir)
	}
}
