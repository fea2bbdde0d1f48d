package rpc

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
)

// maxEntries bounds the lists of a message, all together: each of them has two bytes
// or more on the wire and a hundred in memory. No valid spec has more, since
// MaxSpecBytes counts sixteen bytes for each.
const maxEntries = executor.MaxSpecBytes / 16

// codec is gRPC's own, but for events.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if e, ok := v.(event); ok {
		return e.marshal(), nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	a, ok := v.(*answer)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	*a = answer{event: &event{}}
	if a.event.unmarshal(data) {
		return nil
	}
	*a = answer{message: &pb.Response{}}
	return c.CodecV2.Unmarshal(data, a.message)
}

// careful is codec for a server: it looks at a message before it is unpacked.
type careful struct{ codec }

// Unmarshal implements encoding.CodecV2.
func (careful) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no protobuf message", v)
	}
	b := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	if n, err := entries(b.ReadOnlyData(), m.ProtoReflect().Descriptor()); err != nil {
		return err
	} else if n > maxEntries {
		return fmt.Errorf("lists of %d entries; use at most %d, and files for the rest", n, maxEntries)
	}
	return proto.Unmarshal(b.ReadOnlyData(), m)
}

// entries counts the messages and the entries of lists in b, at any depth. It makes nothing.
func entries(b []byte, d protoreflect.MessageDescriptor) (n int, err error) {
	for len(b) > 0 {
		num, typ, size := protowire.ConsumeTag(b)
		if size < 0 {
			return n, protowire.ParseError(size)
		}
		b = b[size:]
		if size = protowire.ConsumeFieldValue(num, typ, b); size < 0 {
			return n, protowire.ParseError(size)
		}
		f, value := d.Fields().ByNumber(num), b[:size]
		b = b[size:]
		if f == nil {
			continue // it is kept as it is
		}
		if f.IsList() || f.Message() != nil {
			n++
		}
		if f.Message() == nil || typ != protowire.BytesType {
			continue
		}
		inner, _ := protowire.ConsumeBytes(value)
		m, err := entries(inner, f.Message())
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}
