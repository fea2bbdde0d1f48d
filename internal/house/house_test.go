// Package house holds the rules of this module that no compiler knows, as tests.
package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/sandboxd/sandboxd/"

// list returns the words that `go list` prints for each package of the module.
func list(t *testing.T, format string) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-tags", "runc_nocriu", "-f", "{{.ImportPath}} "+format, "./...")
	cmd.Dir = "../.."
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	all := map[string][]string{}
	for l := range strings.Lines(string(out)) {
		f := strings.Fields(l)
		all[strings.TrimPrefix(f[0], module)] = f[1:]
	}
	return all
}

// TestOnlyImporter: a kernel interface has one door, so that the rest of the
// code is portable and can be tested without root.
func TestOnlyImporter(t *testing.T) {
	doors := map[string]string{
		"github.com/opencontainers/runc/":      "sandbox",
		"github.com/opencontainers/cgroups":    "sandbox",
		"github.com/containerd/cgroups":        "limits",
		"github.com/vishvananda/netlink":       "netpolicy",
		"github.com/google/nftables":           "netpolicy",
		"github.com/miekg/dns":                 "netpolicy",
		module + "netpolicy/netpolicytest":     "none",
		"google.golang.org/grpc":               "executor/rpc",
		"github.com/bazelbuild/remote-apis":    "cache",
		module + "executor/executorpb":         "executor/rpc",
		"github.com/moby/profiles/seccomp":     "sandbox",
		"github.com/elastic/go-seccomp-bpf":    "sandbox",
		"github.com/tetratelabs/wazero":        "executor/wasm",
		"mvdan.cc/sh":                          "executor/wasm/shell/guest",
		"github.com/coreos/go-systemd":         "cmd/sandboxd",
		"github.com/sandboxd/sandboxd/cmd/":    "none",
		"github.com/sandboxd/sandboxd/integra": "none",
	}
	for pkg, imports := range list(t, `{{join .Imports " "}}`) {
		for _, i := range imports {
			for door, only := range doors {
				if strings.HasPrefix(i, door) && pkg != only && !strings.HasPrefix(pkg, only+"/") && pkg != "executor/executorpb" {
					t.Errorf("%s imports %s, which only %s may", pkg, i, only)
				}
			}
		}
	}
}

// TestLeavesKnowNobody: limits, netpolicy, rootfs and cache are used by all and
// know nothing of tasks, nor of each other.
func TestLeavesKnowNobody(t *testing.T) {
	all := list(t, `{{join .Imports " "}}`)
	for _, leaf := range []string{"limits", "netpolicy", "rootfs", "cache"} {
		for _, i := range all[leaf] {
			if strings.HasPrefix(i, module) && !strings.HasPrefix(i, module+leaf+"/") {
				t.Errorf("%s imports %s; a leaf imports nothing of this module", leaf, i)
			}
		}
	}
}

// TestContractIsLight: who speaks the protocol over channels links no backend.
func TestContractIsLight(t *testing.T) {
	for _, d := range list(t, `{{join .Deps " "}}`)["executor"] {
		if first, _, _ := strings.Cut(d, "/"); strings.Contains(first, ".") && d != "golang.org/x/sys/unix" {
			t.Errorf("executor depends on %s; it may use the standard library alone", d)
		}
	}
}

// TestFirstProcessImports: the initialisers of what sorts behind it, or needs net and its
// like, would run in each sandbox. See the package.
func TestFirstProcessImports(t *testing.T) {
	for _, i := range list(t, `{{join .Deps " "}}`)["sandbox/internal/first"] {
		for _, late := range []string{"net", "path/filepath", "regexp", "text/template", "runtime/debug", "github.com/", "google.golang.org/"} {
			own := strings.HasPrefix(i, module+"netpolicy") || strings.HasPrefix(i, module+"sandbox/internal/first")
			if !own && (i == late || strings.HasSuffix(late, "/") && strings.HasPrefix(i, late)) {
				t.Errorf("sandbox/internal/first depends on %s", i)
			}
		}
	}
}

// TestDocumented: every package has one doc comment, and every exported name a
// docstring.
func TestDocumented(t *testing.T) {
	docs := map[string]int{}
	err := filepath.WalkDir("../..", func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata" {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, ".pb.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if strings.HasSuffix(f.Name.Name, "_test") {
			return nil
		}
		docs[filepath.Dir(p)] += 0
		if f.Doc != nil {
			docs[filepath.Dir(p)]++
		}
		if !strings.HasSuffix(p, "_test.go") {
			undocumented(t, p, f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, n := range docs {
		if n != 1 {
			t.Errorf("%s has %d package comments; write one", dir, n)
		}
	}
}

func undocumented(t *testing.T, p string, f *ast.File) {
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || exportedType(d.Recv)) {
				t.Errorf("%s: %s has no docstring", p, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if ts, ok := s.(*ast.TypeSpec); ok && ts.Name.IsExported() && ts.Doc == nil && d.Doc == nil {
					t.Errorf("%s: type %s has no docstring", p, ts.Name.Name)
				}
			}
		}
	}
}

func exportedType(recv *ast.FieldList) bool {
	x := recv.List[0].Type
	if s, ok := x.(*ast.StarExpr); ok {
		x = s.X
	}
	id, ok := x.(*ast.Ident)
	return ok && id.IsExported()
}
