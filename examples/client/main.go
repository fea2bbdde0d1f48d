// Command client runs one task by the daemon at the socket it is given and
// prints what became of it, with the task's output as it comes.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/rpc"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: client SOCKET")
	}
	ctx := executor.WithEvents(context.Background(), func(ev executor.TaskEvent) {
		if ev.Kind == executor.EventStdout {
			os.Stdout.Write(ev.Data)
		}
	})
	client, err := rpc.Dial(ctx, os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	out, err := client.Execute(ctx, &executor.TaskSpec{
		Name:    "hello",
		Script:  "echo hello from $(id -un); sleep 0.1; echo bye",
		Timeout: 10 * time.Second,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s with exit code %d in %v (cached: %v)\n", out.Cause, out.ExitCode, out.Duration, out.Cached)
}
