package rpc

import (
	"unicode/utf8"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
)

// Events are most of what crosses the socket, and so are packed and unpacked here: protobuf would
// copy their data once more at either end. On the wire they are what it makes of a Response.

// event is a Response with a TaskEvent that has data at most, to be sent. Once sent its data are gone.
type event struct {
	id uint64
	executor.TaskEvent
}

// The fields of a Response and of the TaskEvent in it.
const (
	fieldID, fieldEvent  = 1, 8
	fieldKind, fieldData = 1, 2
)

// marshal is the message, which has the data in the buffer in which they are.
func (e event) marshal() mem.BufferSlice {
	kind := text(e.Kind)
	n := 0
	if kind != "" {
		n += protowire.SizeTag(fieldKind) + protowire.SizeBytes(len(kind))
	}
	if len(e.Data) > 0 {
		n += protowire.SizeTag(fieldData) + protowire.SizeBytes(len(e.Data))
	}
	var b []byte
	if e.id != 0 {
		b = protowire.AppendTag(b, fieldID, protowire.VarintType)
		b = protowire.AppendVarint(b, e.id)
	}
	b = protowire.AppendTag(b, fieldEvent, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(n))
	if kind != "" {
		b = protowire.AppendTag(b, fieldKind, protowire.BytesType)
		b = protowire.AppendString(b, kind)
	}
	if len(e.Data) == 0 {
		return mem.BufferSlice{mem.SliceBuffer(b)}
	}
	b = protowire.AppendTag(b, fieldData, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(e.Data)))
	return mem.BufferSlice{mem.SliceBuffer(b), mem.NewBuffer(&e.Data, freer(e.TaskEvent))}
}

// freer is the pool of one buffer: that of an event.
type freer executor.TaskEvent

// Get implements mem.BufferPool. Nobody calls it.
func (freer) Get(int) *[]byte { return new([]byte) }

// Put implements mem.BufferPool.
func (f freer) Put(*[]byte) { executor.TaskEvent(f).Free() }

// answer is a Response that was received: event if it is one, or else message.
type answer struct {
	event   *event
	message *pb.Response
}

// unmarshal makes e of a message that is an event with data, and reports whether it is. Another, or one
// whose fields come in another order, is for protobuf.
func (e *event) unmarshal(m mem.BufferSlice) bool {
	if len(m) == 0 {
		return false
	}
	size := m.Len()
	p := fields{b: m[0].ReadOnlyData()}
	id := p.number(fieldID, protowire.VarintType)
	all := p.number(fieldEvent, protowire.BytesType)
	whole := all == uint64(size-p.at)
	kind := p.bytes(fieldKind)
	n := p.number(fieldData, protowire.BytesType)
	if p.bad || !whole || n != uint64(size-p.at) || n == 0 || n > executor.MaxEventBytes || !utf8.Valid(kind) {
		return false
	}
	e.id, e.TaskEvent = id, executor.NewTaskEvent(executor.EventKind(kind), int(n))
	to, skip := e.Data, p.at
	for _, b := range m {
		to = to[copy(to, b.ReadOnlyData()[skip:]):]
		skip = 0
	}
	return true
}

// fields reads what is expected of b, from at on.
type fields struct {
	b   []byte
	at  int
	bad bool // something else was there
}

// number is the value or the length of the field num.
func (p *fields) number(num protowire.Number, typ protowire.Type) uint64 {
	n, t, tag := protowire.ConsumeTag(p.b[p.at:])
	if tag < 0 || n != num || t != typ {
		p.bad = true
		return 0
	}
	v, size := protowire.ConsumeVarint(p.b[p.at+tag:])
	if size < 0 {
		p.bad = true
		return 0
	}
	p.at += tag + size
	return v
}

func (p *fields) bytes(num protowire.Number) []byte {
	n := p.number(num, protowire.BytesType)
	if n > uint64(len(p.b)-p.at) {
		p.bad = true
		return nil
	}
	p.at += int(n)
	return p.b[p.at-int(n) : p.at]
}
