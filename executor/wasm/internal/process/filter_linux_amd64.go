package process

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// ofArch are calls that other architectures have not.
var ofArch = []uintptr{unix.SYS_EPOLL_WAIT}
