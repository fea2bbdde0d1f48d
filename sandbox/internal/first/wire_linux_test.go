package first

import (
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestRunSendsAllFiles: a program with more files than one message holds comes whole and in order, or not at all.
func TestRunSendsAllFiles(t *testing.T) {
	testutil.CheckLeaks(t)
	host, inside, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	defer inside.Close()
	program, err := Memfd("program", func(w io.Writer) error { _, err := io.WriteString(w, "steps"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	files := make([]*os.File, MaxFiles+1)
	for i := range files {
		files[i] = program
	}
	if err := Run(host, program, 1, 5, files); err == nil {
		t.Error("too many files were sent")
	}
	if err := Run(host, program, 1, 5, files[:maxFDs+1]); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{fmt.Sprint('F', maxFDs), fmt.Sprint('R', 2)} {
		c := &child
		c.sock, c.count = inside.Fd(), 0
		readyChild()
		if receiveMessage(0); !accept() {
			t.Fatalf("message %d does not come", i)
		}
		got := fmt.Sprint(c.in[0], c.count)
		closeFiles()
		if got != want {
			t.Errorf("message %d is %s, not %s", i, got, want)
		}
	}
	host.Close()
	if receiveMessage(0); accept() {
		t.Error("a message came when the host had ended")
	}
	if _, _, _, err := Receive(inside); !errors.Is(err, io.EOF) {
		t.Errorf("the end of the other is %v", err)
	}
}
