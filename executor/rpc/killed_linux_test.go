package rpc_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// Clients that are killed are processes: this binary, which runs TestVictim alone.
const victimEnv = "SANDBOXD_TEST_VICTIM"

// victims say "ready" where they are to be killed, and then wait for it.
var victims = map[string]func(t *testing.T, socket, arg string){
	"mid-handshake": func(t *testing.T, socket, _ string) {
		n := dialRaw(t, socket)
		_, _ = n.Write([]byte("PRI * HTTP"))
		ready()
	},
	"mid-message": func(t *testing.T, socket, _ string) {
		_, f := rawFrames(t, socket)
		_ = f.WriteData(1, false, append(binary.BigEndian.AppendUint32([]byte{0}, 1<<20), "half"...))
		ready()
	},
	"mid-task": func(t *testing.T, socket, _ string) {
		ctx := executor.WithEvents(t.Context(), func(e executor.TaskEvent) {
			if e.Kind == executor.EventStdout {
				ready()
			}
		})
		_, _ = dial(t, socket).Execute(ctx, &executor.TaskSpec{Name: "victim", Script: "echo x; sleep 1000"})
	},
	"mid-blob": func(t *testing.T, socket, arg string) {
		d, err := executor.ParseDigest(arg)
		if err != nil {
			t.Fatal(err)
		}
		_ = dial(t, socket).ReadBlob(t.Context(), d, stuck{})
	},
}

// ready is where a victim stays.
func ready() {
	fmt.Println("ready")
	time.Sleep(time.Hour)
}

// stuck is a Writer whose first Write does not return.
type stuck struct{}

func (stuck) Write([]byte) (int, error) {
	ready()
	return 0, nil
}

func TestVictim(t *testing.T) {
	how := os.Getenv(victimEnv)
	if how == "" {
		t.Skip("is run by TestKilledClientsCostOnlyTheirOwn")
	}
	victims[how](t, os.Getenv(victimEnv+"_SOCKET"), os.Getenv(victimEnv+"_ARG"))
}

// kill starts a victim, and kills it where it says that it is ready.
func kill(t *testing.T, how, socket, arg string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestVictim$")
	cmd.Env = append(os.Environ(), victimEnv+"="+how, victimEnv+"_SOCKET="+socket, victimEnv+"_ARG="+arg)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Errorf("the victim said %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // it was killed
}

// blobs tells when each blob that was opened is closed.
type blobs struct {
	observed
	closed chan struct{}
}

func (b blobs) OpenBlob(ctx context.Context, d executor.Digest) (io.ReadCloser, error) {
	r, err := b.observed.OpenBlob(ctx, d)
	if err != nil {
		return nil, err
	}
	return &blob{ReadCloser: r, closed: b.closed}, nil
}

type blob struct {
	io.ReadCloser
	closed chan struct{}
}

func (b *blob) Close() error {
	b.closed <- struct{}{}
	return b.ReadCloser.Close()
}

func TestKilledClientsCostOnlyTheirOwn(t *testing.T) {
	for how := range victims {
		t.Run(how, func(t *testing.T) {
			testutil.CheckLeaks(t)
			o, _, _ := observe(t)
			b := blobs{o, make(chan struct{}, 10)}
			_, socket := serve(t, rpc.ServerConfig{Executor: o, Blobs: b})
			c := dial(t, socket)
			made, err := c.Execute(t.Context(), &executor.TaskSpec{Name: "blob", Script: "head -c 30000000 /dev/zero"})
			if err != nil {
				t.Fatal(err)
			}
			// A bystander, whose task must not end before it is let go.
			spec := script("read line; echo end")
			release := hold(t, spec)
			started := make(chan struct{})
			ctx := executor.WithEvents(t.Context(), func(e executor.TaskEvent) {
				if e.Kind == executor.EventStarted {
					close(started)
				}
			})
			var bystander sync.WaitGroup
			bystander.Go(func() {
				out, err := c.Execute(ctx, &executor.TaskSpec{Name: "bystander", Script: string(spec.GetScript())})
				if err != nil || string(out.Stdout.Inline) != "end\n" {
					t.Errorf("the bystander's task: %+v, %v", out, err)
				}
			})
			<-started
			kill(t, how, socket, made.Stdout.Digest.String())
			switch how {
			case "mid-task":
				if e := o.await(t, "victim"); e.err != nil || e.out.Cause != executor.CauseCanceled {
					t.Errorf("the victim's task: %+v, %v; want canceled", e.out, e.err)
				}
			case "mid-blob":
				select {
				case <-b.closed:
				case <-time.After(patience):
					t.Error("the victim's blob is not closed")
				}
			}
			healthy(t, socket)
			if s, err := c.Status(t.Context()); err != nil || s.Active != 1 {
				t.Errorf("status %+v, %v; want the bystander's task active, and no other", s, err)
			}
			release()
			bystander.Wait()
		})
	}
}
