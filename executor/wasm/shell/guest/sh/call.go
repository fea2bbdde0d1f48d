package sh

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/executor/wasm/shell/guest/tool"
	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// ownPrefix marks a builtin that is run by own and not by the interpreter. No
// command has such a name.
const ownPrefix = "\x00"

// own are the builtins that are ours: those which the interpreter has not, or of
// which it knows too little. A loop that writes by them into a pipe that nobody
// reads must end too, which is for us to see to.
var own = map[string]tool.Func{
	ownPrefix + "echo":   echo,
	ownPrefix + "printf": printf,
	ownPrefix + "umask":  umask,
}

// intercept sees each simple command before it is looked up, and may put another in
// its place.
func (r *runner) intercept(ctx context.Context, args []string) ([]string, error) {
	if r.declared(args[0]) {
		return args, nil
	}
	switch args[0] {
	case "echo", "umask":
		return ownCall(args), nil
	case "printf":
		if len(args) > 2 && args[1] == "-v" {
			return r.printfInto(ctx, args), nil
		}
		return ownCall(args), nil
	case "command", "builtin":
		return r.command(ctx, args)
	case "type":
		return r.typeOf(ctx, args), nil
	case "trap":
		return trap(args), nil
	case "return":
		if len(args) == 1 {
			return []string{"return", strconv.Itoa(interp.HandlerCtx(ctx).LastExitStatus)}, nil
		}
	case "hash":
		for _, name := range args[1:] {
			if !strings.HasPrefix(name, "-") && !r.found(ctx, name) {
				return fail(ctx, 1, "hash: %s: not found", name), nil
			}
		}
		return []string{":"}, nil
	case "set":
		return set(args), nil
	case "cd":
		return cd(ctx, args), nil
	case "read":
		return r.read(ctx, args)
	case "mapfile", "readarray":
		if rest, u := takeOption(args, "dnsOcC", 'u'); u != "" {
			return readFrom(ctx, rest, u), nil
		}
	case "export", "readonly", "declare", "typeset", "local":
		// As a keyword the interpreter takes them only where they are first of all.
		for i, a := range args {
			args[i] = quote(a)
		}
		return []string{"eval", strings.Join(args, " ")}, nil
	case "eval":
		r.learn(strings.NewReader(strings.Join(args[1:], " ")))
	case ".", "source":
		if len(args) > 1 {
			if f, err := os.Open(tool.Abs(interp.HandlerCtx(ctx).Dir, args[1])); err == nil {
				r.learn(f)
				f.Close()
			}
		}
	}
	return args, nil
}

func ownCall(args []string) []string {
	return append([]string{ownPrefix + args[0]}, args[1:]...)
}

func fail(ctx context.Context, status int, format string, a ...any) []string {
	fmt.Fprintf(interp.HandlerCtx(ctx).Stderr, "sh: "+format+"\n", a...)
	return []string{"eval", fmt.Sprintf("(exit %d)", status)}
}

func quote(s string) string {
	q, err := syntax.Quote(s, syntax.LangBash)
	if err != nil { // a NUL, which no variable holds
		return quote(strings.ReplaceAll(s, "\x00", ""))
	}
	return q
}

func echo(_ context.Context, c *tool.Call) int {
	args := c.Args[1:]
	newline, escapes := true, false
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && strings.Trim(args[0][1:], "neE") == "" {
		for _, l := range args[0][1:] {
			switch l {
			case 'n':
				newline = false
			default:
				escapes = l == 'e'
			}
		}
		args = args[1:]
	}
	s := strings.Join(args, " ")
	if escapes {
		var end bool
		if s, end = tool.Unescape(s, tool.EchoEscapes); end {
			newline = false
		}
	}
	c.Out.WriteString(s)
	if newline {
		c.Out.WriteByte('\n')
	}
	return 0
}

func printf(_ context.Context, c *tool.Call) int {
	args := c.Args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		c.Errorf("usage: printf [-v var] format [arguments]")
		return 2
	}
	return tool.Printf(c, c.Out, args[0], args[1:])
}

// printfInto is printf -v.
func (r *runner) printfInto(ctx context.Context, args []string) []string {
	if len(args) < 4 {
		return fail(ctx, 2, "printf: usage: printf -v NAME FORMAT [ARGUMENT...]")
	}
	if name, index, elem := strings.Cut(args[2], "["); !syntax.ValidName(name) || elem && !strings.HasSuffix(index, "]") {
		return fail(ctx, 2, "printf: `%s': not a valid identifier", args[2])
	}
	hc := interp.HandlerCtx(ctx)
	var b strings.Builder
	c := &tool.Call{Args: args[:1], Stderr: hc.Stderr}
	status := tool.Printf(c, &b, args[3], args[4:])
	return []string{"eval", fmt.Sprintf("%s=%s; (exit %d)", args[2], quote(b.String()), status)}
}

