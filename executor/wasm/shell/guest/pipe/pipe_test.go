package pipe

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestHoldsWhatFits(t *testing.T) {
	r, w := New()
	if n, err := w.Write(make([]byte, size)); n != size || err != nil {
		t.Fatal(n, err)
	}
	r.Close()
	if _, err := w.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Fatalf("a write without a reader: %v", err)
	}
}

func TestWriterWaitsForRoom(t *testing.T) {
	r, w := New()
	sent := bytes.Repeat([]byte("0123456789"), size/2)
	go func() {
		w.Write(sent)
		w.Close()
	}()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("got %d of %d bytes, %v", len(got), len(sent), err)
	}
}

func TestCloseWakesWriter(t *testing.T) {
	r, w := New()
	done := make(chan error)
	go func() {
		_, err := w.Write(make([]byte, 2*size))
		done <- err
	}()
	r.Read(make([]byte, 1))
	r.Close()
	if err := <-done; !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(err)
	}
}
