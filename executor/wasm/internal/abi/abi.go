// Package abi calls components of the world in wit/executor.wit, by the canonical ABI over wazero.
//
// It is written for this one world: what its types are in a module's memory stands in the code.
// A module is not trusted. Each pointer, length, alignment, discriminant and string that it
// gives is checked, and what is lifted is bounded; a violation is an error of the call, after which the
// instance is of no more use.
package abi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/tetratelabs/wazero/api"
)

// Names of the world's interfaces.
const (
	ExecutorName = "bitzel:executor/executor@0.1.0"
	HostName     = "bitzel:executor/host@0.1.0"

	// ExecuteTask is the core export that makes a module one of this world.
	ExecuteTask = ExecutorName + "#execute-task"
	ping        = ExecutorName + "#ping"
	postPrefix  = "cabi_post_"
	realloc     = "cabi_realloc"
)

const (
	// MaxLifted bounds what one call may bring out of a module's memory.
	MaxLifted = 64 << 20
	// maxFiles bounds the list output-files.
	maxFiles = 100_000
)

// TaskSpec is the record task-spec.
type TaskSpec struct {
	Name, Recipe, Script, Workdir string
	Env                           [][2]string
	Outputs                       []string
	TimeoutSecs                   *uint64
}

// TaskOutput is the record task-output.
type TaskOutput struct {
	Signature      string
	OutputFiles    [][2]string
	Stdout, Stderr string
	ExitCode       int32
	DurationMS     uint64
}

// TaskError is the error of execute-task's result.
type TaskError struct{ Text string }

// Error implements error.
func (e *TaskError) Error() string { return e.Text }

// Check says why the exports of a module are not those of the world.
func Check(exports map[string]api.FunctionDefinition, memories map[string]api.MemoryDefinition) error {
	const i32, i64 = api.ValueTypeI32, api.ValueTypeI64
	for _, f := range []struct {
		name            string
		params, results []api.ValueType
		optional        bool
	}{
		{ExecuteTask, []api.ValueType{i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i32, i64}, []api.ValueType{i32}, false},
		{ping, nil, []api.ValueType{i32}, false},
		{realloc, []api.ValueType{i32, i32, i32, i32}, []api.ValueType{i32}, false},
		{postPrefix + ExecuteTask, []api.ValueType{i32}, nil, true},
		{postPrefix + ping, []api.ValueType{i32}, nil, true},
	} {
		d := exports[f.name]
		if d == nil && f.optional {
			continue
		}
		if d == nil {
			return fmt.Errorf("the module does not export %s; build it for the world bitzel:executor/executor-component", f.name)
		}
		if !slices.Equal(d.ParamTypes(), f.params) || !slices.Equal(d.ResultTypes(), f.results) {
			return fmt.Errorf("the export %s has another type than the world bitzel:executor/executor-component gives it; build it for that", f.name)
		}
	}
	if memories["memory"] == nil {
		return errors.New("the module does not export its memory as \"memory\"")
	}
	return nil
}

// Instance is an instance of a module that Check found good. It is for one goroutine.
type Instance struct {
	m       api.Module
	realloc api.Function
	// closed says that the guest may not call the host now: it allocates for us, or cleans up.
	closed bool
}

// NewInstance returns the instance that m is.
func NewInstance(m api.Module) *Instance {
	return &Instance{m: m, realloc: m.ExportedFunction(realloc)}
}

// MayCall says whether the guest may call the host at this moment.
func (i *Instance) MayCall() bool { return !i.closed }

// call calls f with the host closed to it, as the ABI has it for all but the call proper.
func (i *Instance) call(ctx context.Context, f api.Function, args ...uint64) ([]uint64, error) {
	i.closed = true
	defer func() { i.closed = false }()
	return f.Call(ctx, args...)
}

// post calls what a function wants called once its result was lifted.
func (i *Instance) post(ctx context.Context, name string, arg uint64) error {
	f := i.m.ExportedFunction(postPrefix + name)
	if f == nil {
		return nil
	}
	_, err := i.call(ctx, f, arg)
	return err
}

// Ping calls ping.
func (i *Instance) Ping(ctx context.Context) (bool, error) {
	r, err := i.m.ExportedFunction(ping).Call(ctx)
	if err != nil {
		return false, err
	}
	// Any value but 0 is true.
	return uint32(r[0]) != 0, i.post(ctx, ping, r[0])
}

// ExecuteTask calls execute-task. A *TaskError is the component's own word, any other error a trap or a
// violation of the ABI.
func (i *Instance) ExecuteTask(ctx context.Context, t *TaskSpec) (*TaskOutput, error) {
	l := &lower{ctx: ctx, i: i}
	var p [14]uint64
	for n, s := range []string{t.Name, t.Recipe, t.Script, t.Workdir} {
		p[2*n], p[2*n+1] = l.string(s)
	}
	env := make([]string, 0, 2*len(t.Env))
	for _, kv := range t.Env {
		env = append(env, kv[0], kv[1])
	}
	p[8], _ = l.strings(env)
	p[9] = uint64(len(t.Env))
	p[10], p[11] = l.strings(t.Outputs)
	if t.TimeoutSecs != nil {
		p[12], p[13] = 1, *t.TimeoutSecs
	}
	if l.err != nil {
		return nil, l.err
	}
	r, err := i.m.ExportedFunction(ExecuteTask).Call(ctx, p[:]...)
	if err != nil {
		return nil, err
	}
	out, err := i.result(uint32(r[0]))
	if bad := (*TaskError)(nil); err != nil && !errors.As(err, &bad) {
		return nil, err
	}
	if e := i.post(ctx, ExecuteTask, r[0]); e != nil {
		return nil, e
	}
	return out, err
}

