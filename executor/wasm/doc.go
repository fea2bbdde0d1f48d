// Package wasm runs tasks in WebAssembly, on any system: an [Executor] as that of package local,
// where there need be no Linux, and no privileges.
//
// What runs a task is a module: the embedded shell with its tools (package shell), or one that the
// [Config] names: a wasip1 command, or a component of the world in wit/executor.wit. The module runs
// in a worker process, the program itself executed again, which runs one task at a time, each
// in an instance of its own. A task that is to end is ended by killing its worker: nothing
// else ends a guest in time, whatever it does (see package process).
//
// # What a task sees
//
// A file system of its own (see package tree): the work directory at /build as an overlay, of which only
// declared outputs reach the caller's, /tmp, /dev/null, and read-only inputs. There are no processes
// but the module itself, and there is no network. Time is fixed and randomness seeded, so that
// the same task comes to the same result, unless Config.RealClock.
//
// # Whose tasks
//
// Files are opened by the executor, with the rights of the task's caller, and beneath what the task names: a worker gets
// names and open files. On Linux it has given up all else before any of the module runs, which is what
// the tasks of other users take, and an executor of root's. Elsewhere a worker has the rights of this process, opens files itself, and
// others' tasks are refused.
package wasm
