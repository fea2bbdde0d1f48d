package box

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"reflect"
	"unsafe"

	"github.com/benhoyt/goawk/interp"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// awkHost is what a program of awk reaches beyond files: standard output and error by their names, and commands. goawk keeps streams by
// their names, and opens what is not there: so they are put there before it looks.
type awkHost struct {
	ctx     context.Context
	c       *tool.Call
	in      *interp.Interpreter
	records bool // the program may have records that are no lines, which commands are not read by
}

// funcs are the functions that awkSource has a program call, and extra ones.
func (h *awkHost) funcs(extra []string) map[string]any {
	all := map[string]any{awkBegin: h.begin, awkRead: h.read, awkWrite: h.write, awkSystem: h.system}
	for _, name := range extra {
		all[name] = awkExtras[name]
	}
	return all
}

// field is a map of goawk's interpreter, or invalid where that is not as we know it.
func (h *awkHost) field(name string) reflect.Value {
	v := reflect.ValueOf(h.in).Elem().FieldByName("interp")
	if v.Kind() != reflect.Pointer {
		return reflect.Value{}
	}
	if v = v.Elem().FieldByName(name); v.Kind() != reflect.Map {
		return reflect.Value{}
	}
	return reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem()
}

// put gives a stream its name.
func (h *awkHost) put(field, name string, stream any) {
	if m := h.field(field); m.IsValid() && reflect.TypeOf(stream).AssignableTo(m.Type().Elem()) {
		m.SetMapIndex(reflect.ValueOf(name), reflect.ValueOf(stream))
	}
}

func (h *awkHost) has(field, name string) bool {
	m := h.field(field)
	return !m.IsValid() || m.MapIndex(reflect.ValueOf(name)).IsValid()
}

// begin comes before all of the program. What is closed can be opened again.
func (h *awkHost) begin() {
	out := &awkOutput{to: h.c.Out}
	out.end = func([]byte) int { h.put("outputStreams", "/dev/stdout", out); return 0 }
	h.put("outputStreams", "/dev/stdout", out)
	err := &awkOutput{to: h.c.Stderr}
	err.end = func([]byte) int { h.put("outputStreams", "/dev/stderr", err); return 0 }
	h.put("outputStreams", "/dev/stderr", err)
}

// write comes before a program writes to a command, which runs when that is closed.
func (h *awkHost) write(line string) string {
	if !h.has("outputStreams", line) {
		h.put("outputStreams", line, &awkOutput{end: func(b []byte) int { return h.run(line, bytes.NewReader(b), nil) }})
	}
	return line
}

// read comes before a program reads from a command, which runs to its end then.
func (h *awkHost) read(line string) string {
	if !h.records && !h.has("inputStreams", line) && !h.has("outputStreams", line) {
		in := &awkInput{run: func(b *bytes.Buffer) int { return h.run(line, h.c.Raw(), b) }}
		s := bufio.NewScanner(in)
		s.Buffer(nil, maxLine)
		h.put("inputStreams", line, in)
		h.put("scanners", line, s)
	}
	return line
}

// system is awk's.
func (h *awkHost) system(line string) int {
	if m := h.field("outputStreams"); m.IsValid() {
		for _, s := range m.Seq2() {
			if f, ok := s.Interface().(interface{ Flush() error }); ok {
				_ = f.Flush() // its next write has the error, too
			}
		}
	}
	return h.run(line, h.c.Raw(), nil)
}

// run runs a command line, with its output to out if that is not nil.
func (h *awkHost) run(line string, in io.Reader, out *bytes.Buffer) int {
	child := h.c.Command([]string{"sh", "-c", line}, in)
	if out != nil {
		child.Stdout = out
	}
	return h.c.Exec(h.ctx, child)
}

// awkOutput is one of goawk's streams that are written to.
type awkOutput struct {
	to   io.Writer // gets each line when it is whole; nil keeps all to the end
	b    []byte
	end  func(b []byte) int
	code int
}

// Write implements io.Writer.
func (o *awkOutput) Write(p []byte) (int, error) {
	o.b = append(o.b, p...)
	if o.to != nil && bytes.HasSuffix(p, []byte("\n")) {
		return len(p), o.Flush()
	}
	return len(p), nil
}

// Flush writes what is there.
func (o *awkOutput) Flush() (err error) {
	if o.to != nil {
		_, err = o.to.Write(o.b)
		o.b = o.b[:0]
	}
	return err
}

// Close implements io.Closer.
func (o *awkOutput) Close() error {
	err := o.Flush()
	o.code = o.end(o.b)
	return err
}

// ExitCode is that of the command.
func (o *awkOutput) ExitCode() int { return o.code }

// awkInput is one of goawk's streams that are read from.
type awkInput struct {
	run  func(b *bytes.Buffer) int // nil when it has run
	b    bytes.Buffer
	code int
}

// Read implements io.Reader.
func (i *awkInput) Read(p []byte) (int, error) {
	if i.run != nil {
		i.code, i.run = i.run(&i.b), nil
	}
	return i.b.Read(p)
}

// Close implements io.Closer.
func (i *awkInput) Close() error { return nil }

// ExitCode is that of the command.
func (i *awkInput) ExitCode() int { return i.code }
