package executor

import "sync"

// minPooled is the least size of Data that is worth recycling.
const minPooled = MaxEventBytes >> (len(pieces) - 1)

// pieces hold the buffers of events that are done with: of MaxEventBytes, half of that, and so on.
var pieces [4]sync.Pool

// NewTaskEvent is an event with n bytes of Data to be filled, in a buffer that Free gives back; what
// it holds until then is of no meaning. It is for transports: who sends Responses, or receives them.
func NewTaskEvent(kind EventKind, n int) TaskEvent {
	if n < minPooled || n > MaxEventBytes {
		return TaskEvent{Kind: kind, Data: make([]byte, n)}
	}
	tier := len(pieces) - 1
	for MaxEventBytes>>tier < n {
		tier--
	}
	b, ok := pieces[tier].Get().(*[]byte)
	if !ok {
		fresh := make([]byte, MaxEventBytes>>tier)
		b = &fresh
	}
	return TaskEvent{Kind: kind, Data: (*b)[:n], buffer: b}
}

// Free gives the buffer of Data to another event. Who takes an event out of a Response may
// call it, once and on one copy of it, when nobody uses Data any more. An EventFunc must not: whoever calls
// it does.
func (e TaskEvent) Free() {
	if e.buffer == nil {
		return
	}
	for tier := range pieces {
		if cap(*e.buffer) == MaxEventBytes>>tier {
			pieces[tier].Put(e.buffer)
		}
	}
}
