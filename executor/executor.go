package executor

import (
	"context"
	"time"
)

// Executor runs tasks. All methods may be called by any number of goroutines.
type Executor interface {
	// Execute runs one task to its end. When ctx ends the task is canceled, and
	// Execute still returns only once the task is gone, with CauseCanceled.
	// A task that fails is a TaskOutput; the error is an *Error and means that
	// there is none. Events go to the EventFunc of ctx, see WithEvents.
	Execute(ctx context.Context, spec *TaskSpec) (*TaskOutput, error)
	// Capabilities says what this executor can do.
	Capabilities(ctx context.Context) (Capabilities, error)
	// Status says how it is.
	Status(ctx context.Context) (Status, error)
	// Close refuses new tasks, lets running ones end until ctx does, then
	// cancels them, and returns when all are gone. Later calls do nothing.
	Close(ctx context.Context) error
}

// Status is ExecutorStatus of the protocol: how an executor is.
type Status struct {
	// Healthy is true while the executor takes tasks.
	Healthy bool `json:"healthy"`
	// Active counts tasks that are running now.
	Active int64 `json:"active_tasks"`
	// Executed counts answered tasks, cached ones included: the sum of
	// Successful and Failed.
	Executed   int64 `json:"total_executed"`
	Successful int64 `json:"successful"`
	// Failed counts tasks that did not succeed, those that ended in an error included.
	Failed int64 `json:"failed"`
	// CacheHits counts tasks answered from the cache, among Successful.
	CacheHits int64 `json:"cache_hits"`
	// Queued counts tasks that wait for their turn. They are not among Active where a pool counts.
	Queued int64 `json:"queued_tasks"`
	// Waited is how long tasks waited for their turn of late, on average.
	Waited time.Duration `json:"-"`
	// Uptime is the time since the executor was made.
	Uptime time.Duration `json:"-"`
	// Members are the executors of a pool; nil for any other.
	Members []MemberStatus `json:"executors,omitempty"`
}

// MemberStatus is how one executor of a pool is. Its counts are of what this pool sent
// there, and outlast a restart.
type MemberStatus struct {
	Name    string `json:"name"`
	Healthy bool   `json:"healthy"`
	// Fault says why it is not healthy.
	Fault string `json:"fault,omitempty"`
	// Restarts counts how often it was replaced by a new one.
	Restarts int64 `json:"restarts"`
	// Platforms are those of its Capabilities.
	Platforms   []string `json:"platforms,omitempty"`
	MaxParallel int64    `json:"max_parallel"`
	Active      int64    `json:"active_tasks"`
	Executed    int64    `json:"total_executed"`
	Successful  int64    `json:"successful"`
	Failed      int64    `json:"failed"`
	CacheHits   int64    `json:"cache_hits"`
}

// ExecutorStatus is the name that the protocol uses.
type ExecutorStatus = Status

// Capabilities is what an executor can do.
type Capabilities struct {
	// Sandboxing is true where tasks are kept apart from the machine.
	Sandboxing bool `json:"sandboxing"`
	// NetworkIsolation is true where a task can be kept off the network.
	NetworkIsolation bool `json:"network_isolation"`
	// Caching is true where results are kept.
	Caching bool `json:"caching"`
	// MaxParallel is how many tasks run at once; more wait.
	MaxParallel int `json:"max_parallel"`
	// Platforms are GOOS/GOARCH pairs whose programs run.
	Platforms []string `json:"platforms"`
	// Version is sandboxd's.
	Version string `json:"version"`
	// Networks are the network policies that can be had, as the command line names them.
	Networks []string `json:"networks"`
	// Limits are the limits (as in TaskSpec) that this host enforces.
	Limits []string `json:"limits"`
	// Missing says what this host cannot do, each with its remedy.
	Missing []string `json:"missing,omitempty"`
}

// ExecutorCapabilities is the name that the protocol uses.
type ExecutorCapabilities = Capabilities

// EventKind tells TaskEvents apart.
type EventKind string

const (
	EventQueued  EventKind = "queued"
	EventStarted EventKind = "started"
	EventStdout  EventKind = "stdout"
	EventStderr  EventKind = "stderr"
	// EventNotice says in its Text why a task has to wait. It is told before EventStarted.
	EventNotice EventKind = "notice"
)

// MaxEventBytes bounds TaskEvent.Data.
const MaxEventBytes = 256 << 10

// EventWindow bounds how many events of one task are on their way: sent, and not yet
// counted by an EventsTaken. Pieces of what is larger than MaxEventBytes count each.
const EventWindow = 32

// TaskEvent tells of a task before its result.
type TaskEvent struct {
	Kind EventKind
	// Data is a piece of the stream that Kind names.
	Data []byte
	// Platform, of EventStarted, is what the task runs on.
	Platform string
	// Text, of EventNotice, is for people.
	Text string
	// buffer is what Data lies in, if NewTaskEvent took it from a pool.
	buffer *[]byte
}

// EventFunc takes the events of one task, in order, one call at a time. It may
// block; the task's output then waits, and the task for it, until its time is over.
// Data is only valid during the call.
type EventFunc func(TaskEvent)

type eventsKey struct{}

// WithEvents returns a context whose Execute calls f with the task's events.
func WithEvents(ctx context.Context, f EventFunc) context.Context {
	return context.WithValue(ctx, eventsKey{}, f)
}

// EventsFrom returns ctx's EventFunc, or nil if it has none.
func EventsFrom(ctx context.Context) EventFunc {
	f, _ := ctx.Value(eventsKey{}).(EventFunc)
	return f
}

// Caller is on whose behalf a task runs.
type Caller struct {
	UID    uint32
	GID    uint32
	Groups []uint32
	// PID is the process that connected to the socket, while that lives; 0 if it is gone or unknown.
	// It is for people to read: what a process may do is decided by the other fields.
	PID int32
}

type callerKey struct{}

// WithCaller returns a context for a task of c.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom returns ctx's Caller. Without one it reports false, and the task
// is the process's own.
func CallerFrom(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}
