// Package sandbox runs one command apart from the machine.
//
// A [Host] holds what sandboxes share; [Host.Start] makes a [Sandbox] and starts
// its command:
//
//	host, err := sandbox.Open(sandbox.Config{Dir: "/run/sandboxd", Limits: manager})
//	box, err := host.Start(ctx, sandbox.Spec{Root: root, Argv: []string{"make"}, Stdio: stdio})
//	exit, err := box.Wait(ctx)
//	entries, _, err := rootfs.Collect(ctx, box.Work(), nil, outputs, rootfs.Limits{}, store)
//	err = box.Close()
//
// # How one is made
//
// libcontainer makes one container for a Host, the zygote: this program again, root in a user namespace that
// holds all sandboxes' ids and in nothing else. For each sandbox it makes a child with namespaces of its own, the
// sandbox's first process, by one clone3(2). That waits on a socket for what to do: system calls,
// one after the other, which the host has written down for it, with the mounts as descriptors that the host opened and
// id-mapped before. First it puts itself into its control group, assembles the root, and makes a child, which gives up
// capabilities and system calls, sees that it did, and waits on a socket of its own, as
// user 1000. So the sandbox is prepared, for any task of its kind. Then the first process takes the work directory and the inputs,
// leaves the root that libcontainer gave it, and lets the child go, which becomes the command.
// The first process reaps, passes on what it is told, and at the end kills
// what is left. The host gets a descriptor of the work directory.
//
// When its socket closes, it ends, and the kernel ends all else in its pid
// namespace: a daemon that is killed leaves no process behind.
//
// # What the importing program must do
//
// The program is executed again, and this
// package's initialiser takes over there and never returns. Call [Seal] first thing in main.
package sandbox
