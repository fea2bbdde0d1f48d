// Command guest does what tests of its host ask for, by its first argument.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	// Lines of the last argument are commands, as in: guest -c 'write a x'.
	script := os.Args[len(os.Args)-1]
	for line := range strings.Lines(script) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if err := run(f); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", strings.TrimSpace(line), err)
			os.Exit(1)
		}
	}
}

var sink uint64

func run(f []string) error {
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	n, _ := strconv.Atoi(arg(2))
	switch f[0] {
	case "exit":
		n, _ := strconv.Atoi(arg(1))
		os.Exit(n)
	case "echo":
		fmt.Println(strings.Join(f[1:], " "))
	case "env":
		fmt.Println(os.Getenv(arg(1)))
	case "args":
		fmt.Printf("%q\n", os.Args)
	case "cat":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "read":
		b, err := os.ReadFile(arg(1))
		fmt.Printf("%s", b)
		return err
	case "fails": // the rest does
		err := run(f[1:])
		if err == nil {
			return fmt.Errorf("did not fail")
		}
		fmt.Println(err)
	case "write": // PATH N bytes
		h, err := os.Create(arg(1))
		if err != nil {
			return err
		}
		w := bufio.NewWriterSize(h, 32<<10)
		for range n {
			if err := w.WriteByte('x'); err != nil {
				return err
			}
		}
		if err := w.Flush(); err != nil {
			return err
		}
		return h.Close()
	case "files": // PATH N
		for i := range n {
			if err := os.WriteFile(fmt.Sprint(arg(1), i), nil, 0o644); err != nil {
				return err
			}
		}
	case "open": // PATH N handles
		for range n {
			if _, err := os.Open(arg(1)); err != nil {
				return err
			}
		}
	case "symlink":
		return os.Symlink(arg(1), arg(2))
	case "link":
		return os.Link(arg(1), arg(2))
	case "rename":
		return os.Rename(arg(1), arg(2))
	case "mkdir":
		return os.MkdirAll(arg(1), 0o755)
	case "rm":
		return os.RemoveAll(arg(1))
	case "ls":
		es, err := os.ReadDir(arg(1))
		for _, e := range es {
			fmt.Print(e.Name(), " ")
		}
		fmt.Println()
		return err
	case "count":
		es, err := os.ReadDir(arg(1))
		fmt.Print(len(es), " ")
		return err
	case "type":
		fi, err := os.Lstat(arg(1))
		if err != nil {
			return err
		}
		fmt.Print(fi.Mode().Type(), " ")
	case "date":
		fmt.Println(time.Now().UTC().Format(time.RFC3339))
	case "random":
		b := make([]byte, 8)
		h, err := os.Open("/dev/urandom")
		if err == nil {
			_, err = h.Read(b)
		}
		fmt.Printf("%x %v\n", b, err != nil)
	case "sleep":
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			return err
		}
		time.Sleep(d)
	case "spin":
		for {
			sink++
		}
	case "calls":
		fmt.Println(fib(1000))
	case "print":
		for {
			fmt.Println("0123456789012345678901234567890123456789")
		}
	case "grow":
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			b[0] = 1
			all = append(all, b)
			sink += uint64(len(all))
		}
	case "panic":
		panic("as told")
	default:
		return fmt.Errorf("unknown")
	}
	return nil
}

//go:noinline
func fib(n int) int {
	if n < 2 {
		return n
	}
	return fib(n-1) + fib(n-2)
}
