package sh

import (
	"io"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// substitution is the builtin that makes the file of a process substitution.
const substitution = "_wasm_substitution"

// adapt changes a parsed script where the interpreter would do other than bash:
//
//   - `declare -A m` sets m, so that nounset does not take its elements for unset.
//   - Variables that are not there as in bash are errors: see refused.
//   - `<(…)` is a file that holds what the command wrote. It is run to its end before.
func (r *runner) adapt(file *syntax.File) {
	r.functions(file)
	maps := associative(file)
	looped := map[*syntax.DeclClause]bool{}
	syntax.Walk(file, func(n syntax.Node) bool {
		switch n := n.(type) {
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
		case *syntax.Word:
			parts(n.Parts)
		case *syntax.DblQuoted:
			parts(n.Parts)
		}
		return true
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

// refused are the variables of bash that a script would find empty here.
var refused = map[string]bool{"BASH_LINENO": true, "BASH_ARGC": true, "BASH_ARGV": true, "BASH_EXECUTION_STRING": true, "SHELLOPTS": true, "BASHOPTS": true}

// parts mends parts of a word.
func parts(parts []syntax.WordPart) {
	for i, p := range parts {
		switch p := p.(type) {
		case *syntax.ProcSubst:
			parts[i] = processSubstitution(p)
		case *syntax.ParamExp:
			if p.Param == nil {
				break
			}
			if refused[p.Param.Value] {
				parts[i] = templateWord("${_wasm_shell:?" + p.Param.Value + " is not supported in the wasm shell}").Parts[0]
			}
		}
	}
}

// processSubstitution writes <(STMTS) with a temporary file.
func processSubstitution(p *syntax.ProcSubst) syntax.WordPart {
	if p.Op != syntax.CmdIn {
		return templateWord("${_wasm_shell:?a process substitution for writing is not supported in the wasm shell}").Parts[0]
	}
	quoted := templateWord(`"$(_wasm_file=$(builtin ` + substitution + `) && { :; } >"$_wasm_file"; echo "$_wasm_file")"`)
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
