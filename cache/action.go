package cache

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	rex "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Command is what an action runs.
type Command struct {
	Argv []string
	Env  map[string]string
	// Outputs are paths relative to Workdir; their order means nothing.
	Outputs []string
	// Workdir is relative to the input root.
	Workdir string
	// Platform is what the command runs on and under, by name.
	Platform map[string]string
}

// Action is the digest of the Remote Execution API's Action for a command on an
// input root. It depends on the arguments alone. A timeout of 0 is none. The salt
// keeps apart what is otherwise the same. All strings must be UTF-8, as the API
// has it.
func Action(cmd Command, inputRoot Digest, timeout time.Duration, salt []byte) (Digest, error) {
	b, err := encodeAction(cmd, inputRoot, timeout, salt)
	if err != nil {
		return Digest{}, err
	}
	return DigestOf(b), nil
}

func encodeAction(cmd Command, inputRoot Digest, timeout time.Duration, salt []byte) ([]byte, error) {
	if err := inputRoot.check(); err != nil {
		return nil, fmt.Errorf("input root: %w", err)
	}
	if timeout < 0 {
		return nil, fmt.Errorf("timeout %v: want none or a positive one", timeout)
	}
	if err := cmd.check(); err != nil {
		return nil, err
	}
	b, err := marshal(commandProto(cmd))
	if err != nil {
		return nil, fmt.Errorf("command: %w", err)
	}
	a := &rex.Action{
		CommandDigest:   digestProto(DigestOf(b)),
		InputRootDigest: digestProto(inputRoot),
		Salt:            salt,
		Platform:        platformProto(cmd.Platform),
	}
	if timeout > 0 {
		a.Timeout = durationpb.New(timeout)
	}
	return marshal(a)
}

// check names what is not UTF-8; marshalling would only say that something is.
func (cmd Command) check() error {
	for i, s := range cmd.Argv {
		if !utf8.ValidString(s) {
			return fmt.Errorf("argument %d (%.80q) is not UTF-8: put such bytes into a file or the script", i, s)
		}
	}
	for _, m := range []map[string]string{cmd.Env, cmd.Platform} {
		for k, v := range m {
			if !utf8.ValidString(k) || !utf8.ValidString(v) {
				return fmt.Errorf("variable %.80q is not UTF-8 (%.80q): encode its value", k, v)
			}
		}
	}
	for _, s := range append([]string{cmd.Workdir}, cmd.Outputs...) {
		if !utf8.ValidString(s) {
			return fmt.Errorf("path %.80q is not UTF-8: rename it", s)
		}
	}
	return nil
}

func commandProto(cmd Command) *rex.Command {
	c := &rex.Command{
		Arguments:        cmd.Argv,
		OutputPaths:      slices.Compact(slices.Sorted(slices.Values(cmd.Outputs))),
		WorkingDirectory: cmd.Workdir,
	}
	for _, k := range slices.Sorted(maps.Keys(cmd.Env)) {
		c.EnvironmentVariables = append(c.EnvironmentVariables, &rex.Command_EnvironmentVariable{Name: k, Value: cmd.Env[k]})
	}
	return c
}

func platformProto(m map[string]string) *rex.Platform {
	if len(m) == 0 {
		return nil
	}
	p := &rex.Platform{}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		p.Properties = append(p.Properties, &rex.Platform_Property{Name: k, Value: m[k]})
	}
	return p
}

func digestProto(d Digest) *rex.Digest { return &rex.Digest{Hash: d.Hash, SizeBytes: d.Size} }

func marshal(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// Node is what stands at a path of a Directory.
type Node struct {
	Digest Digest
	// Dir says that Digest is that of a directory, from HashTree or Directory,
	// and not of a file's content.
	Dir bool
	// Executable is for files.
	Executable bool
}

// Directory is the digest of the Directory in which nodes stand at the given
// paths: relative, with slashes, without "." and "..". Directories above a node are
// made, with no properties. A path may not lie beneath another's node. So
//
//	cache.Directory(map[string]cache.Node{
//		"build":       {Digest: tree, Dir: true}, // from HashTree
//		"meta/script": {Digest: cache.DigestOf(script), Executable: true},
//		"meta/stdin":  {Digest: cache.DigestOf(stdin)},
//	})
//
// is an input root for Action. Without nodes it is that of an empty directory.
func Directory(nodes map[string]Node) (Digest, error) {
	for p, n := range nodes {
		if err := n.Digest.check(); err != nil {
			return Digest{}, fmt.Errorf("input %.200q: %w", p, err)
		}
		if n.Dir && n.Executable {
			return Digest{}, fmt.Errorf("input %.200q is a directory and executable: say one", p)
		}
		if err := checkInputPath(p); err != nil {
			return Digest{}, err
		}
	}
	b, err := encodeDirectory(nodes)
	if err != nil {
		return Digest{}, err
	}
	return DigestOf(b), nil
}

// checkInputPath bounds the depth too, for encodeDirectory recurses.
func checkInputPath(p string) error {
	parts := strings.Split(p, "/")
	bad := len(parts) > maxDepth || !utf8.ValidString(p) || strings.Contains(p, "\x00")
	for _, s := range parts {
		bad = bad || s == "" || s == "." || s == ".."
	}
	if bad {
		return fmt.Errorf("input %.200q: want a relative UTF-8 path of at most %d names, none of them \".\" or \"..\"", p, maxDepth)
	}
	return nil
}

func encodeDirectory(nodes map[string]Node) ([]byte, error) {
	var entries []dirent
	below := map[string]map[string]Node{}
	for p, n := range nodes {
		name, rest, nested := strings.Cut(p, "/")
		if !nested {
			e := dirent{name: name, kind: kindFile, sum: n.Digest.sum(), size: n.Digest.Size, executable: n.Executable}
			if n.Dir {
				e.kind = kindDir
			}
			entries = append(entries, e)
			continue
		}
		if below[name] == nil {
			below[name] = map[string]Node{}
		}
		below[name][rest] = n
	}
	for name, nodes2 := range below {
		if _, taken := nodes[name]; taken {
			return nil, fmt.Errorf("input %.200q has others beneath it: place them elsewhere", name)
		}
		b, err := encodeDirectory(nodes2)
		if err != nil {
			return nil, fmt.Errorf("in %.200q: %w", name, err)
		}
		entries = append(entries, dirent{name: name, kind: kindDir, sum: sha256.Sum256(b), size: int64(len(b))})
	}
	sortEntries(entries)
	return appendDirectory(nil, entries), nil
}
