package sandbox

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// word is the n-th 64 bits of a program.
func word(b []byte, at uint64) uint64 { return binary.NativeEndian.Uint64(b[at:]) }

// TestProgramLayout: what a first process maps at first.Base has the steps in front, and in them the addresses of what
// they point to.
func TestProgramLayout(t *testing.T) {
	p := newProgram()
	p.call("a", 7, text("odd"), 5, raw{1, 2, 3})
	p.ignore(unix.ENOENT, unix.EEXIST)
	kept := p.keep()
	p.do("b", first.OpSend, kept, file(3), p.strings([]string{"x", "", "yz"}), ^uint64(0))
	room := p.room(24)
	p.do("c", first.OpMemory, room)
	b := p.bytes()
	op := func(i int) (nr uint64, args [6]uint64, kinds, ignore, store uint64) {
		at := uint64(i * first.OpSize)
		for k := range args {
			args[k] = word(b, at+8+8*uint64(k))
		}
		return word(b, at), args, word(b, at+56), word(b, at+64), word(b, at+72)
	}
	place := func(address uint64) uint64 {
		t.Helper()
		at := address - first.Base
		if address < first.Base+3*first.OpSize || at >= uint64(len(b)) || at%8 != 0 {
			t.Fatalf("the address %#x is not in the program's data, or not aligned", address)
		}
		return at
	}
	str := func(address uint64) string {
		s, _, _ := strings.Cut(string(b[place(address):]), "\x00")
		return s
	}

	nr, args, kinds, ignore, store := op(0)
	if nr != 7 || kinds != 0 || ignore != uint64(unix.ENOENT)|uint64(unix.EEXIST)<<16 || store != 1 || kept != 1 {
		t.Errorf("step 0: %d, kinds %x, ignore %x, store %d", nr, kinds, ignore, store)
	}
	if str(args[0]) != "odd" || args[1] != 5 || string(b[place(args[2]):][:3]) != "\x01\x02\x03" || args[3] != 0 {
		t.Errorf("step 0: %x", args)
	}
	nr, args, kinds, _, store = op(1)
	if nr != first.OpSend || kinds != first.Slot|first.File<<8 || store != 0 || args[0] != 1 || args[1] != 3 || args[3] != ^uint64(0) {
		t.Errorf("step 1: %d, kinds %x, store %d, %x", nr, kinds, store, args)
	}
	table := place(args[2])
	for i, want := range []string{"x", "", "yz"} {
		if got := str(word(b, table+8*uint64(i))); got != want {
			t.Errorf("string %d is %q", i, got)
		}
	}
	if word(b, table+24) != 0 {
		t.Error("the strings have no end")
	}
	nr, args, kinds, _, _ = op(2)
	if at := place(args[0]); nr != first.OpMemory || kinds != 0 || word(b, at)|word(b, at+8)|word(b, at+16) != 0 || at+24 != uint64(len(b)) {
		t.Errorf("step 2: %d, kinds %x, %x of %d bytes", nr, kinds, args, len(b))
	}
}

// TestProgramIsTheSameTwice: what is made again of the same steps has the same addresses.
func TestProgramIsTheSameTwice(t *testing.T) {
	p := newProgram()
	p.call("a", 7, p.strings([]string{"x"}), text("y"))
	if a, b := string(p.bytes()), string(p.bytes()); a != b {
		t.Errorf("%x\n%x", a, b)
	}
}

// TestProgramFailedInWords: an error says what the step was to do and whose fault it is, whatever index comes.
func TestProgramFailedInWords(t *testing.T) {
	p := newProgram()
	p.call("mount it", 1)
	p.call("open its place", 1)
	p.steps[1].target = "/usr/x"
	p.call("hide it", 1)
	p.steps[2].output = "out"
	p.do("it has capabilities", first.OpEqual, 1, 2)
	fail := func(op uint32) error {
		return p.failed(first.Reply{Kind: first.Failed, Op: op, Errno: uint32(unix.EACCES)})
	}
	if err := fail(0); !errors.Is(err, unix.EACCES) || err.Error() != "mount it: permission denied" {
		t.Errorf("%v", err)
	}
	var target *TargetError
	if err := fail(1); !errors.As(err, &target) || target.Target != "/usr/x" || target.Reason != "open its place: permission denied" {
		t.Errorf("%v", err)
	}
	var output *OutputError
	if err := fail(2); !errors.As(err, &output) || output.Output != "out" {
		t.Errorf("%v", err)
	}
	if err := fail(3); err == nil || err.Error() != "it has capabilities" {
		t.Errorf("%v", err)
	}
	for _, op := range []uint32{4, 1 << 31, ^uint32(0)} {
		if err := fail(op); !errors.Is(err, unix.EACCES) || !strings.HasPrefix(err.Error(), "step ") {
			t.Errorf("of a step that there is not: %v", err)
		}
	}
}

// TestCommandOverPath: a name is looked for where PATH says, each place once, and relative to the work directory.
func TestCommandOverPath(t *testing.T) {
	for path, want := range map[string]string{
		"PATH=/a:/b:/a":  "/a/tool /b/tool",
		"PATH=":          "/build/tool",
		"PATH=bin::/a":   "/build/bin/tool /build/tool /a/tool",
		"PATHS=/a":       "",
		"XPATH=/a:PATH=": "",
	} {
		_, argv, files := command(&Spec{Argv: []string{"tool", "x"}, Env: []string{"A=b", path}})
		if got := strings.Join(files, " "); got != want || len(argv) != 2 {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	if _, _, files := command(&Spec{Argv: []string{"./tool"}, Env: []string{"PATH=/a"}}); len(files) != 1 || files[0] != "./tool" {
		t.Errorf("with a slash: %s", files)
	}
}
