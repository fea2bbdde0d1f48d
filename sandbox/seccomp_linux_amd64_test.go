package sandbox_test

import "golang.org/x/sys/unix"

// init adds what only this architecture has.
func init() {
	try = append(try, []attempt{
		{"setuid bit, chmod", unix.SYS_CHMOD, [4]uintptr{0, 0o4755}, 0, 0},
		{"setuid bit, creat", unix.SYS_CREAT, [4]uintptr{0, 0o4755}, 0, 0},
		{"setuid bit, open", unix.SYS_OPEN, [4]uintptr{0, unix.O_CREAT, 0o4755}, 0, 0},
		{"setuid bit, mknod", unix.SYS_MKNOD, [4]uintptr{0, unix.S_IFREG | 0o4755}, 0, 0},
		{"sticky bit", unix.SYS_CHMOD, [4]uintptr{0, 0o1777}, 0, 0},
		{"x32 getpid", 0x40000000 | unix.SYS_GETPID, [4]uintptr{}, unix.ENOSYS, unix.ENOSYS},
	}...)
}
