// Package local runs tasks on this machine, each in a sandbox of its own.
//
// A task's way through [Executor.Execute]:
//
//	admit      may this caller have it, can this machine enforce it
//	open       its paths, with the caller's rights, once
//	sign       hash what it reads: the signature
//	look up    the result of that signature, if there is one
//	turn       wait for a place, which a pool gives: see executor.WithTurn
//	run        in a sandbox; its log goes to the caller and into the cache
//	judge      why it ended, from the kernel's counters
//	collect    its declared outputs into the cache, then into the caller's tree
//	store      the result, if it succeeded and its inputs are what they were
//
// # What is shared between callers
//
// Blobs are, by their digest, but whoever serves them sees to it that a caller gets none but
// those of its results. Results are not: each user has a name space of
// their own, since a result is only as good as the inputs that its caller showed.
//
// # What a killed executor leaves
//
// [New] takes the lock of the state directory, and then removes all that is there and in the
// control group of that lock: what lives as long as a task has no other owner. What was being
// put into callers' trees is in a journal, and is cleaned up with their rights, so that each output is
// the old or the new one. A client that was told of a result finds it in the cache.
//
// # What takes part in the signature
//
// The command, its environment, outputs and standard input; the contents of the
// work directory but for the declared outputs, and of the inputs; the root's
// identity; network policy, work directory mode and debugging. Names, timeout and
// limits do not. A task in a work directory of mode direct leaves more behind than
// its outputs, so its result is never taken from the cache, nor stored.
package local
