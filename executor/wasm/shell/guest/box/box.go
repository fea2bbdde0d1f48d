// Package box holds the tools of the wasm shell, each with the options that build
// scripts use of its GNU namesake, the same output, exit status and words of error.
// An option that a tool does not have is an error, as is an unknown one.
package box

import (
	"bufio"
	"io"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// Tools returns all tools by their names.
func Tools() map[string]tool.Func {
	return map[string]tool.Func{
		"basename": basename,
		"cat":      cat,
		"chmod":    chmod,
		"cp":       cp,
		"date":     date,
		"dirname":  dirname,
		"echo":     echo,
		"cut":      cut,
		"sort":     sort,
		"tr":       tr,
		"uniq":     uniq,
		"env":      env,
		"head":     head,
		"ln":       ln,
		"ls":       ls,
		"mkdir":    mkdir,
		"mktemp":   mktemp,
		"mv":       mv,
		"printenv": printenv,
		"printf":   printf,
		"readlink": readlink,
		"realpath": realpath,
		"rm":       rm,
		"rmdir":    rmdir,
		"seq":      seq,
		"sleep":    sleep,
		"tail":     tail,
		"tee":      tee,
		"touch":    touch,
		"uname":    uname,
		"wc":       wc,
		"yes":      yes,
	}
}

// maxLine is the longest line that a tool takes: it must fit into memory several times.
const maxLine = 64 << 20

// lines calls fn with each line, without its end, and whether it had one. fn
// returning false ends it.
func lines(r io.Reader, end byte, fn func(line string, ended bool) bool) error {
	br := bufio.NewReaderSize(r, 32<<10)
	var long []byte
	for {
		b, err := br.ReadSlice(end)
		if err == bufio.ErrBufferFull {
			if long = append(long, b...); len(long) > maxLine {
				return errLongLine
			}
			continue
		}
		if long != nil {
			b = append(long, b...)
			long = nil
		}
		if err != nil && err != io.EOF {
			return err
		}
		if len(b) > 0 {
			line := string(b)
			cut := strings.TrimSuffix(line, string(end))
			if !fn(cut, len(cut) < len(line)) {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

type errString string

func (e errString) Error() string { return string(e) }

const errLongLine = errString("line too long")
