// Package first is the first process of a sandbox: the program that imports it, executed
// again. It takes an [Order], assembles the root, starts the command, reaps, and sends a
// [Report] of the start and one of the end.
//
// It takes over in an initialiser. Those run by import path, among the packages whose
// imports are ready, so it imports nothing that would have it wait for what sorts
// behind it, as net, path/filepath and all that is built upon them: most of the
// program is then never initialised in a sandbox.
package first

const (
	// Name is the second argument of a first process.
	Name = "sandboxd-init"
	// ProgramFD is the descriptor that it is executed from; its socket is the next.
	ProgramFD = 3
	socketFD  = ProgramFD + 1

	// UID and GID of the command.
	UID, GID = 1000, 1000
	// WorkDir is where the work directory is seen.
	WorkDir = "/build"
	// HomeDir is the command's own.
	HomeDir = "/home/build"

	// softOpenFiles is the most of the command's soft limit: what uses select can do no
	// more, and other programs raise it.
	softOpenFiles = 1024
)
