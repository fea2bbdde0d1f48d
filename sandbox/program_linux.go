package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/sandbox/internal/first"
)

// program is what a first process is to do, with the files that it needs.
type program struct {
	ops   []first.Op
	steps []step // what each op is, for messages
	data  []byte // what ops point to, behind them
	// pointers are the places of addresses in data, which are known once all ops are.
	pointers []int
	files    []*os.File
	own      []*os.File // those to close afterwards
	slots    uint64     // the last that is in use
}

// newProgram has room for what most need.
func newProgram() *program {
	return &program{ops: make([]first.Op, 0, 256), steps: make([]step, 0, 256), data: make([]byte, 0, 16<<10)}
}

// step says what an op does, and whose fault its failure is.
type step struct {
	what           string
	target, output string // an input or an output, if one may be at fault
}

// argument is one of an op's.
type argument struct {
	value uint64
	kind  uint64
	data  bool // an offset in data
}

// Arguments that are no numbers.
type (
	file int    // an index of files
	slot uint64 // the result of an earlier op
	text string // its address, with a NUL behind it
	raw  []byte // its address
	addr int    // of a place in data
)

func (p *program) argument(x any) argument {
	switch v := x.(type) {
	case int:
		return argument{value: uint64(v)}
	case uint64:
		return argument{value: v}
	case file:
		return argument{value: uint64(v), kind: first.File}
	case slot:
		return argument{value: uint64(v), kind: first.Slot}
	case text:
		return argument{value: uint64(p.place(append([]byte(v), 0))), data: true}
	case raw:
		return argument{value: uint64(p.place(v)), data: true}
	case addr:
		return argument{value: uint64(v), data: true}
	}
	panic(fmt.Sprintf("sandbox: an argument of type %T", x))
}

// place adds bytes to what ops point to, aligned for any type.
func (p *program) place(b []byte) addr {
	for len(p.data)%8 != 0 {
		p.data = append(p.data, 0)
	}
	at := len(p.data)
	p.data = append(p.data, b...)
	return addr(at)
}

// room is a place for what the kernel writes.
func (p *program) room(size int) addr { return p.place(make([]byte, size)) }

// strings places a NULL-terminated array of strings, as execve(2) takes it.
func (p *program) strings(all []string) addr {
	table := make([]byte, 8*(len(all)+1))
	for i, s := range all {
		binary.NativeEndian.PutUint64(table[8*i:], uint64(p.place(append([]byte(s), 0))))
	}
	at := p.place(table)
	for i := range all {
		p.pointers = append(p.pointers, int(at)+8*i)
	}
	return at
}

// do adds an op, which is to be called what in messages, and returns where its result will be.
func (p *program) do(what string, nr uint64, args ...any) slot {
	op := first.Op{Nr: nr}
	for i, x := range args {
		a := p.argument(x)
		op.Args[i] = a.value
		if a.data {
			a.kind = unplaced
		}
		op.Kinds |= a.kind << (8 * i)
	}
	p.ops = append(p.ops, op)
	p.steps = append(p.steps, step{what: what})
	return 0
}

// unplaced is the kind of an argument that is an offset in data.
const unplaced = 0xff

// call adds a system call.
func (p *program) call(what string, nr uintptr, args ...any) { p.do(what, uint64(nr), args...) }

// keep has the last op's result kept.
func (p *program) keep() slot {
	p.slots++
	if p.slots >= keptSlots {
		panic("sandbox: a program with too many results") // of a fixed number
	}
	p.ops[len(p.ops)-1].Store = p.slots
	return slot(p.slots)
}

// keptSlots is the first of those that outlive a program.
const keptSlots = first.Slots - 3

// keepIn has the last op's result kept where another's was.
func (p *program) keepIn(s slot) { p.ops[len(p.ops)-1].Store = uint64(s) }

// ignore has errors of the last op be none.
func (p *program) ignore(errs ...syscall.Errno) {
	for i, e := range errs {
		p.ops[len(p.ops)-1].Ignore |= uint64(e) << (16 * i)
	}
}

// file adds a file of somebody else's, who keeps it open until the program is sent.
func (p *program) file(f *os.File) file {
	p.files = append(p.files, f)
	return file(len(p.files) - 1)
}

// made adds a file that close closes.
func (p *program) made(f *os.File) file {
	p.own = append(p.own, f)
	return p.file(f)
}

func (p *program) close() {
	first.CloseAll(p.own)
	p.own = nil
}

// bytes is the program as a first process takes it.
func (p *program) bytes() []byte {
	base := uint64(first.Base + len(p.ops)*first.OpSize)
	ops := slices.Clone(p.ops)
	for i := range ops {
		for k := range ops[i].Args {
			if ops[i].Kinds>>(8*k)&0xff == unplaced {
				ops[i].Kinds &^= 0xff << (8 * k)
				ops[i].Args[k] += base
			}
		}
	}
	out := make([]byte, 0, len(ops)*first.OpSize+len(p.data))
	for _, o := range ops {
		for _, n := range append(append([]uint64{o.Nr}, o.Args[:]...), o.Kinds, o.Ignore, o.Store) {
			out = binary.NativeEndian.AppendUint64(out, n)
		}
	}
	data := len(out)
	out = append(out, p.data...)
	for _, at := range p.pointers {
		b := out[data+at:]
		binary.NativeEndian.PutUint64(b, binary.NativeEndian.Uint64(b)+base)
	}
	return out
}

// written is a program as a file, which can be sent any number of times.
type written struct {
	*program
	file *os.File
	size int
}

// write writes a program down. The caller closes its file.
func (p *program) write() (*written, error) {
	b := p.bytes()
	f, err := first.Memfd("program", func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &written{program: p, file: f, size: len(b)}, nil
}

// send has the process at the other end of sock run the program, with files in place of those that it was made with.
func (w *written) send(sock *os.File, files []*os.File) error {
	return first.Run(sock, w.file, len(w.ops), w.size, files)
}

// send has the process at the other end of sock run the program.
func (p *program) send(sock *os.File) error {
	w, err := p.write()
	if err != nil {
		return err
	}
	defer w.file.Close()
	return w.send(sock, p.files)
}

// failed is the error of a program that failed, in words.
func (p *program) failed(r first.Reply) error {
	if int(r.Op) >= len(p.steps) {
		return fmt.Errorf("step %d: %w", r.Op, syscall.Errno(r.Errno))
	}
	s, why := p.steps[r.Op], syscall.Errno(r.Errno)
	switch {
	case p.ops[r.Op].Nr == first.OpEqual || p.ops[r.Op].Nr == first.OpMemory:
		return errors.New(s.what)
	case s.target != "":
		return &TargetError{Target: s.target, Reason: s.what + ": " + why.Error()}
	case s.output != "":
		return &OutputError{Output: s.output, Reason: s.what + ": " + why.Error()}
	case why == unix.EBADMSG: // OpEqual's; what says it all
		return errors.New(s.what)
	}
	return fmt.Errorf("%s: %w", s.what, why)
}