func umask(ctx context.Context, c *tool.Call) int {
	f, names, status, ok := c.Parse(tool.Options{Short: "+S", Status: 2})
	if !ok {
		return status
	}
	mask := c.Proc.Umask(-1)
	if len(names) == 0 {
		if f.Has("S") {
			fmt.Fprintf(c.Out, "u=%s,g=%s,o=%s\n", rwx(^mask>>6), rwx(^mask>>3), rwx(^mask))
			return 0
		}
		fmt.Fprintf(c.Out, "%04o\n", mask)
		return 0
	}
	m, err := tool.ParseMode(names[0], ^mask&0o777, true, 0)
	if err != nil {
		return c.Fail("%s: invalid mode", names[0])
	}
	if names[0][0] < '0' || names[0][0] > '9' {
		m = ^m & 0o777
	}
	if err := interp.HandlerCtx(ctx).Builtin(ctx, []string{"eval", fmt.Sprintf("%s=%o", maskVariable, m)}); err != nil {
		return 1
	}
	return 0
}

func rwx[T ~uint32](b T) string {
	s := ""
	for i, l := range "rwx" {
		if b&(4>>i) != 0 {
			s += string(l)
		}
	}
	return s
}

// command mends `command -v`, which knows no tools of ours, and `command` and
// `builtin` before builtins of ours.
func (r *runner) command(ctx context.Context, args []string) ([]string, error) {
	rest := args[1:]
	for len(rest) > 0 && (rest[0] == "-p" || rest[0] == "--") {
		rest = rest[1:]
	}
	if len(rest) == 0 {
		return []string{":"}, nil
	}
	if rest[0] == "-v" || rest[0] == "-V" {
		if len(rest) != 2 {
			return each([]string{"command", rest[0]}, rest[1:]), nil
		}
		switch name := rest[1]; {
		case r.isTool(ctx, name) && rest[0] == "-v":
			return ownCall([]string{"echo", "/usr/bin/" + name}), nil
		case r.isTool(ctx, name):
			return ownCall([]string{"echo", name + " is /usr/bin/" + name}), nil
		case rest[0] == "-V":
			return []string{"type", "--", name}, nil
		}
		return []string{"command", "-v", rest[1]}, nil
	}
	if strings.HasPrefix(rest[0], "-") {
		return args, nil
	}
	switch rest[0] {
	case "command", "builtin":
		return r.command(ctx, rest)
	case substitution:
		return ownCall([]string{"printf", "%s", r.substitutionFile(ctx)}), nil
	}
	if own[ownPrefix+rest[0]] != nil || mended[rest[0]] {
		was := r.hide(rest[0])
		defer r.show(rest[0], was)
		out, err := r.intercept(ctx, rest)
		if err == nil && interp.IsBuiltin(out[0]) {
			out = append([]string{"builtin"}, out...) // and no function
		}
		return out, err
	}
	return append(args[:1:1], rest...), nil
}

// substitutionFile makes a temporary file, which is removed with the others when the
// script ends.
func (r *runner) substitutionFile(ctx context.Context) string {
	dir := "/tmp"
	if d := interp.HandlerCtx(ctx).Env.Get("TMPDIR").String(); path.IsAbs(d) {
		dir = d
	}
	f, err := os.CreateTemp(dir, "sh-")
	if err != nil {
		fmt.Fprintf(interp.HandlerCtx(ctx).Stderr, "sh: cannot make a temporary file: %s\n", tool.Text(err))
		return ""
	}
	f.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.temporary = append(r.temporary, f.Name())
	return f.Name()
}

// mended are builtins of the interpreter whose arguments intercept changes.
var mended = map[string]bool{"trap": true, "set": true, "cd": true, "read": true, "mapfile": true, "readarray": true, "type": true, "export": true, "readonly": true, "declare": true, "typeset": true, "local": true}

// each is the command for each of several names, or none. It fails if one does.
func each(command, names []string) []string {
	var b strings.Builder
	b.WriteString("(_wasm_status=0; ")
	for _, n := range names {
		fmt.Fprintf(&b, "%s %s || _wasm_status=1; ", strings.Join(command, " "), quote(n))
	}
	return []string{"eval", b.String() + "exit $_wasm_status)"}
}

