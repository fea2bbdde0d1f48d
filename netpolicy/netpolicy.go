package netpolicy

import (
	"net/netip"
	"time"

	"github.com/sandboxd/sandboxd/netpolicy/inside"
)

// Policy is what a task reaches. The zero value is Isolated.
type Policy = inside.Policy

// The policies.
const (
	Isolated   = inside.Isolated
	Loopback   = inside.Loopback
	Controlled = inside.Controlled
	Full       = inside.Full
)

// ErrUnsupported is a policy that cannot be had here.
var ErrUnsupported = inside.ErrUnsupported

// Ports are those from First to Last, both included.
type Ports struct{ First, Last uint16 }

// Rule permits a destination.
type Rule struct {
	// Text names the rule in a Report.
	Text string
	// Name is a DNS name in lower case; *. in front stands for all below it. Empty where
	// Prefix is set.
	Name   string
	Prefix netip.Prefix
	// Ports are apart from each other; none is all ports.
	Ports    []Ports
	TCP, UDP bool
}

// RouterSpec is the blueprint of a Router.
type RouterSpec struct {
	Addresses Addresses
	Rules     []Rule
	// Audit permits what the deny list does.
	Audit bool
}

// Addresses are those of a link between a task and its router. They are the same for many tasks,
// since no two of these links meet.
type Addresses struct {
	Task4, Router4 netip.Addr
	// Task6 and Router6 are invalid where the machine has no IPv6.
	Task6, Router6 netip.Addr
}

// Config is what a Manager is made with.
type Config struct {
	// Deny are addresses that no rule permits, beside the host's own; nil is DefaultDeny.
	Deny []netip.Prefix
	// ResolvConf names the resolvers to ask; empty is /etc/resolv.conf.
	ResolvConf string
	// MinTTL is for how long at least an address that was resolved is permitted; 0 is
	// 10 s. It is an hour at most.
	MinTTL time.Duration
}

const (
	defaultMinTTL = 10 * time.Second
	maxTTL        = time.Hour
)

// Report is what a Router saw.
type Report struct {
	// Denied are maxReported at most; DeniedTotal counts all attempts.
	Denied      []Denied
	DeniedTotal int64
	Traffic     []Traffic
	// Needed are the rules that an audit found to be needed.
	Needed []string
}

// Denied is a destination that was refused.
type Denied struct {
	// Protocol is tcp, udp, icmp, icmpv6 or the number of another; or dns.
	Protocol string
	// Address is not valid for a name that was not resolved.
	Address netip.Addr
	Port    uint16
	// Name is the one that was resolved to Address, if one was.
	Name  string
	Count int64
	// Reason is the entry of the deny list, or that there is no rule.
	Reason string
}

// Traffic is what passed by a rule.
type Traffic struct {
	Rule        string
	Connections int64
	// Sent and Received are bytes of payload, as the task sees them.
	Sent, Received int64
}

// Bounds on what one task can make the daemon hold.
const (
	maxReported  = 1000 // entries of each list of a Report
	maxTCP       = 512  // connections at once
	maxUDP       = 512  // flows at once
	maxQueries   = 64   // of the resolver, at once
	maxAdmitted  = 4096 // addresses that were resolved
	maxAnswers   = 32   // addresses in one answer
	maxConsumers = 32   // connections to the resolver
)
