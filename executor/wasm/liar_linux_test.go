package wasm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// beLiar is a worker that a task has taken over: it asks its executor for what arg says, and tells what came of it as the
// task's output.
func beLiar(arg string) {
	var asks []wire.File
	check(json.Unmarshal([]byte(arg), &asks))
	in := bufio.NewReader(os.Stdin)
	next := func(k wire.Kind) []byte {
		got, body, err := wire.Read(in, wire.MaxModule, nil)
		check(err)
		if got != k {
			check(fmt.Errorf("%q for %q", got, k))
		}
		return body
	}
	var load wire.Load
	check(json.Unmarshal(next(wire.KindLoad), &load))
	next(wire.KindModule)
	check(wire.Write(os.Stdout, wire.KindReady, []byte{0}))
	for {
		next(wire.KindTask)
		check(wire.WriteJSON(os.Stdout, wire.KindBegun, wire.Used{}))
		for _, ask := range asks {
			if ask.Do == "map" {
				// A page of zeros, mapped as often as there are addresses, takes no memory but for its tables.
				_, err := unix.Mmap(-1, 0, 1<<40, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
				check(wire.Write(os.Stdout, wire.KindStdout, fmt.Appendf(nil, "map: %v\n", err)))
				continue
			}
			if ask.Do == "events" {
				n := 0
				for ; ; n++ {
					if _, err := unix.Eventfd(0, 0); err != nil {
						break
					}
				}
				check(wire.Write(os.Stdout, wire.KindStdout, fmt.Appendf(nil, "events: %v\n", n < 70_000)))
				continue
			}
			b, err := json.Marshal(ask)
			check(err)
			check(wire.Write(os.Stdout, wire.KindFile, b))
			if ask.Number < 0 {
				next(wire.KindReply)
				continue // what it is sent it does not take
			}
			check(wire.Write(os.Stdout, wire.KindStdout, fmt.Appendf(nil, "%s %s: %s\n", ask.Do, ask.Path, answer(next(wire.KindReply), ask))))
		}
		check(wire.WriteJSON(os.Stdout, wire.KindDone, wire.Done{}))
	}
}

// beLate is a worker that is held up once its module is compiled: the first of all that are told of the directory arg, which they make,
// or each if arg is empty. The others run tasks that do nothing.
func beLate(arg string) {
	in := bufio.NewReader(os.Stdin)
	next := func() {
		_, _, err := wire.Read(in, wire.MaxModule, nil)
		check(err)
	}
	next()
	next()
	var r unix.Rusage
	check(unix.Getrusage(unix.RUSAGE_SELF, &r))
	check(wire.WriteJSON(os.Stdout, wire.KindCompiled, wire.Compiled{Used: wire.Used{CPUUser: time.Duration(r.Utime.Nano()), CPUSystem: time.Duration(r.Stime.Nano())}}))
	if arg == "" || os.Mkdir(arg, 0o700) == nil {
		next() // there is nothing
	}
	check(wire.Write(os.Stdout, wire.KindReady, []byte{0}))
	for {
		next()
		check(wire.WriteJSON(os.Stdout, wire.KindBegun, wire.Used{}))
		check(wire.WriteJSON(os.Stdout, wire.KindDone, wire.Done{}))
	}
}

// answer is what a reply says, in words.
func answer(b []byte, ask wire.File) string {
	if b[0] != 0 {
		return string(b[1:])
	}
	var r wire.FileReply
	check(json.Unmarshal(b[1:], &r))
	if r.Errno != 0 {
		return fmt.Sprint("error ", r.Errno)
	}
	s := "done"
	for _, i := range r.Infos {
		s += fmt.Sprintf(" %s %o", i.Name, i.Mode)
	}
	if ask.Do == wire.FileOpen || ask.Do == wire.FileCreate || ask.Do == wire.FileScratch {
		oob := make([]byte, unix.CmsgSpace(4*(1+len(ask.Ahead))))
		_, n, _, _, err := unix.Recvmsg(wire.Files, make([]byte, 1), oob, 0)
		check(err)
		all, err := unix.ParseSocketControlMessage(oob[:n])
		check(err)
		fds, err := unix.ParseUnixRights(&all[0])
		check(err)
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "file")
			content, err := io.ReadAll(f)
			check(err)
			_, err = f.Write([]byte("x"))
			s += fmt.Sprintf(" %q write: %v", content, err)
			check(f.Close())
		}
	}
	return s
}

// check ends a process that another test has started.
func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
