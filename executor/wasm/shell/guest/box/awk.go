package box

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"

	"github.com/benhoyt/goawk/interp"
	"github.com/benhoyt/goawk/lexer"
	"github.com/benhoyt/goawk/parser"
	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
)

// awkDir keeps the process's working directory at that of the programs that run: goawk
// opens files relative to it. It is nobody else's concern.
var awkDir struct {
	sync.Mutex
	running  int
	dir, old string
}

// enterDir makes dir the working directory, which it can be for several programs at once, but not for
// two that are in different places.
func enterDir(dir string) error {
	awkDir.Lock()
	defer awkDir.Unlock()
	if awkDir.running > 0 && awkDir.dir != dir {
		return errors.New("two programs at once in different directories are not available in the wasm shell")
	}
	if awkDir.running == 0 {
		old, err := os.Getwd()
		if err != nil {
			return err
		}
		awkDir.dir, awkDir.old = dir, old
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	awkDir.running++
	return nil
}

func leaveDir() {
	awkDir.Lock()
	defer awkDir.Unlock()
	if awkDir.running--; awkDir.running == 0 {
		os.Chdir(awkDir.old)
	}
}

func awk(ctx context.Context, c *tool.Call) int {
	f, args, status, ok := c.Parse(tool.Options{Short: "+F:v:f:W:", Long: "field-separator:=F assign:=v file:=f version posix re-interval traditional", Status: 2})
	if !ok {
		return status
	}
	if f.Has("W") {
		return c.Usage(2, "the option -W is not available in the wasm shell")
	}
	if f.Has("version") {
		c.Out.WriteString("awk (goawk), with the options of GNU Awk\n")
		return 0
	}
	var src strings.Builder
	config := &interp.Config{Stdin: c.Stdin, Output: c.Out, Error: c.Stderr, Argv0: c.Args[0], Chars: true, NoExec: true, Environ: []string{}}
	for _, x := range f {
		switch x.Name {
		case "F":
			sep := x.Value
			if sep == "t" {
				sep = "\t"
			} else if s, err := lexer.Unescape(sep); err == nil {
				sep = s
			}
			config.Vars = append(config.Vars, "FS", sep)
		case "v":
			name, value, ok := strings.Cut(x.Value, "=")
			if !ok {
				return c.Usage(2, "'%s' argument to -v is not in the form 'var=value'", x.Value)
			}
			if value, err := lexer.Unescape(value); err == nil {
				config.Vars = append(config.Vars, name, value)
				continue
			}
			return c.Usage(2, "cannot read the value of '%s'", x.Value)
		case "f":
			r, err := c.Input(x.Value)
			var b bytes.Buffer
			if err == nil {
				_, err = b.ReadFrom(r)
				r.Close()
			}
			if err != nil {
				c.Errorf("can't open file %s: %s", x.Value, tool.Text(err))
				return 2
			}
			src.Write(b.Bytes())
			src.WriteByte('\n')
		}
	}
	if !f.Has("f") {
		if len(args) == 0 {
			return c.Usage(2, "a program is missing")
		}
		src.WriteString(args[0])
		args = args[1:]
	}
	for _, e := range c.Env {
		name, value, _ := strings.Cut(e, "=")
		config.Environ = append(config.Environ, name, value)
	}
	for i, a := range args {
		if a == "/dev/stdin" {
			args[i] = "-"
		}
	}
	config.Args = args
	h := &awkHost{ctx: ctx, c: c, records: strings.Contains(src.String(), "RS")}
	changed, extra := awkSource(src.String())
	config.Funcs = h.funcs(extra)
	program, err := parser.ParseProgram([]byte(changed), &parser.ParserConfig{Funcs: config.Funcs})
	if err != nil {
		c.Errorf("%v", err)
		return 2
	}
	if err := enterDir(c.Dir); err != nil {
		c.Errorf("%s", tool.Text(err))
		return 2
	}
	defer leaveDir()
	h.in, err = interp.New(program)
	if err == nil {
		status, err = h.in.ExecuteContext(ctx, config)
	}
	if err != nil {
		c.Errorf("%v", err)
		return 2
	}
	return status
}
