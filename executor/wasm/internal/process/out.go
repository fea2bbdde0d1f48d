package process

import (
	"bufio"
	"io"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// lag is how long a piece of a stream waits for more, at most.
const lag = time.Millisecond

// output sends frames. Pieces of the streams are gathered, since many programs write them
// line by line, and each frame wakes the executor.
type output struct {
	mu    sync.Mutex
	w     *bufio.Writer
	err   error // the first
	kind  wire.Kind
	piece []byte // of kind, not sent yet
	timer *time.Timer
}

func newOutput(w io.Writer) *output {
	o := &output{w: bufio.NewWriterSize(w, 2*wire.MaxPiece)}
	o.timer = time.AfterFunc(time.Hour, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.flush()
	})
	o.timer.Stop()
	return o
}

// Write implements io.Writer: it takes a frame, and sends it after all that came before.
func (o *output) Write(frame []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gathered()
	o.write(frame)
	o.flush()
	return len(frame), o.err
}

// stream takes what is written to a stream, and sends it soon.
func (o *output) stream(k wire.Kind, b []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(b) > 0 {
		if k != o.kind || len(o.piece) == wire.MaxPiece {
			o.gathered()
		}
		if len(o.piece) == 0 && o.w.Buffered() == 0 {
			o.timer.Reset(lag)
		}
		n := min(len(b), wire.MaxPiece-len(o.piece))
		o.kind, o.piece = k, append(o.piece, b[:n]...)
		b = b[n:]
	}
	return o.err
}

// gathered makes a frame of the piece.
func (o *output) gathered() {
	if len(o.piece) > 0 {
		if err := wire.Write(o.w, o.kind, o.piece); o.err == nil {
			o.err = err
		}
		o.piece = o.piece[:0]
	}
}

func (o *output) write(b []byte) {
	if _, err := o.w.Write(b); o.err == nil {
		o.err = err
	}
}

func (o *output) flush() {
	o.timer.Stop()
	o.gathered()
	if err := o.w.Flush(); o.err == nil {
		o.err = err
	}
}
