package sh

import (
	"io"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// substitution is the builtin that makes the file of a process substitution.
const substitution = "_wasm_substitution"

// trapInSubshell is what trap is called where the interpreter would forget it.
const trapInSubshell = ownPrefix + "trap"

// adapt changes a parsed script where the interpreter would do other than bash:
//
//   - The last command of a pipeline is run in a subshell too, so that `| while read x`
//     can neither set the script's variables nor exit it.
//   - Where the status of a command is looked at, errexit is off in its subshells too.
//   - The elements of arrays can be appended to, and those of associative ones counted.
//   - `declare -A m` sets m, so that nounset does not take its elements for unset.
//   - What is negated does not end the shell, whatever it is.
//   - `<(…)` is a file that holds what the command wrote. It is run to its end before.
//   - What the interpreter would take for something else is an error: see refuse.
//   - A subshell does not forget its trap silently: see [trapInSubshell].
func (r *runner) adapt(file *syntax.File) {
	r.functions(file)
	maps := associative(file)
	ignored := ignoringErrexit(file)
	negated := map[*syntax.Stmt]bool{}
	looped := map[*syntax.DeclClause]bool{}
	syntax.Walk(file, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.BinaryCmd:
			if n.Op != syntax.Pipe && n.Op != syntax.PipeAll {
				break
			}
			forgetsTraps(n)
			if ignored[n] && !r.simple(n.X) {
				n.X = orExit([]*syntax.Stmt{n.X}, n.X)
			}
			if !r.simple(n.Y) {
				sub := []*syntax.Stmt{n.Y}
				if ignored[n] {
					sub = []*syntax.Stmt{orExit(sub, n.Y)}
				}
				n.Y = &syntax.Stmt{Position: n.Y.Position, Cmd: &syntax.Subshell{Lparen: n.Y.Pos(), Rparen: n.Y.End(), Stmts: sub}}
			}
		case *syntax.Subshell:
			forgetsTraps(n)
			if ignored[n] && len(n.Stmts) > 0 {
				n.Stmts = []*syntax.Stmt{orExit(n.Stmts, n)}
			}
		case *syntax.CmdSubst:
			forgetsTraps(n)
		case *syntax.Stmt:
			if n.Background {
				forgetsTraps(n)
			}
			if n.Negated && !negated[n] {
				negated[negate(n)] = true
			}
		case *syntax.Redirect:
			if n.Op == syntax.RdrClob {
				n.Op = syntax.RdrOut // noclobber cannot be set
			}
		case *syntax.WhileClause, *syntax.ForClause:
			syntax.Walk(n, func(in syntax.Node) bool {
				if d, ok := in.(*syntax.DeclClause); ok {
					looped[d] = true
				}
				return true
			})
		case *syntax.DeclClause:
			// In a loop it would empty what it made the time before.
			if !looped[n] {
				setMaps(n, maps)
			}
		case *syntax.CallExpr:
			n.Assigns = assigns(n.Assigns, maps)
		case *syntax.Word:
			parts(n.Parts, maps)
		case *syntax.DblQuoted:
			parts(n.Parts, maps)
		}
		return true
	})
}

// ignoringErrexit are the subshells and pipelines in which a failing command does not
// end the shell, since somebody looks at what becomes of the whole.
func ignoringErrexit(file *syntax.File) map[syntax.Node]bool {
	all := map[syntax.Node]bool{}
	mark := func(stmts ...*syntax.Stmt) {
		for _, s := range stmts {
			syntax.Walk(s, func(n syntax.Node) bool {
				switch n.(type) {
				case *syntax.Subshell, *syntax.BinaryCmd:
					all[n] = true
				case *syntax.FuncDecl, *syntax.CmdSubst:
					return false
				}
				return true
			})
		}
	}
	syntax.Walk(file, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.IfClause:
			mark(n.Cond...)
		case *syntax.WhileClause:
			mark(n.Cond...)
		case *syntax.BinaryCmd:
			if n.Op == syntax.AndStmt || n.Op == syntax.OrStmt {
				mark(n.X)
			}
		case *syntax.Stmt:
			if n.Negated {
				mark(n)
			}
		}
		return true
	})
	return all
}

// orExit makes `{ STMTS; } || exit` of statements, in a subshell whose end this is: the
// status is theirs, and errexit does not look at what comes before.
func orExit(stmts []*syntax.Stmt, at syntax.Node) *syntax.Stmt {
	block := &syntax.Stmt{Position: at.Pos(), Cmd: &syntax.Block{Lbrace: at.Pos(), Rbrace: at.End(), Stmts: stmts}}
	exit := &syntax.Stmt{Position: at.End(), Cmd: &syntax.CallExpr{Args: []*syntax.Word{literalWord("exit")}}}
	return &syntax.Stmt{Position: at.Pos(), Cmd: &syntax.BinaryCmd{OpPos: at.End(), Op: syntax.OrStmt, X: block, Y: exit}}
}

func literalWord(s string) *syntax.Word {
	return &syntax.Word{Parts: []syntax.WordPart{&syntax.Lit{Value: s}}}
}

// forgetsTraps renames the calls of trap below a node.
func forgetsTraps(n syntax.Node) {
	syntax.Walk(n, func(n syntax.Node) bool {
		if call, ok := n.(*syntax.CallExpr); ok && len(call.Args) > 0 && call.Args[0].Lit() == "trap" {
			call.Args[0] = literalWord(trapInSubshell)
		}
		_, isFunc := n.(*syntax.FuncDecl)
		return !isFunc
	})
}