// result lifts a result<task-output, string>: 56 bytes, aligned to 8.
//
//	0  discriminant
//	8  ok: signature, 16 output-files, 24 stdout, 32 stderr, 40 exit-code, 48 duration-ms
//	8  error: string
func (i *Instance) result(at uint32) (*TaskOutput, error) {
	l := &lift{mem: i.m.Memory(), left: MaxLifted}
	b := l.bytes(at, 56, 8)
	if l.err != nil {
		return nil, fmt.Errorf("the result of execute-task: %w", l.err)
	}
	var out *TaskOutput
	var failed error
	switch b[0] {
	case 0:
		out = &TaskOutput{
			Signature: l.string(at+8, "signature"), OutputFiles: l.files(at + 16), Stdout: l.string(at+24, "stdout"),
			Stderr: l.string(at+32, "stderr"), ExitCode: int32(l.u32(at + 40)), DurationMS: uint64(l.u32(at+48)) | uint64(l.u32(at+52))<<32,
		}
	case 1:
		failed = &TaskError{l.string(at+8, "error")}
	default:
		l.fail("discriminant %d of a result", b[0])
	}
	if l.err != nil {
		return nil, fmt.Errorf("the result of execute-task: %w", l.err)
	}
	return out, failed
}

// lower writes to a module's memory what it is given. After an error it does nothing.
type lower struct {
	ctx context.Context
	i   *Instance
	err error
}

// alloc has the module allocate.
func (l *lower) alloc(align, size uint32) uint32 {
	if l.err != nil || size == 0 {
		return align // which is aligned, and not null
	}
	r, err := l.i.call(l.ctx, l.i.realloc, 0, 0, uint64(align), uint64(size))
	if err != nil {
		l.err = err
		return 0
	}
	p := uint32(r[0])
	if p%align != 0 || uint64(p)+uint64(size) > uint64(l.i.m.Memory().Size()) {
		l.err = fmt.Errorf("cabi_realloc returned %#x for %d bytes aligned to %d, of a memory of %d", p, size, align, l.i.m.Memory().Size())
	}
	return p
}

func (l *lower) write(at uint32, b []byte) {
	if l.err == nil && len(b) > 0 && !l.i.m.Memory().Write(at, b) {
		l.err = errors.New("a module's memory became smaller") // alloc has looked
	}
}

func (l *lower) u32(at, v uint32) {
	if l.err == nil && !l.i.m.Memory().WriteUint32Le(at, v) {
		l.err = errors.New("a module's memory became smaller")
	}
}

func (l *lower) bytes(b []byte) (at, n uint64) {
	p := l.alloc(1, uint32(len(b)))
	l.write(p, b)
	return uint64(p), uint64(len(b))
}

// string lowers s, which WIT has to be UTF-8.
func (l *lower) string(s string) (at, n uint64) {
	if l.err == nil && !utf8.ValidString(s) {
		l.err = &NotUTF8Error{s}
	}
	return l.bytes([]byte(s))
}

// NotUTF8Error says that a component cannot be given a text.
type NotUTF8Error struct{ Text string }

// Error implements error.
func (e *NotUTF8Error) Error() string {
	return fmt.Sprintf("%.80q is not UTF-8, which all that a component is given must be", e.Text)
}

func (l *lower) strings(all []string) (at, n uint64) {
	p := l.alloc(4, uint32(8*len(all)))
	for k, s := range all {
		a, n := l.string(s)
		l.u32(p+uint32(8*k), uint32(a))
		l.u32(p+uint32(8*k)+4, uint32(n))
	}
	return uint64(p), uint64(len(all))
}

// lift reads what a module gives. After an error all is empty.
type lift struct {
	mem  api.Memory
	left int64 // bytes
	err  error
}

func (l *lift) fail(format string, args ...any) {
	if l.err == nil {
		l.err = fmt.Errorf(format, args...)
	}
}

// bytes are n bytes at an address, in the module's memory: good until it runs.
func (l *lift) bytes(at, n, align uint32) []byte {
	switch {
	case l.err != nil:
		return nil
	case at%align != 0:
		l.fail("address %#x is not aligned to %d", at, align)
	case int64(n) > l.left:
		l.fail("it is larger than %d bytes", int64(MaxLifted))
	default:
		b, ok := l.mem.Read(at, n)
		if !ok {
			l.fail("%d bytes at %#x, of a memory of %d", n, at, l.mem.Size())
			return nil
		}
		l.left -= int64(n)
		return b
	}
	return nil
}

func (l *lift) u32(at uint32) uint32 {
	if l.err != nil {
		return 0
	}
	v, ok := l.mem.ReadUint32Le(at)
	if !ok {
		l.fail("4 bytes at %#x, of a memory of %d", at, l.mem.Size())
	}
	return v
}

// string lifts a string whose address and length stand at an address.
func (l *lift) string(at uint32, what string) string {
	return l.text(uint64(l.u32(at)), uint64(l.u32(at+4)), what)
}

// text lifts a string by its address and length.
func (l *lift) text(at, n uint64, what string) string {
	s := string(l.bytes(uint32(at), uint32(n), 1))
	if !utf8.ValidString(s) {
		l.fail("%s is not UTF-8", what)
	}
	return s
}

// files lifts a list<tuple<string, string>>.
func (l *lift) files(at uint32) [][2]string {
	p, n := l.u32(at), l.u32(at+4)
	if n > maxFiles {
		l.fail("output-files has %d entries; at most %d may be", n, maxFiles)
	}
	if l.bytes(p, 16*min(n, maxFiles), 4); l.err != nil {
		return nil
	}
	var all [][2]string
	for k := range n {
		all = append(all, [2]string{l.string(p+16*k, "a path"), l.string(p+16*k+8, "a hash")})
		if l.err != nil {
			return nil
		}
	}
	return all
}
