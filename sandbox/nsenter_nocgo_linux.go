//go:build !cgo

package sandbox

const haveNsenter = false