func (r *runner) typeOf(ctx context.Context, args []string) []string {
	mode, names := "", args[1:]
	for len(names) > 0 && len(names[0]) > 1 && names[0][0] == '-' {
		if names[0] != "--" {
			mode = names[0]
		}
		names = names[1:]
	}
	if len(names) != 1 {
		return each([]string{"type", mode}, names)
	}
	if !r.isTool(ctx, names[0]) {
		return args
	}
	switch mode {
	case "":
		return ownCall([]string{"echo", names[0] + " is /usr/bin/" + names[0]})
	case "-t":
		return ownCall([]string{"echo", "file"})
	case "-p", "-P":
		return ownCall([]string{"echo", "/usr/bin/" + names[0]})
	}
	return args
}

// isTool tells whether name is found among the tools and nowhere before.
func (r *runner) isTool(ctx context.Context, name string) bool {
	if r.declared(name) || interp.IsBuiltin(name) || r.shell.tool(name) == nil {
		return false
	}
	hc := interp.HandlerCtx(ctx)
	return r.shell.lookPath(&tool.Call{Dir: hc.Dir, Env: environ(hc.Env)}, name) == ""
}

// found tells whether there is a command of this name.
func (r *runner) found(ctx context.Context, name string) bool {
	if r.declared(name) || interp.IsBuiltin(name) || r.shell.tool(name) != nil {
		return true
	}
	hc := interp.HandlerCtx(ctx)
	return r.shell.lookPath(&tool.Call{Dir: hc.Dir, Env: environ(hc.Env)}, name) != ""
}

// signals can be named in a trap. None ever comes, since there is nobody to send one.
var signals = func() map[string]bool {
	m := map[string]bool{}
	for _, s := range strings.Fields("HUP INT QUIT ILL TRAP ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM TERM CHLD CONT TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS 1 2 3 6 13 14 15") {
		m[s] = true
	}
	return m
}()

// trap takes the signals away, which never come, and leaves EXIT and ERR. What else
// there is (DEBUG, RETURN) the interpreter refuses.
func trap(args []string) []string {
	if len(args) < 3 || strings.HasPrefix(args[1], "-") && args[1] != "-" && args[1] != "--" {
		if len(args) == 2 && signals[strings.TrimPrefix(args[1], "SIG")] {
			return []string{":"}
		}
		return args
	}
	at := 1
	if args[1] == "--" {
		at = 2
	}
	out := []string{"trap", "--", args[at]}
	if args[at] == "-" {
		out = []string{"trap", "-"}
	}
	dropped := false
	for _, s := range args[at+1:] {
		switch name := strings.TrimPrefix(s, "SIG"); {
		case s == "0":
			out = append(out, "EXIT")
		case signals[name]:
			dropped = true
		default:
			out = append(out, s)
		}
	}
	if dropped && len(out) == 3 && out[1] == "--" || dropped && len(out) == 2 {
		return []string{":"}
	}
	return out
}

// unchanging are options that make no difference here.
var unchanging = map[string]bool{"posix": true, "hashall": true, "h": true, "notify": true, "b": true, "monitor": true, "m": true, "functrace": true, "T": true, "histexpand": true, "H": true}

// set takes those away which change nothing.
func set(args []string) []string {
	out := []string{"set"}
	for i := 1; i < len(args); i++ {
		a := args[i]
		if a == "--" || a == "-" || a == "" || a[0] != '-' && a[0] != '+' {
			return append(out, args[i:]...)
		}
		for j, l := range a[1:] {
			switch {
			case unchanging[string(l)]:
			case l != 'o' || j < len(a)-2 || i+1 == len(args):
				out = append(out, a[:1]+string(l))
			default:
				if i++; !unchanging[args[i]] || len(args[i]) == 1 {
					out = append(out, a[:1]+"o", args[i])
				}
			}
		}
	}
	if len(out) == 1 && len(args) > 1 {
		return []string{":"}
	}
	return out
}

// cd knows -L, -P and --, which the interpreter does not.
func cd(ctx context.Context, args []string) []string {
	physical, names := false, args[1:]
	for len(names) > 0 && len(names[0]) > 1 && names[0][0] == '-' {
		if names[0] == "--" {
			names = names[1:]
			break
		}
		if strings.Trim(names[0][1:], "LP") != "" {
			return args
		}
		physical = strings.HasSuffix(names[0], "P")
		names = names[1:]
	}
	if physical && len(names) == 1 && names[0] != "-" {
		if p, err := filepath.EvalSymlinks(tool.Abs(interp.HandlerCtx(ctx).Dir, names[0])); err == nil {
			names = []string{p}
		}
	}
	return append([]string{"cd"}, names...)
}

