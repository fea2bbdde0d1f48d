// Package first is what runs in a sandbox before its command does. A [Serve] process, which is the
// program that imports this package, executed again in a container of libcontainer's, waits
// for requests. For each it makes a child with namespaces of its own, by one clone3(2): the first
// process of a sandbox. That never executes anything, so it costs no start of a program, and
// it cannot use Go's runtime, of which it has but one thread: it does what the host's [Op]s say, one
// system call each, until it is told to be the parent of a command.
//
// Serve takes over in an initialiser. Those run by import path, among the packages whose
// imports are ready, so this package imports nothing that would have it wait for what sorts
// behind it, as net, path/filepath and all that is built upon them.
package first

const (
	// Name is the second argument of a Serve process.
	Name = "sandboxd-zygote"
	// ProcessName is what ps(1) calls the first process of a sandbox.
	ProcessName = "sandboxd-init"
	// ProgramFD is the descriptor that Serve is executed from; its socket is the next.
	ProgramFD = 3
	socketFD  = ProgramFD + 1

	// UID and GID of the command.
	UID, GID = 1000, 1000
	// WorkDir is where the work directory is seen.
	WorkDir = "/build"
	// HomeDir is the command's own.
	HomeDir = "/home/build"
)
