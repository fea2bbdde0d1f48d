package sh

import (
	"io"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// adapt changes a parsed script where the interpreter would do other than bash: the
// last command of a pipeline is run in a subshell too, so that `| while read x` can
// neither set the script's variables nor exit it.
func (r *runner) adapt(file *syntax.File) {
	r.functions(file)
	syntax.Walk(file, func(n syntax.Node) bool {
		if b, ok := n.(*syntax.BinaryCmd); ok && (b.Op == syntax.Pipe || b.Op == syntax.PipeAll) && !r.simple(b.Y) {
			b.Y = &syntax.Stmt{Position: b.Y.Position, Cmd: &syntax.Subshell{
				Lparen: b.Y.Pos(), Rparen: b.Y.End(), Stmts: []*syntax.Stmt{b.Y},
			}}
		}
		return true
	})
}

// learn notes the functions that a piece of script declares, if it can be parsed.
func (r *runner) learn(src io.Reader) {
	if file, err := syntax.NewParser().Parse(src, ""); err == nil {
		r.functions(file)
	}
}

func (r *runner) functions(file *syntax.File) {
	syntax.Walk(file, func(n syntax.Node) bool {
		if f, ok := n.(*syntax.FuncDecl); ok && f.Name != nil {
			r.mu.Lock()
			r.funcs[f.Name.Value] = true
			r.mu.Unlock()
		}
		return true
	})
}

// simple tells whether a statement changes nothing of the shell that runs it: it
// calls a tool.
func (r *runner) simple(s *syntax.Stmt) bool {
	call, ok := s.Cmd.(*syntax.CallExpr)
	if !ok || len(call.Args) == 0 {
		return false
	}
	name := call.Args[0].Lit()
	return name != "" && !r.declared(name) && (own[ownPrefix+name] != nil && name != "umask" || !interp.IsBuiltin(name))
}