// takeOption takes an option with a value out of a command's arguments. The letters in valued are those of others
// that have a value.
func takeOption(args []string, valued string, name byte) (rest []string, value string) {
	rest = args[:1:1]
	for i := 1; i < len(args); i++ {
		a := args[i]
		if len(a) < 2 || a[0] != '-' || a == "--" {
			return append(rest, args[i:]...), value
		}
		at := strings.IndexAny(a[1:], valued+string(name)) + 1
		if at == 0 {
			rest = append(rest, a)
			continue
		}
		v := a[at+1:]
		next := v == "" && i+1 < len(args)
		if next {
			i++
			v = args[i]
		}
		switch {
		case a[at] == name:
			value = v
			if a = a[:at]; a != "-" {
				rest = append(rest, a)
			}
		case next:
			rest = append(rest, a, v)
		default:
			rest = append(rest, a)
		}
	}
	return rest, value
}

// readFrom is a builtin that reads from the descriptor u.
func readFrom(ctx context.Context, args []string, u string) []string {
	if strings.Trim(u, "0123456789") != "" {
		return fail(ctx, 1, "%s: %s: invalid file descriptor specification", args[0], u)
	}
	var b strings.Builder
	b.WriteString("builtin")
	for _, a := range args {
		b.WriteString(" " + quote(a))
	}
	return []string{"eval", b.String() + " <&" + u}
}

// read is the builtin with the options that the interpreter's lacks: -d, -n, -N and -u.
// There is no -t.
func (r *runner) read(ctx context.Context, args []string) ([]string, error) {
	hc := interp.HandlerCtx(ctx)
	c := &tool.Call{Args: args, Stderr: hc.Stderr}
	f, names, _, ok := c.Parse(tool.Options{Short: "+rsa:p:d:n:N:t:u:", Status: 2})
	if !ok {
		return []string{"eval", "(exit 2)"}, nil
	}
	if f.Has("t") {
		return fail(ctx, 2, "read: -t is not supported in the wasm shell"), nil
	}
	if rest, u := takeOption(args, "apdnNt", 'u'); u != "" {
		return readFrom(ctx, rest, u), nil
	}
	if !f.Has("d", "n", "N") {
		return args, nil
	}
	delim, limit := byte('\n'), -1
	if d, given := f.Get("d"); given {
		if delim = 0; d != "" {
			delim = d[0]
		}
	}
	which := f.Last("n", "N")
	if n, given := f.Get(which); given {
		if _, err := fmt.Sscan(n, &limit); err != nil || limit < 0 {
			return fail(ctx, 1, "read: %s: invalid number", n), nil
		}
	}
	line, eof := readUntil(hc.Stdin, delim, limit, which == "N", f.Has("r"))
	var b strings.Builder
	array, isArray := f.Get("a")
	switch {
	case isArray && syntax.ValidName(array):
		b.WriteString(array + "=(")
		for _, v := range expand.ReadFields(&expand.Config{Env: hc.Env}, line, -1, f.Has("r")) {
			b.WriteString(quote(v) + " ")
		}
		b.WriteString("); ")
	case len(names) == 0:
		b.WriteString("REPLY=" + quote(line) + "; ")
	case which == "N":
		for i, n := range names {
			v := ""
			if i == 0 {
				v = line
			}
			b.WriteString(n + "=" + quote(v) + "; ")
		}
	default:
		fields := expand.ReadFields(&expand.Config{Env: hc.Env}, line, len(names), f.Has("r"))
		for i, n := range names {
			v := ""
			if i < len(fields) {
				v = fields[i]
			}
			b.WriteString(n + "=" + quote(v) + "; ")
		}
	}
	for _, n := range names {
		if !syntax.ValidName(n) {
			return fail(ctx, 1, "read: `%s': not a valid identifier", n), nil
		}
	}
	if eof {
		return []string{"eval", b.String() + "(exit 1)"}, nil
	}
	return []string{"eval", b.String() + "true"}, nil
}

// readUntil reads byte by byte, since what is behind is for the next command.
func readUntil(in io.Reader, delim byte, limit int, exact, raw bool) (line string, eof bool) {
	var b []byte
	one := make([]byte, 1)
	escaped := false
	for n := 0; limit < 0 || n < limit; {
		if in == nil {
			return string(b), true
		}
		if k, err := in.Read(one); k == 0 {
			if err == nil {
				continue
			}
			return string(b), true
		}
		if one[0] == delim && !exact && !escaped {
			return string(b), false
		}
		if !raw && one[0] == '\\' && !escaped {
			escaped = true
			b = append(b, '\\')
			continue
		}
		escaped = false
		b = append(b, one[0])
		n++
	}
	return string(b), false
}

// declared tells whether a function of this name may exist: if so, the
// interpreter decides.
func (r *runner) declared(name string) bool {
	r.mu.Lock()
	is := r.funcs[name]
	r.mu.Unlock() // not deferred: each command asks
	return is
}

func (r *runner) hide(name string) (was bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was = r.funcs[name]
	delete(r.funcs, name)
	return was
}

func (r *runner) show(name string, was bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if was {
		r.funcs[name] = true
	}
}
