package cache

import (
	"strings"
	"testing"
	"time"

	rex "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/protobuf/types/known/durationpb"
)

func command() Command {
	return Command{
		Argv:     []string{"/bin/sh", "-c", "make"},
		Env:      map[string]string{"PATH": "/bin", "LANG": "C", "A": ""},
		Outputs:  []string{"z", "bin/a", "z"},
		Workdir:  "build",
		Platform: map[string]string{"rootfs": "host", "OSFamily": "linux"},
	}
}

// TestActionIsREAPI: the digest is that of the messages as built by hand.
func TestActionIsREAPI(t *testing.T) {
	root := DigestOf([]byte("root"))
	cmd := &rex.Command{
		Arguments: []string{"/bin/sh", "-c", "make"},
		EnvironmentVariables: []*rex.Command_EnvironmentVariable{
			{Name: "A"}, {Name: "LANG", Value: "C"}, {Name: "PATH", Value: "/bin"},
		},
		OutputPaths:      []string{"bin/a", "z"},
		WorkingDirectory: "build",
	}
	want := rexDigest(t, &rex.Action{
		CommandDigest:   digestProto(rexDigest(t, cmd)),
		InputRootDigest: digestProto(root),
		Timeout:         durationpb.New(1500 * time.Millisecond),
		Salt:            []byte("salt"),
		Platform:        &rex.Platform{Properties: []*rex.Platform_Property{{Name: "OSFamily", Value: "linux"}, {Name: "rootfs", Value: "host"}}},
	})
	for range 20 { // maps have no order
		if got, err := Action(command(), root, 1500*time.Millisecond, []byte("salt")); err != nil || got != want {
			t.Fatalf("%v, %v; want %v", got, err, want)
		}
	}
	want = rexDigest(t, &rex.Action{CommandDigest: digestProto(rexDigest(t, &rex.Command{})), InputRootDigest: digestProto(root)})
	if got, err := Action(Command{}, root, 0, nil); err != nil || got != want {
		t.Errorf("empty: %v, %v; want %v", got, err, want)
	}
}

// TestActionGolden: the name of a result may not change by accident, or every cache is
// empty.
func TestActionGolden(t *testing.T) {
	tree, err := Directory(map[string]Node{"build": {Digest: DigestOf(nil), Dir: true}, "meta/script": {Digest: DigestOf([]byte("make")), Executable: true}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Action(command(), tree, time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	const wantTree, want = "18ca0746b1b026d9f9603a1faebfcd172072b4274bd0812dc14dde7c26b4ddf7/155", "d61f2394c7e5ee83ee0bec89b998a2aa6494ee19b933d016afa12afbb4d7cd21/183"
	if tree.String() != wantTree || got.String() != want {
		t.Errorf("tree %v, action %v", tree, got)
	}
}

// TestActionParts: each part of a command makes another action, and none runs into
// its neighbour.
func TestActionParts(t *testing.T) {
	root := DigestOf(nil)
	seen := map[Digest]string{}
	for name, change := range map[string]func(*Command){
		"none":      func(*Command) {},
		"argument":  func(c *Command) { c.Argv[2] = "make all" },
		"split":     func(c *Command) { c.Argv = []string{"/bin/sh", "-c", "ma", "ke"} },
		"order":     func(c *Command) { c.Argv = []string{"-c", "/bin/sh", "make"} },
		"value":     func(c *Command) { c.Env["A"] = "x" },
		"variable":  func(c *Command) { delete(c.Env, "A") },
		"output":    func(c *Command) { c.Outputs = c.Outputs[:1] },
		"workdir":   func(c *Command) { c.Workdir = "" },
		"platform":  func(c *Command) { c.Platform["rootfs"] = "other" },
		"moved":     func(c *Command) { c.Env["rootfs"] = "host"; delete(c.Platform, "rootfs") },
		"as output": func(c *Command) { c.Outputs, c.Argv = append(c.Outputs, "make"), c.Argv[:2] },
	} {
		cmd := command()
		change(&cmd)
		got, err := Action(cmd, root, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		if other, same := seen[got]; same {
			t.Errorf("%s and %s are the same action", name, other)
		}
		seen[got] = name
	}
	for name, f := range map[string]func() (Digest, error){
		"root":    func() (Digest, error) { return Action(command(), DigestOf([]byte("x")), 0, nil) },
		"timeout": func() (Digest, error) { return Action(command(), root, time.Second, nil) },
		"salt":    func() (Digest, error) { return Action(command(), root, 0, []byte("x")) },
	} {
		got, err := f()
		if err != nil || seen[got] != "" {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestActionRefuses(t *testing.T) {
	root := DigestOf(nil)
	for want, change := range map[string]func(*Command){
		`argument 1 ("\xff")`:   func(c *Command) { c.Argv[1] = "\xff" },
		`variable "A"`:          func(c *Command) { c.Env["A"] = "\xff" },
		`variable "\xff"`:       func(c *Command) { c.Env["\xff"] = "" },
		`variable "p\xff"`:      func(c *Command) { c.Platform["p\xff"] = "" },
		`path "out\xff"`:        func(c *Command) { c.Outputs = []string{"out\xff"} },
		`path "dir\xff" is not`: func(c *Command) { c.Workdir = "dir\xff" },
	} {
		cmd := command()
		change(&cmd)
		if _, err := Action(cmd, root, 0, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want one that names %s", err, want)
		}
	}
	if _, err := Action(command(), Digest{}, 0, nil); err == nil {
		t.Error("no input root was taken")
	}
	if _, err := Action(command(), root, -1, nil); err == nil {
		t.Error("a negative timeout was taken")
	}
}

func TestDirectoryIsREAPI(t *testing.T) {
	file := func(name, content string, x bool) *rex.FileNode { return rexFile(t, name, content, x) }
	meta := &rex.Directory{Files: []*rex.FileNode{file("script", "make", true), file("stdin", "", false)}}
	want := rexDigest(t, &rex.Directory{
		Files:       []*rex.FileNode{file("a", "a", false), file("b", "b", false)},
		Directories: []*rex.DirectoryNode{{Name: "build", Digest: digestProto(DigestOf([]byte("tree")))}, rexDir(t, "meta", meta)},
	})
	got, err := Directory(map[string]Node{
		"b":           {Digest: DigestOf([]byte("b"))},
		"a":           {Digest: DigestOf([]byte("a"))},
		"build":       {Digest: DigestOf([]byte("tree")), Dir: true},
		"meta/stdin":  {Digest: DigestOf(nil)},
		"meta/script": {Digest: DigestOf([]byte("make")), Executable: true},
	})
	if err != nil || got != want {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if got, err := Directory(nil); err != nil || got != DigestOf(nil) {
		t.Errorf("empty: %v, %v", got, err)
	}
}

func TestDirectoryRefuses(t *testing.T) {
	okay := Node{Digest: DigestOf(nil)}
	for _, bad := range []map[string]Node{
		{"": okay}, {".": okay}, {"..": okay}, {"/a": okay}, {"a/": okay}, {"a//b": okay}, {"a/../b": okay}, {"\xff": okay}, {"a\x00": okay},
		{strings.Repeat("a/", maxDepth) + "a": okay},
		{"a": {}}, {"a": {Digest: okay.Digest, Dir: true, Executable: true}},
		{"a": okay, "a/b": okay}, {"x/a": okay, "x/a/b/c": okay},
	} {
		if d, err := Directory(bad); err == nil {
			t.Errorf("%.100v was taken: %v", bad, d)
		}
	}
}
