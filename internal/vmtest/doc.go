// Package vmtest packs what a throwaway test VM boots: the kernel image, its
// modules in load order, an initramfs, and the job for the guest's init.
//
// The privileged tests run on whatever kernel and cgroup layout the machine
// has, and once more in a VM, on a Debian kernel with a pure cgroup v2 tree.
// Two programs make that a matter of `go test -exec vmexec`:
//
//   - cmd/vmexec takes the test binary that go built, makes an ext4 image around
//     it, boots the VM, copies the output through and ends with the test's own
//     exit status. Profiles that were asked for come back too.
//   - cmd/vminit is the guest's first process: it loads the modules, makes the
//     image its root, mounts what a system has, hands out every cgroup
//     controller, runs the [Job] and powers off.
//
// The guest has busybox and nothing else: no compiler, no sources but the
// package's testdata. Tests know it by SANDBOXD_VM=1. The packages of a kernel
// are unpacked, never installed: see kernel.sh.
//
// With an image of a system (image.sh makes one, of packages) the guest is that
// with what was to be laid over it, and the job a unit of its systemd. The image
// is never written to.
package vmtest
