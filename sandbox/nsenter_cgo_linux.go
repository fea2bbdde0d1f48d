//go:build cgo

package sandbox

import _ "github.com/opencontainers/runc/libcontainer/nsenter" // makes namespaces before the Go runtime starts

const haveNsenter = true
