// Package sandbox keeps one command apart from the machine.
//
// What is here so far is the system call filter of a task, see [Filter]. A
// filter is one wall of several and no sandbox by itself.
package sandbox