// associative are the names that are declared as associative arrays anywhere.
func associative(file *syntax.File) map[string]bool {
	names := map[string]bool{}
	syntax.Walk(file, func(n syntax.Node) bool {
		d, ok := n.(*syntax.DeclClause)
		if !ok {
			return true
		}
		is := false
		for _, a := range d.Args {
			switch {
			case a.Name == nil && a.Value != nil && strings.HasPrefix(a.Value.Lit(), "-"):
				is = is || strings.Contains(a.Value.Lit(), "A")
			case a.Name != nil && strings.HasPrefix(a.Name.Value, "-"):
				is = is || strings.Contains(a.Name.Value, "A")
			case a.Name != nil && is:
				names[a.Name.Value] = true
			}
		}
		return true
	})
	return names
}

func setMaps(d *syntax.DeclClause, maps map[string]bool) {
	for _, a := range d.Args {
		if a.Naked && a.Name != nil && maps[a.Name.Value] && (d.Variant.Value == "declare" || d.Variant.Value == "local") {
			a.Naked, a.Array = false, &syntax.ArrayExpr{Lparen: a.Pos(), Rparen: a.End()}
		}
	}
}

// assigns writes NAME[I]+=V as NAME[I]="${NAME[I]-}"V, and MAP+=([K]=V …) as MAP[K]=V … .
func assigns(list []*syntax.Assign, maps map[string]bool) []*syntax.Assign {
	var out []*syntax.Assign
	for _, a := range list {
		switch {
		case !a.Append || a.Name == nil:
		case a.Index != nil:
			old := &syntax.ParamExp{Param: a.Name, Index: a.Index, Exp: &syntax.Expansion{Op: syntax.DefaultUnset}}
			value := &syntax.Word{Parts: []syntax.WordPart{&syntax.DblQuoted{Parts: []syntax.WordPart{old}}}}
			if a.Value != nil {
				value.Parts = append(value.Parts, a.Value.Parts...)
			}
			a.Append, a.Value = false, value
		case a.Array != nil && maps[a.Name.Value]:
			for _, e := range a.Array.Elems {
				out = append(out, &syntax.Assign{Name: a.Name, Index: e.Index, Value: e.Value})
			}
			continue
		}
		out = append(out, a)
	}
	return out
}

// template parses what is written in Go as text rather than as a tree.
func template(src string) *syntax.Stmt {
	file, err := syntax.NewParser().Parse(strings.NewReader(src), "")
	if err != nil || len(file.Stmts) != 1 {
		panic("not one statement: " + src) // it is a constant, but for names
	}
	return file.Stmts[0]
}

func templateWord(src string) *syntax.Word {
	return template("echo " + src).Cmd.(*syntax.CallExpr).Args[1]
}

// negate makes `! if X; then :; else ! :; fi` of `! X`: a condition fails without an end. It returns
// the other negated statement of that.
func negate(s *syntax.Stmt) *syntax.Stmt {
	inner := &syntax.Stmt{Position: s.Position, Cmd: s.Cmd, Redirs: s.Redirs}
	clause := template("if :; then :; else ! :; fi").Cmd.(*syntax.IfClause)
	clause.Cond = []*syntax.Stmt{inner}
	s.Cmd, s.Redirs = clause, nil
	return clause.Else.Then[0]
}

// parts mends parts of a word.
func parts(parts []syntax.WordPart, maps map[string]bool) {
	for i, p := range parts {
		switch p := p.(type) {
		case *syntax.ProcSubst:
			parts[i] = processSubstitution(p)
		case *syntax.ParamExp:
			if p.Param == nil {
				break
			}
			if why := refuse(p); why != "" {
				parts[i] = templateWord("${_wasm_shell:?" + why + " is not supported in the wasm shell}").Parts[0]
			} else if index, ok := p.Index.(*syntax.Word); p.Length && ok && maps[p.Param.Value] && (index.Lit() == "@" || index.Lit() == "*") {
				// The interpreter takes it for 1.
				parts[i] = templateWord(`$(set -- "${` + p.Param.Value + `[@]}"; echo $#)`).Parts[0]
			}
		}
	}
}

// refuse says what of a parameter expansion the interpreter would silently take for
// something else.
func refuse(p *syntax.ParamExp) string {
	if p.Param.Value == "PIPESTATUS" {
		return "PIPESTATUS"
	}
	if p.Exp != nil && p.Exp.Word != nil && slices.ContainsFunc(p.Exp.Word.Parts, func(w syntax.WordPart) bool { _, ok := w.(*syntax.ExtGlob); return ok }) {
		return "an extended glob in an expansion"
	}
	if p.Repl == nil || p.Repl.Orig == nil || len(p.Repl.Orig.Parts) == 0 {
		return ""
	}
	if first, ok := p.Repl.Orig.Parts[0].(*syntax.Lit); ok && (strings.HasPrefix(first.Value, "#") || strings.HasPrefix(first.Value, "%")) {
		return "replacing at the beginning or the end"
	}
	return ""
}

// processSubstitution writes <(STMTS) with a temporary file.
func processSubstitution(p *syntax.ProcSubst) syntax.WordPart {
	if p.Op != syntax.CmdIn {
		return templateWord("${_wasm_shell:?a process substitution for writing is not supported in the wasm shell}").Parts[0]
	}
	quoted := templateWord(`"$(_=$(builtin ` + substitution + `) && { :; } >"$_"; echo "$_")"`)
	syntax.Walk(quoted, func(n syntax.Node) bool {
		if b, ok := n.(*syntax.Block); ok {
			b.Stmts = p.Stmts
			return false
		}
		return true
	})
	return quoted.Parts[0]
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
