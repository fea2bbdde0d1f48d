// Package wire is what an executor and its worker processes say to each other, over the
// worker's standard input and output, in frames: a byte that says what it is, four that say how
// long, big end first, and that many bytes.
//
//	executor → worker   Load, Module; then for each task: Task; replies: Reply
//	worker → executor   Ready, or Failed and the end;
//	                    for each task Begun, any of Stdout, Stderr, Fetch, Store, Output,
//	                    Undeclared; then Done
//
// Both Fetch and Store are answered by Reply. What a worker says is not trusted: it has run
// a stranger's program. Bytes that need not be UTF-8 are byte slices, since JSON would change them.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// Kind says what a frame is.
type Kind byte

// Kinds of frames.
const (
	KindLoad       Kind = 'L' // a Load
	KindModule     Kind = 'M' // the module's bytes
	KindTask       Kind = 'T' // a Task
	KindReply      Kind = 'r' // a byte that is 1 for an error, and the content or the error's text
	KindReady      Kind = 'R' // a byte that is 1 for a component, and 0 for a command
	KindFailed     Kind = 'F' // why the module cannot be loaded
	KindBegun      Kind = 'B' // nothing: the Task was taken
	KindStdout     Kind = 'o' // a piece of that
	KindStderr     Kind = 'e' // a piece of that
	KindFetch      Kind = 'f' // the name of a blob
	KindStore      Kind = 's' // a blob
	KindOutput     Kind = 'O' // an Output
	KindUndeclared Kind = 'U' // a path
	KindDone       Kind = 'D' // a Done
)

const (
	// MaxFrame bounds a frame.
	MaxFrame = 64 << 20
	// MaxPiece bounds what of a stream is in a frame.
	MaxPiece = 64 << 10
	// MaxModule bounds a module.
	MaxModule = 256 << 20
)

// Load tells what to run tasks in.
type Load struct {
	// CodeDir keeps what was compiled; empty keeps nothing.
	CodeDir []byte
	// RealClock has tasks see the time, and randomness.
	RealClock bool
}

// Task is what runs next.
type Task struct {
	Argv, Env [][]byte
	Stdin     []byte
	// Work is the work directory's path; empty is an empty one.
	Work         []byte
	WorkReadonly bool
	Inputs       []Input
	Outputs      [][]byte
	// Scratch is an empty directory.
	Scratch []byte
	// MemoryBytes bounds the module's memory, WorkBytes and TmpBytes what it writes.
	MemoryBytes, WorkBytes, TmpBytes int64
	MaxFiles, MaxOpen                int
	// Epoch is the time at which it begins, in nanoseconds since 1970.
	Epoch int64
	// Spec is what a component's execute-task is called with; nil for a command.
	Spec *Spec
}

// Input is a file or directory at Host, seen at Target.
type Input struct{ Host, Target []byte }

// Spec is the record task-spec of the WIT world.
type Spec struct {
	Name, Recipe, Script, Workdir string
	Env                           [][2]string
	Outputs                       []string
	TimeoutSecs                   *uint64
}

// Output is an entry of the declared outputs.
type Output struct {
	Path []byte
	// Mode is a fs.FileMode.
	Mode   uint32
	Number int    `json:",omitempty"`
	Size   int64  `json:",omitempty"`
	Target []byte `json:",omitempty"`
}

// Done says how a task ended.
type Done struct {
	// Code is the exit status.
	Code uint32
	// Trap says what the module did that none may; empty for an exit.
	Trap string `json:",omitempty"`
	// Error says why there is no result, Field which part of the task is at fault if one is.
	Error string `json:",omitempty"`
	Field string `json:",omitempty"`
	// Declined is why a component would not run the task.
	Declined string `json:",omitempty"`
	// Refused says which quota a write met.
	Refused string `json:",omitempty"`
	// MemoryRefused says that it was refused memory; PeakMemory is what it had.
	MemoryRefused bool `json:",omitempty"`
	PeakMemory    int64
	// CPUUser and CPUSystem are what the worker used for it.
	CPUUser, CPUSystem time.Duration
	Missing            [][]byte `json:",omitempty"`
	// Undeclared counts also those of which no KindUndeclared tells.
	Undeclared int64 `json:",omitempty"`
	// Files are a component's output-files: path and name of the blob.
	Files [][2]string `json:",omitempty"`
}

// Write writes a frame at once, so that two goroutines' do not mix if w's Writes do not.
func Write(w io.Writer, k Kind, body []byte) error {
	if len(body) > MaxModule {
		return fmt.Errorf("frame of %d bytes; at most %d may be", len(body), MaxModule)
	}
	b := make([]byte, 5, 5+len(body))
	b[0] = byte(k)
	binary.BigEndian.PutUint32(b[1:], uint32(len(body)))
	_, err := w.Write(append(b, body...))
	return err
}

// WriteJSON writes a frame with v in it.
func WriteJSON(w io.Writer, k Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return Write(w, k, b)
}

// Read reads a frame of at most most bytes into buf, or where that is too small a new slice. The
// error is io.EOF where there is none.
func Read(r io.Reader, most int, buf []byte) (Kind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint32(head[1:]))
	if n > most {
		return 0, nil, fmt.Errorf("frame %q of %d bytes; at most %d may be", head[0], n, most)
	}
	if n > cap(buf) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return 0, nil, fmt.Errorf("frame %q was cut short: %w", head[0], err)
	}
	return Kind(head[0]), buf, nil
}

// Strings and Bytes change between what a task has and what the wire has.
func Strings(b [][]byte) []string {
	s := make([]string, len(b))
	for i, x := range b {
		s[i] = string(x)
	}
	return s
}

// Bytes is the inverse of Strings.
func Bytes(s []string) [][]byte {
	b := make([][]byte, len(s))
	for i, x := range s {
		b[i] = []byte(x)
	}
	return b
}
