// Package rootfs is the file tree that a task sees, and the way of files out of it.
//
// # The root
//
// [Open] makes a skeleton: a host directory with the mount points, symbolic
// links and synthesised files of a root, and opens what is to be mounted over it
// ([Rootfs.Mounts]). The skeleton is only ever read, so all sandboxes of one
// [Spec] share it. Mounting is for others: this package makes no mounts.
//
// # The work directory
//
// After a task is dead, [Collect] takes its declared outputs out of the merged
// work directory, [Place] puts them into the caller's tree, [Undeclared] lists
// what else the task wrote, and [RemoveTree] removes what is left.
//
// All of it is hostile. No path is ever resolved twice or across a symbolic
// link: walks go from descriptor to descriptor by openat2, beneath the directory
// given, across no mount but in the caller's tree, and stop at the bounds of
// [Limits].
//
// The package knows nothing of tasks nor of how blobs are stored, and starts no
// goroutines, so that a caller may run it on a thread with other credentials.
package rootfs
