// Package placing puts what tasks made into their callers' work directories, with the callers' rights, and cleans up
// there after a process that was killed meanwhile.
package placing
