package process

import (
	"bufio"
	"context"
	"io"
	"os"
	"time"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// frame is one from the executor.
type frame struct {
	kind wire.Kind
	body []byte
}

// input is where frames come from. It is for one goroutine.
type input interface {
	// next is the next frame. The error is for good.
	next() (frame, error)
	// comes waits until there is something to be had from next, or some time has passed, in which case it is false.
	comes(within time.Duration) bool
}

// newInput reads frames from in, and calls end, whatever else goes on, once there can be no more.
func newInput(ctx context.Context, in io.Reader, end func()) input {
	r := bufio.NewReader(in)
	if f, ok := in.(*os.File); ok {
		if d := newDirect(f, r, end); d != nil {
			return d
		}
	}
	frames := make(chan frame)
	go func() {
		defer close(frames)
		for {
			k, body, err := wire.Read(r, wire.MaxModule, nil)
			if err != nil {
				end()
				return
			}
			select {
			case frames <- frame{k, body}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return &relayed{frames: frames}
}

// relayed has another goroutine read, since nothing else would notice the end.
type relayed struct {
	frames <-chan frame
	ahead  *frame
}

func (r *relayed) next() (frame, error) {
	if f := r.ahead; f != nil {
		r.ahead = nil
		return *f, nil
	}
	f, ok := <-r.frames
	if !ok {
		return f, io.EOF
	}
	return f, nil
}

func (r *relayed) comes(within time.Duration) bool {
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case f, ok := <-r.frames:
		if ok {
			r.ahead = &f
		}
		return true
	case <-t.C:
		return false
	}
}
