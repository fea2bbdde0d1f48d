package first

// Op is one step of a first process: a system call, or one of the numbers below. A step that
// fails ends the sandbox, with a report of its index and the error, unless Ignore names the error.
// A program is its Ops, one after the other, and what they point to, mapped at [Base].
type Op struct {
	// Nr is a system call's number, or one of the Op constants.
	Nr uint64
	// Args are the call's arguments. Kinds has eight bits for each, from the lowest up: what it is.
	Args  [6]uint64
	Kinds uint64
	// Ignore are up to four errors, of sixteen bits, that are none.
	Ignore uint64
	// Store is the slot that keeps the result; slot 0 is for nobody.
	Store uint64
}

// OpSize is an Op's size in bytes.
const OpSize = 10 * 8

// Kinds of arguments.
const (
	// Value is what it is.
	Value = iota
	// File is an index into the descriptors that came with the program.
	File
	// Slot is a number of a slot, whose value is meant.
	Slot
)

// Slots is how many slots there are. A program finds them as the one before left them.
const Slots = 32

// Base is where a program is mapped, so that it can hold pointers: below what Go's
// runtime and the kernel use on the systems that we know, and within 39 bits of addresses.
const Base = 0x30_0000_0000

// Steps that are more than a system call.
const (
	// OpFork goes on in a child, with all signals unblocked. The parent keeps the child in Slot Store, and goes on at Args[0].
	OpFork = 1<<32 + iota
	// OpSend sends a Reply of Kind Args[0], with the Args[2] bytes at Args[1], and if Args[4] is 1 the descriptor Args[3].
	OpSend
	// OpEqual fails unless Args[0] & Args[2] is Args[1].
	OpEqual
	// OpMemory is OpEqual for the 64 bits at the address Args[0].
	OpMemory
	// OpClose closes the program's descriptors.
	OpClose
	// OpTurn has the process take programs from the socket Args[0] from then on, and answer there.
	OpTurn
	// OpStop ends the program: what follows is for others.
	OpStop
	// OpEnter changes to the directory Args[0]. An error is kept for OpGiveUp, and it goes on at Args[1].
	OpEnter
	// OpTry executes the file Args[0] with the arguments and environment at Args[1] and Args[2]. Where there is no such
	// file, or it may not be executed, the next OpTry has its turn, and else none. The error of the best file is kept.
	OpTry
	// OpGiveUp, where the error kept is Args[0], or that is AnyError, or for 0 where there was no OpTry, writes the Args[2] bytes at
	// Args[1] to standard error and exits with Args[3].
	OpGiveUp
	// OpSupervise reaps, and obeys the host, until the child in Args[0] has ended; then it kills all others.
	OpSupervise
	// OpExit ends the process with Args[0].
	OpExit
)

// AnyError is any error to OpGiveUp.
const AnyError = 1 << 16

// ReplyKind tells Replies apart.
type ReplyKind uint32

// What a first process tells.
const (
	// Ready is that it has done what it was told, and waits.
	Ready ReplyKind = iota + 1
	// Started comes from the command's process right before it executes the command.
	Started
	// Ended comes when the command and all others have ended.
	Ended
	// Failed is that a step has failed: nothing more comes.
	Failed
)

// Reply is what a first process sends, in the machine's own order of bytes, before further bytes.
type Reply struct {
	Kind ReplyKind
	// Op is the index of the step that failed, and Errno why.
	Op, Errno uint32
	// Status is the wait status of a command that Ended.
	Status uint32
	// User and System are the microseconds of the processor's time that the first process itself has used.
	User, System int64
}

// ReplySize is a Reply's size in bytes.
const ReplySize = 32

const (
	// msgTerminate asks to send SIGTERM to all processes.
	msgTerminate = 'T'
	// msgFiles brings descriptors for a program, msgRun the last of them, the program itself being the very first.
	msgFiles = 'F'
	msgRun   = 'R'
	// msgSize is the size of such a message: its kind, the number of steps, and the program's size in bytes.
	msgSize = 24

	// maxFDs is SCM_MAX_FD, the most descriptors in one message.
	maxFDs = 253
	// MaxFiles bounds the descriptors of a program.
	MaxFiles = 1024
	// maxText bounds what comes with a Reply.
	maxText = 16 << 10
)
