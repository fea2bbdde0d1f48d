// Package sandbox runs one command apart from the machine.
//
// A [Host] holds what sandboxes share; [Host.Start] makes a [Sandbox] and starts
// its command:
//
//	host, err := sandbox.Open(sandbox.Config{Dir: "/run/sandboxd", Limits: manager})
//	box, err := host.Start(ctx, sandbox.Spec{ID: "t1", Root: root, Argv: []string{"make"}, Stdio: stdio})
//	exit, err := box.Wait(ctx)
//	entries, _, err := rootfs.Collect(ctx, box.Work(), outputs, rootfs.Limits{}, store)
//	err = box.Close()
//
// # How one is made
//
// libcontainer makes the namespaces and starts the sandbox's first process, which is
// this program again. It is root in the user namespace and in nothing else, and waits
// on a socket for its orders: the mounts, as descriptors that the host opened and
// id-mapped before, and the command. Before it gets them, it is put into its control
// group; libcontainer, which would do so in its own way, sees groups read-only. It
// assembles the root, leaves the one that libcontainer gave it, gives up
// capabilities and system calls on one thread and starts the command from there
// as user 1000. Then it reaps, passes on what it is told, and at the end kills
// what is left and hands out a descriptor of the work directory.
//
// When its socket closes, it ends, and the kernel ends all else in its pid
// namespace: a daemon that is killed leaves no process behind.
//
// # What the importing program must do
//
// The program is executed again, so package initialisers run in each sandbox; this
// package's takes over there and never returns. Call [Seal] first thing in main.
package sandbox
