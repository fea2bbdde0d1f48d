package rpc

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
)

// filler sets all that a value holds, each to something that nothing else holds.
type filler struct {
	t testing.TB
	n int64
}

func (f *filler) fill(v reflect.Value) {
	f.n++
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprint("s", f.n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(f.n)
	case reflect.Uint8, reflect.Uint32:
		v.SetUint(uint64(f.n % 256))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		f.fill(v.Index(0))
		f.fill(v.Index(1))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 2 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			f.fill(key)
			f.fill(value)
			v.SetMapIndex(key, value)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				f.fill(v.Field(i))
			}
		}
	default:
		f.t.Fatalf("no value for a %v; add one", v.Type())
	}
}

// filled gives values of type T: one with all fields set, and for each field one
// with that alone, so that two of a kind which are swapped show.
func filled[T any](t testing.TB) []T {
	var all T
	(&filler{t: t}).fill(reflect.ValueOf(&all).Elem())
	vs := []T{all}
	for i := range reflect.TypeFor[T]().NumField() {
		var one T
		if v := reflect.ValueOf(&one).Elem(); v.Type().Field(i).IsExported() {
			(&filler{t: t}).fill(v.Field(i))
			vs = append(vs, one)
		}
	}
	return vs
}

// over is m after a way over the wire.
func over[M proto.Message](t testing.TB, m M) M {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatalf("%T does not encode: %v", m, err)
	}
	to := m.ProtoReflect().New().Interface().(M)
	if err := (careful{newCodec()}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, to); err != nil {
		t.Fatalf("%T does not decode: %v", m, err)
	}
	return to
}

// bodies are those of the oneof of m, by field name.
func bodies(m proto.Message) map[string]bool {
	names := map[string]bool{}
	fields := m.ProtoReflect().Descriptor().Oneofs().ByName("body").Fields()
	for i := range fields.Len() {
		names[string(fields.Get(i).Name())] = true
	}
	return names
}

func bodyOf(m proto.Message) string {
	r := m.ProtoReflect()
	return string(r.WhichOneof(r.Descriptor().Oneofs().ByName("body")).Name())
}

func TestRequestsCrossWhole(t *testing.T) {
	all := []executor.RequestBody{
		executor.CancelTask{}, executor.GetStatus{}, executor.Ping{}, executor.GetCapabilities{}, executor.ExecuteTask{Events: true},
	}
	for _, s := range filled[executor.Shutdown](t) {
		all = append(all, s)
	}
	for _, s := range filled[executor.EventsTaken](t) {
		all = append(all, s)
	}
	for _, s := range filled[executor.TaskSpec](t) {
		all = append(all, executor.ExecuteTask{Spec: &s})
	}
	unseen := bodies(&pb.Request{})
	for i, b := range all {
		want := executor.Request{ID: uint64(i) + 1, Body: b}
		m := over(t, toRequest(want))
		if got := fromRequest(m); !reflect.DeepEqual(got, want) {
			t.Errorf("sent %+v\ncame %+v", want, got)
		}
		delete(unseen, bodyOf(m))
	}
	if len(unseen) > 0 {
		t.Errorf("not tried: %v", unseen)
	}
}

func TestResponsesCrossWhole(t *testing.T) {
	all := []executor.ResponseBody{executor.Pong{}, executor.ShutdownAck{}}
	for _, v := range filled[executor.TaskOutput](t) {
		all = append(all, executor.TaskResult{Output: &v})
	}
	for _, v := range filled[executor.Status](t) {
		all = append(all, v)
	}
	for _, v := range filled[executor.Capabilities](t) {
		all = append(all, v)
	}
	for _, v := range filled[executor.TaskEvent](t) {
		all = append(all, v)
	}
	for _, v := range filled[executor.Error](t) {
		all = append(all, &v)
	}
	unseen := bodies(&pb.Response{})
	delete(unseen, "task_result_part")
	for i, b := range all {
		want := executor.Response{ID: uint64(i) + 1, Body: b}
		m := over(t, toResponse(want))
		if got := fromResponse(m); !reflect.DeepEqual(got, want) {
			t.Errorf("sent %+v\ncame %+v", want, got)
		}
		delete(unseen, bodyOf(m))
	}
	if len(unseen) > 0 {
		t.Errorf("not tried: %v", unseen)
	}
}

