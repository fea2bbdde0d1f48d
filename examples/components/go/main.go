//go:build wasip1

// Command executor is a component of the world in wit/executor.wit: see ../README.md.
package main

import (
	"fmt"
	"strconv"
	"strings"
)

func main() {} // of a program that is called, and does not run

type output struct {
	stdout string
	files  [][2]string
	code   int
}

func run(name, script string) (*output, error) {
	log("info", name)
	o := &output{}
	for line := range strings.Lines(script) {
		command, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch command {
		case "say":
			o.stdout += rest + "\n"
		case "put":
			path, content, _ := strings.Cut(rest, " ")
			hash, err := store(content)
			if err != nil {
				return nil, err
			}
			o.files = append(o.files, [2]string{path, hash})
		case "get":
			content, err := fetch(rest)
			if err != nil {
				return nil, err
			}
			o.stdout += content
		case "exit":
			o.code, _ = strconv.Atoi(rest)
			return o, nil
		case "":
		default:
			return nil, fmt.Errorf("no such command: %s", command)
		}
	}
	return o, nil
}
