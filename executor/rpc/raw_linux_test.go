package rpc_test

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/net/http2/hpack"

	pb "github.com/sandboxd/sandboxd/executor/executorpb"
)

// headers are those of a call of method, as HPACK.
func headers(method string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", method},
		{":authority", "localhost"}, {"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		_ = e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	return b.Bytes()
}

// hold makes spec's standard input a FIFO that nobody writes to until release.
func hold(t *testing.T, spec *pb.TaskSpec) (release func()) {
	t.Helper()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	spec.Script = append([]byte("exec <"+fifo+"\n"), spec.Script...)
	// Both ways, so that neither end waits for the other to open it.
	f, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return func() {
		if _, err := f.WriteString("go\n"); err != nil {
			t.Error(err)
		}
	}
}