// fillMessage sets every field of m, at any depth.
func fillMessage(t *testing.T, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		value := func() protoreflect.Value {
			switch f.Kind() {
			case protoreflect.StringKind:
				return protoreflect.ValueOfString(string(f.Name()))
			case protoreflect.BytesKind:
				return protoreflect.ValueOfBytes([]byte(f.Name() + "\xff"))
			case protoreflect.BoolKind:
				return protoreflect.ValueOfBool(true)
			case protoreflect.Int64Kind:
				return protoreflect.ValueOfInt64(int64(f.Number()))
			case protoreflect.Int32Kind:
				return protoreflect.ValueOfInt32(int32(f.Number()))
			case protoreflect.Uint32Kind:
				return protoreflect.ValueOfUint32(uint32(f.Number()))
			}
			t.Fatalf("no value for %v; add one", f.FullName())
			return protoreflect.Value{}
		}
		switch {
		case f.IsMap():
			m.Mutable(f).Map().Set(protoreflect.ValueOfString("key").MapKey(), protoreflect.ValueOfString("value"))
		case f.IsList() && f.Message() != nil:
			fillMessage(t, m.Mutable(f).List().AppendMutable().Message())
		case f.IsList():
			m.Mutable(f).List().Append(value())
		case f.Message() != nil:
			fillMessage(t, m.Mutable(f).Message())
		default:
			m.Set(f, value())
		}
	}
}

// TestNoFieldOfTheWireIsDropped: a field of executor.proto that the Go types forget fails here.
func TestNoFieldOfTheWireIsDropped(t *testing.T) {
	for name := range bodies(&pb.Request{}) {
		m := &pb.Request{Id: 1}
		r := m.ProtoReflect()
		fillMessage(t, r.Mutable(r.Descriptor().Fields().ByName(protoreflect.Name(name))).Message())
		if got := toRequest(fromRequest(m)); !proto.Equal(got, m) {
			t.Errorf("sent %v\ncame %v", m, got)
		}
	}
	for name := range bodies(&pb.Response{}) {
		if name == "task_result_part" {
			continue
		}
		m := &pb.Response{Id: 1}
		r := m.ProtoReflect()
		fillMessage(t, r.Mutable(r.Descriptor().Fields().ByName(protoreflect.Name(name))).Message())
		if got := toResponse(fromResponse(m)); !proto.Equal(got, m) {
			t.Errorf("sent %v\ncame %v", m, got)
		}
	}
}

// TestWhatATaskFillsNeedNotBeText: names of files, and what quotes them.
func TestWhatATaskFillsNeedNotBeText(t *testing.T) {
	const odd = "\xff\x00\n\xed\xa0\x80"
	want := executor.TaskOutput{
		OutputFiles: []executor.OutputFile{{Path: odd, Target: odd}}, Evidence: odd,
		UndeclaredWrites: []string{odd}, MissingOutputs: []string{odd}, Stdout: executor.Stream{Inline: []byte(odd)},
	}
	m := over(t, toResponse(executor.Response{ID: 1, Body: executor.TaskResult{Output: &want}}))
	if got := fromResponse(m).Body.(executor.TaskResult).Output; !reflect.DeepEqual(*got, want) {
		t.Errorf("sent %+v\ncame %+v", want, *got)
	}
	e := executor.FieldErrorf("workdir", "%s", odd)
	m = over(t, toResponse(executor.Response{ID: 1, Body: e}))
	if got := fromResponse(m).Body.(*executor.Error); got.Text != odd {
		t.Errorf("sent %q, came %q", odd, got.Text)
	}
}

// TestEveryValidSpecFits: the bounds of Validate and those of the wire agree.
func TestEveryValidSpecFits(t *testing.T) {
	s := &executor.TaskSpec{
		Argv: make([]string, executor.MaxArgvBytes/9-1), Env: map[string]string{},
		Inputs: []executor.Input{{Host: "/" + strings.Repeat("x", executor.MaxPathBytes-1)}},
	}
	s.Argv[0] = "x"
	for i := range executor.MaxEnvBytes / 15 {
		s.Env[fmt.Sprintf("%05d", i)] = ""
	}
	for i := range executor.MaxOutputs {
		s.Outputs = append(s.Outputs, fmt.Sprint(i))
	}
	s.Stdin = []byte{0}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	fits(t, s)
	// And one that is large in bytes.
	large := &executor.TaskSpec{Script: strings.Repeat("x", executor.MaxScriptBytes), Stdin: make([]byte, executor.MaxStdinBytes-1<<10)}
	if err := large.Validate(); err != nil {
		t.Fatal(err)
	}
	fits(t, large)
}

func fits(t testing.TB, s *executor.TaskSpec) {
	t.Helper()
	m := toRequest(executor.Request{ID: 1<<64 - 1, Body: executor.ExecuteTask{Spec: s, Events: true}})
	if n := proto.Size(m); n > maxMessage {
		t.Errorf("a valid spec is a message of %d bytes; at most %d are taken", n, maxMessage)
	}
	over(t, m)
}

