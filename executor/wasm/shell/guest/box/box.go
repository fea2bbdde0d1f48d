// Package box holds the tools of the wasm shell, each with the options that build
// scripts use of its GNU namesake, the same output, exit status and words of error.
// An option that a tool does not have is an error, as is an unknown one.
package box

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/sed"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// Tools returns all tools by their names.
func Tools() map[string]tool.Func {
	all := sums()
	maps.Copy(all, map[string]tool.Func{
		"awk":      awk,
		"base64":   base64Tool,
		"basename": basename,
		"cat":      cat,
		"chgrp":    chown,
		"chmod":    chmod,
		"chown":    chown,
		"cksum":    cksum,
		"cmp":      cmpTool,
		"column":   column,
		"comm":     comm,
		"cp":       cp,
		"cut":      cut,
		"date":     date,
		"dd":       dd,
		"diff":     diff,
		"dirname":  dirname,
		"du":       du,
		"echo":     echo,
		"egrep":    egrep,
		"env":      env,
		"expand":   expand,
		"expr":     expr,
		"fgrep":    fgrep,
		"find":     find,
		"fold":     fold,
		"grep":     grep,
		"gunzip":   gunzip,
		"gzip":     gzipTool,
		"head":     head,
		"id":       id,
		"install":  install,
		"join":     joinTool,
		"jq":       jq,
		"ln":       ln,
		"ls":       ls,
		"mkdir":    mkdir,
		"mktemp":   mktemp,
		"mv":       mv,
		"nl":       nl,
		"nproc":    nproc,
		"od":       od,
		"paste":    paste,
		"printenv": printenv,
		"printf":   printf,
		"readlink": readlink,
		"realpath": realpath,
		"rev":      rev,
		"rm":       rm,
		"rmdir":    rmdir,
		"sed":      sed.Run,
		"seq":      seq,
		"sleep":    sleep,
		"sort":     sort,
		"split":    split,
		"stat":     stat,
		"tac":      tac,
		"tail":     tail,
		"tar":      tarTool,
		"tee":      tee,
		"timeout":  timeout,
		"touch":    touch,
		"tr":       tr,
		"truncate": truncate,
		"uname":    uname,
		"uniq":     uniq,
		"wc":       wc,
		"which":    which,
		"xargs":    xargs,
		"yes":      yes,
		"zcat":     zcat,
	})
	return all
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

// errString is an error in the words of the tool that is imitated.
type errString string

func errorf(format string, a ...any) error { return errString(fmt.Sprintf(format, a...)) }

func (e errString) Error() string { return string(e) }

const errLongLine = errString("line too long")
