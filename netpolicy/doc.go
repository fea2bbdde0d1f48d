// Package netpolicy is what of the network a task reaches.
//
// A [Policy] decides whether a sandbox has a network namespace of its own
// ([Policy.Own]) and what is done in it ([Policy.Setup]). Everything that a
// policy does not name is unreachable because it is not there: an isolated task
// sees one loopback interface that is down and no address at all.
package netpolicy
