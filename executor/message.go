package executor

import "context"

// Request is a message from host to executor. ID matches it with its answer.
type Request struct {
	ID uint64
	// Body is one of ExecuteTask, EventsTaken, CancelTask, GetStatus, Ping,
	// GetCapabilities, Shutdown, Drain.
	Body RequestBody
	// Caller is on whose behalf the request comes. A transport that crosses
	// a trust boundary sets it and never takes it from the far end; nil is the process itself.
	Caller *Caller
}

// RequestBody is closed: only this package's messages implement it.
type RequestBody interface{ request() }

type (
	// ExecuteTask asks to run a task.
	ExecuteTask struct {
		Spec *TaskSpec
		// Events asks for TaskEvents.
		Events bool
	}
	// EventsTaken says that the caller has done with Events more of the events of the
	// task that ExecuteTask with this Request's ID began, so that as many may follow.
	EventsTaken struct{ Events int64 }
	// CancelTask asks to end the task that ExecuteTask with this Request's ID began.
	CancelTask struct{}
	// GetStatus asks for Status.
	GetStatus struct{}
	// Ping asks for Pong.
	Ping struct{}
	// GetCapabilities asks for Capabilities.
	GetCapabilities struct{}
	// Shutdown asks the executor to refuse new tasks, let those in flight end, and close.
	Shutdown struct {
		// GraceMillis is how long tasks may take to end by themselves, in
		// milliseconds; then they are canceled.
		GraceMillis int64
	}
	// Drain ends the connection as Shutdown does, and leaves the executor open. It
	// is for a transport that stops, never crosses a wire, and has neither id nor
	// answer: Serve returns.
	Drain struct {
		// Grace ends when tasks are canceled that did not end by themselves. Answers
		// that nobody reads soon after the tasks are gone are dropped then.
		Grace context.Context
	}
)

func (ExecuteTask) request()     {}
func (EventsTaken) request()     {}
func (CancelTask) request()      {}
func (GetStatus) request()       {}
func (Ping) request()            {}
func (GetCapabilities) request() {}
func (Shutdown) request()        {}
func (Drain) request()           {}

// Response is a message from executor to host.
type Response struct {
	// ID is the Request's; zero with an Error that says why the connection ends.
	ID uint64
	// Body is one of TaskResult, Status, Pong, Capabilities, ShutdownAck, *Error, TaskEvent.
	Body ResponseBody
}

// ResponseBody is closed: only this package's messages implement it.
type ResponseBody interface{ response() }

type (
	// TaskResult answers ExecuteTask.
	TaskResult struct{ Output *TaskOutput }
	// Pong answers Ping.
	Pong struct{}
	// ShutdownAck answers Shutdown once every task was answered.
	ShutdownAck struct{}
)

func (TaskResult) response()   {}
func (Status) response()       {}
func (Pong) response()         {}
func (ShutdownAck) response()  {}
func (Capabilities) response() {}
func (*Error) response()       {}
func (TaskEvent) response()    {}