// tidy makes what is empty nil, for the wire does not tell them apart.
func tidy(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return
		}
		if v.Kind() == reflect.Interface && v.Elem().Kind() == reflect.Struct {
			c := reflect.New(v.Elem().Type()).Elem()
			c.Set(v.Elem())
			tidy(c)
			v.Set(c)
			return
		}
		tidy(v.Elem())
	case reflect.Slice, reflect.Map:
		if v.Len() == 0 && v.CanSet() {
			v.SetZero()
			return
		}
		if v.Kind() == reflect.Slice {
			for i := range v.Len() {
				tidy(v.Index(i))
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				tidy(v.Field(i))
			}
		}
	}
}

func FuzzRequest(f *testing.F) {
	for _, s := range append(filled[executor.TaskSpec](f), executor.TaskSpec{Script: "true", Timeout: 1e9}) {
		b, err := proto.Marshal(toRequest(executor.Request{ID: 7, Body: executor.ExecuteTask{Spec: &s, Events: true}}))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x08\x01\x3a\x02\x08\x05"))
	f.Add([]byte("\x08\x01\x2a\x00\x22\x00\x12\x00\x1a\x00"))
	f.Add([]byte("\x9a\x06\x03abc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &pb.Request{}
		if (careful{newCodec()}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, m) != nil {
			return
		}
		r := fromRequest(m)
		if r.Body == nil {
			return
		}
		tidy(reflect.ValueOf(&r).Elem())
		if x, ok := r.Body.(executor.ExecuteTask); ok {
			err := x.Spec.Validate()
			switch {
			case err == nil:
				fits(t, x.Spec)
			case executor.KindOf(err) != executor.Invalid:
				t.Errorf("%v is %s; want invalid", err, executor.KindOf(err))
			case len(err.Error()) > 32<<10:
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		}
		if again := fromRequest(over(t, toRequest(r))); !reflect.DeepEqual(again, r) {
			t.Errorf("sent %+v\ncame %+v", r, again)
		}
	})
}

// answers is a stream of answers that are given.
type answers struct {
	pb.Executor_SessionClient
	left []*pb.Response
}

func (a *answers) RecvMsg(to any) error {
	if len(a.left) == 0 {
		return io.EOF
	}
	b, err := proto.Marshal(a.left[0])
	if err != nil {
		return err
	}
	a.left = a.left[1:]
	return newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, to)
}

// received is what a client makes of ms.
func received(ms []*pb.Response) (rs []executor.Response, why *executor.Error) {
	rx := make(chan executor.Response)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for r := range rx {
			if e, ok := r.Body.(executor.TaskEvent); ok {
				r.Body = executor.TaskEvent{Kind: e.Kind, Data: e.Data} // whatever buffer that is
			}
			rs = append(rs, r)
		}
	}()
	why = receiveAnswers(context.Background(), &answers{left: ms}, rx)
	close(rx)
	<-done
	return rs, why
}

func FuzzResponse(f *testing.F) {
	for _, o := range filled[executor.TaskOutput](f) {
		b, err := proto.Marshal(toResponse(executor.Response{ID: 7, Body: executor.TaskResult{Output: &o}}))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte("\x08\x07\x4a\x02\x08\x01"))
	}
	for _, b := range []executor.ResponseBody{
		executor.Status{Active: 3}, executor.Capabilities{Limits: []string{"a"}}, executor.FieldErrorf("env", "x"),
		executor.TaskEvent{Kind: executor.EventStdout, Data: []byte("x")}, executor.Pong{}, executor.ShutdownAck{},
	} {
		b, err := proto.Marshal(toResponse(executor.Response{ID: 7, Body: b}))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var ms []*pb.Response
		for _, b := range [][]byte{first, second} {
			m := &pb.Response{}
			if proto.Unmarshal(b, m) == nil {
				ms = append(ms, m)
			}
		}
		rs, why := received(ms)
		if executor.KindOf(why) != executor.Unavailable {
			t.Errorf("the end of the stream is %v", why)
		}
		for _, r := range rs {
			if r.Body == nil {
				t.Fatal("an answer without a body")
			}
			tidy(reflect.ValueOf(&r).Elem())
			again, _ := received(split(over(t, toResponse(r))))
			if e, ok := r.Body.(*executor.Error); ok {
				r.Body = &executor.Error{Kind: e.Kind, Field: e.Field, Text: e.Text} // the cause stays here
			}
			if len(again) != 1 || !reflect.DeepEqual(again[0], r) {
				t.Errorf("sent %+v\ncame %+v", r, again)
			}
		}
	})
}
