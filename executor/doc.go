// Package executor is the contract of sandboxd: what a task is, what comes back,
// and the message protocol that carries both to any backend.
//
// # Tasks
//
// A [TaskSpec] goes in, a [TaskOutput] comes out. A task that fails is a
// TaskOutput with a non-zero exit code and a [Cause]; an error means that there
// is no output, and is an [*Error] whose [Kind] says who must act.
//
// # Executors
//
// [Executor] is the one interface: backends, the pool and the client's [Handle]
// all implement it, so they nest in any order.
//
// # Messages
//
// [Serve] answers messages by an Executor; [Handle] turns messages back into an
// Executor. The same pair runs over Go channels (see [Start]) and over a socket
// (package rpc). The host sends a [Request]; the executor sends [Response]s:
//
//	ExecuteTask      TaskEvent*, then TaskResult or Error
//	EventsTaken      nothing
//	CancelTask       nothing of its own: the task it names is answered (see below)
//	GetStatus        Status
//	Ping             Pong
//	GetCapabilities  Capabilities
//	Shutdown         ShutdownAck, after every task in flight was answered
//
// An Error with id 0 is the far end's last word: why it ends the connection.
//
// Every request but EventsTaken and CancelTask carries an id of its own, not zero and not in
// use, and gets exactly one answer with that id, on every path, shutdown and a
// vanished far end included. TaskEvents carry the id of their ExecuteTask, come
// before its answer, and only if the task asked for them; of a task that was
// canceled or timed out, the last may be missing where they were not read. No more
// than EventWindow of them are on their way until EventsTaken tells that some were
// taken, so who is slow with the events of one task holds up that task alone. CancelTask names the
// id of an ExecuteTask; it is a hint without an answer, since the answer to the
// task tells how it ended, and naming an id that is not in flight is no error
// (the answer may have crossed it).
//
// A task is over when its answer says so: a Handle whose context ends sends
// CancelTask and goes on waiting. Deadlines cross as remaining time in the
// TaskSpec's Timeout, never as clock readings.
//
// This package imports no backend, no gRPC and no libcontainer, so a client
// that speaks over channels links none of them.
package executor
