//go:build linux && !amd64 && !arm64

package process

// auditArch says that there is no filter.
const auditArch = 0

var ofArch []uintptr
