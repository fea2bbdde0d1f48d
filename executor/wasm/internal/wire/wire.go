// Package wire is what an executor and its worker processes say to each other, over the
// worker's standard input and output, in frames: a byte that says what it is, four that say how
// long, big end first, and that many bytes.
//
//	executor → worker   Load, Module; then for each task: Task; replies: Reply
//	worker → executor   Compiled and Ready, or Failed and the end;
//	                    for each task Begun, any of Stdout, Stderr, Fetch, Store, File, Output,
//	                    Undeclared; then Done
//
// Fetch, Store and File are answered by Reply. A file that was opened for the worker comes beside that, as
// a descriptor on the socket that the worker has as its descriptor Files. What a worker says is not trusted: it has run
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
	KindCompiled   Kind = 'C' // a Compiled: the module was compiled, and is tried next
	KindReady      Kind = 'R' // a byte that is 1 for a component, and 0 for a command, and why walls could not be raised
	KindFailed     Kind = 'F' // why the module cannot be loaded
	KindBegun      Kind = 'B' // a Used: the Task was taken
	KindStdout     Kind = 'o' // a piece of that
	KindStderr     Kind = 'e' // a piece of that
	KindFetch      Kind = 'f' // the name of a blob
	KindStore      Kind = 's' // a blob
	KindFile       Kind = 'p' // a File
	KindOutput     Kind = 'O' // an Output
	KindUndeclared Kind = 'U' // a path
	KindDone       Kind = 'D' // a Done
)

// Files is a worker's descriptor for files that are opened for it.
const Files = 3

const (
	// MaxFrame bounds a frame.
	MaxFrame = 64 << 20
	// MaxPiece bounds what of a stream is in a frame.
	MaxPiece = 64 << 10
	// MaxAhead bounds File.Ahead. With one more they are as many as fit into a message with descriptors.
	MaxAhead = 63
	// MaxModule bounds a module.
	MaxModule = 256 << 20
	// MaxMemory is the most that a task can be granted of a module's memory, a little less than MaxModuleMemory, which is all that it can address.
	MaxMemory, MaxModuleMemory = MaxModuleMemory - 64<<20, 4 << 30
)

// Load tells what to run tasks in.
type Load struct {
	// CodeDir keeps what was compiled; empty keeps nothing.
	CodeDir []byte
	// RealClock has tasks see the time, and randomness.
	RealClock bool
	// Again has an instance used again, made what it was before its task: for a module that waits for its task, and
	// changes nothing but its memory and globals.
	Again bool
	// InProcess says that the worker is no process of its own. A guest can be interrupted then, which makes it slow.
	InProcess bool
	// Asks has the worker ask for files, and never open any itself.
	Asks bool
	// Walls has it give up what it can of its rights once the module is compiled.
	Walls *Walls
}

// Compiled tells of a module that was compiled.
type Compiled struct {
	Used
	// Unkept says why the code is not kept in Load.CodeDir; empty where it is, or was not to be.
	Unkept string `json:",omitempty"`
}

// Used is what a worker has used by then of processors; 0 where it cannot tell.
type Used struct{ CPUUser, CPUSystem time.Duration }

// Walls are what a worker puts between itself and the machine. They are seen from outside whether they stand.
type Walls struct {
	// ID is the user and group that it becomes; 0 is none.
	ID int
	// Root has it leave the file system for an empty one. It has a mount namespace of its own.
	Root bool
	// Filter has it make no system calls but those that it needs.
	Filter bool
}

// Task is what runs next.
type Task struct {
	Argv, Env [][]byte
	Stdin     []byte
	// Work is the work directory; nil is an empty one.
	Work         *Place
	WorkReadonly bool
	Inputs       []Input
	Outputs      [][]byte
	// Scratch is an empty directory. A worker that asks does not need to know.
	Scratch []byte
	// MemoryBytes bounds the module's memory, WorkBytes and TmpBytes what it writes.
	MemoryBytes, WorkBytes, TmpBytes int64
	MaxFiles, MaxOpen                int
	// Epoch is the time at which it begins, in nanoseconds since 1970.
	Epoch int64
	// Spec is what a component's execute-task is called with; nil for a command.
	Spec *Spec
}

// Place is a file or directory of the machine's: where it is, or for a worker that asks, what it is.
type Place struct {
	Host []byte `json:",omitempty"`
	Info Info
}

// Input is what is seen at Target.
type Input struct {
	Place
	Target []byte
}

// Info is a tree.Info.
type Info struct {
	Name   []byte `json:",omitempty"`
	Bare   bool   `json:",omitempty"`
	Mode   uint32 `json:",omitempty"`
	Size   int64  `json:",omitempty"`
	Time   int64  `json:",omitempty"`
	Target []byte `json:",omitempty"`
}

// What a File asks for.
const (
	FileLstat   = "lstat"   // a FileReply with one Info
	FileList    = "list"    // a FileReply with all
	FileOpen    = "open"    // a FileReply, and the file, and of those Ahead as many as could be opened before one that could not
	FileCreate  = "create"  // that of a scratch file
	FileScratch = "scratch" // the same, of one that was created
	FileRemove  = "remove"  // a FileReply
)

// File asks for something of a Machine or the Scratch.
type File struct {
	Do string
	// Place is 0 for the work directory, and else the number of the input, from one on.
	Place int    `json:",omitempty"`
	Path  []byte `json:",omitempty"`
	// Ahead are the paths of at most MaxAhead more files to be opened.
	Ahead [][]byte `json:",omitempty"`
	// Number is that of a scratch file.
	Number int `json:",omitempty"`
}

// FileReply answers a File.
type FileReply struct {
	// Errno is a sys.Errno of wazero's, for nothing was done.
	Errno uint16 `json:",omitempty"`
	Infos []Info `json:",omitempty"`
}

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
	Mode uint32
	// Number names the scratch file with a file's content. Where it is 0, that is Content.
	Number  int    `json:",omitempty"`
	Content []byte `json:",omitempty"`
	Size    int64  `json:",omitempty"`
	Target  []byte `json:",omitempty"`
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
