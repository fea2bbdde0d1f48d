package rpc

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
)

// pieces is b as it comes in frames of at most n bytes.
func pieces(b []byte, n int) (s mem.BufferSlice) {
	for len(b) > 0 {
		m := min(n, len(b))
		s = append(s, mem.SliceBuffer(b[:m]))
		b = b[m:]
	}
	return s
}

// TestEventIsAResponse: what we pack ourselves is what protobuf packs, byte for byte, and the other way round.
func TestEventIsAResponse(t *testing.T) {
	for _, size := range []int{0, 1, 127, 128, 2000, 32 << 10, 100_000, executor.MaxEventBytes} {
		for _, id := range []uint64{1, 300, 1 << 63} {
			for _, kind := range []executor.EventKind{executor.EventStdout, executor.EventQueued, "", "\xff"} {
				data := bytes.Repeat([]byte{byte(size), 1, 2}, size/3+1)[:size]
				r := executor.Response{ID: id, Body: executor.TaskEvent{Kind: kind, Data: data}}
				want, err := proto.Marshal(toResponse(r))
				if err != nil {
					t.Fatal(err)
				}
				e := executor.NewTaskEvent(kind, size)
				copy(e.Data, data)
				sent := event{id, e}.marshal()
				got := sent.Materialize()
				sent.Free()
				if !bytes.Equal(got, want) {
					t.Fatalf("%d bytes of %q: %.40x is not %.40x", size, kind, got, want)
				}
				for _, frame := range []int{16379, 64, 3} {
					var a answer
					if err := newCodec().Unmarshal(pieces(got, frame), &a); err != nil {
						t.Fatal(err)
					}
					if ours := a.event != nil; ours != (size > 0 && kind != "" && frame > 3) {
						t.Errorf("%d bytes of %q in frames of %d: unpacked here is %v", size, kind, frame, ours)
					}
					same(t, a, id, kind, data)
				}
			}
		}
	}
}

// same wants a to be an event of these.
func same(t *testing.T, a answer, id uint64, kind executor.EventKind, data []byte) {
	t.Helper()
	r := executor.Response{}
	if a.event != nil {
		r = executor.Response{ID: a.event.id, Body: a.event.TaskEvent}
	} else {
		r = fromResponse(a.message)
	}
	e, ok := r.Body.(executor.TaskEvent)
	if !ok || r.ID != id || string(e.Kind) != text(kind) || !bytes.Equal(e.Data, data) {
		t.Errorf("sent %d %q with %d bytes, came %d %q with %d", id, kind, len(data), r.ID, e.Kind, len(e.Data))
	}
}

// FuzzEvent: whatever comes, what we unpack ourselves is what protobuf would make of it.
func FuzzEvent(f *testing.F) {
	for _, size := range []int{0, 1, 200, 5000} {
		r := executor.Response{ID: 7, Body: executor.TaskEvent{Kind: executor.EventStderr, Data: make([]byte, size)}}
		b, err := proto.Marshal(toResponse(r))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(64))
		f.Add(append(b, b...), uint16(16))
	}
	f.Add([]byte("\x08\x01\x42\x05\x0a\x01\xff\x12\x00"), uint16(64))
	f.Fuzz(func(t *testing.T, b []byte, frame uint16) {
		var e event
		if !e.unmarshal(pieces(b, int(frame)+1)) {
			return
		}
		m := &pb.Response{}
		if err := proto.Unmarshal(b, m); err != nil {
			t.Fatalf("unpacked what protobuf refuses: %v", err)
		}
		same(t, answer{message: m}, e.id, e.Kind, e.Data)
	})
}
