package process

import (
	"context"
	"os"
	"runtime"
	"strings"
	"testing"
)

// TestInputHoldsUpNobody: what waits for the end of the input is in no system call, and is told of it.
func TestInputHoldsUpNobody(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ended := make(chan struct{})
	if _, ok := newInput(context.Background(), r, func() { close(ended) }).(*direct); !ok {
		t.Fatal("it does not read by itself")
	}
	waiting := ""
	for !strings.Contains(waiting, "[IO wait") {
		select {
		case <-ended:
			t.Fatal("it has ended, and the pipe is open")
		default:
		}
		b := make([]byte, 1<<20)
		for _, g := range strings.Split(string(b[:runtime.Stack(b, true)]), "\n\n") {
			if strings.Contains(g, "onHangup") {
				waiting = g
			}
		}
		if strings.Contains(waiting, "[syscall") {
			t.Fatalf("the runtime waits for it when it stops goroutines:\n%s", waiting)
		}
		runtime.Gosched()
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended
}
