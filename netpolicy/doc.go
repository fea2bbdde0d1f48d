// Package netpolicy is what of the network a task reaches.
//
// A [Policy] decides whether a sandbox has a network namespace of its own
// ([Policy.Own]) and what is done in it. Everything that a policy does not name is unreachable
// because it is not there: an isolated task sees one loopback interface that is down and no
// address at all. That much is in package inside.
//
// A controlled task has one link more, to a [Router]: a network namespace that is the
// daemon's, known by descriptors alone, with no way out of it. There, rules of nftables refuse what
// they do not permit, and hand the rest to sockets of the daemon (TPROXY), which checks it once
// more, dials from the namespace that the daemon itself is in, and copies both ways. So nothing of the
// host's is changed, neither link, rule, route nor sysctl, and what a dead daemon made ends with its
// descriptors. Names are resolved by the Router, too: it admits the addresses that it told the task.
package netpolicy
