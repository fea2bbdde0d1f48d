package netpolicy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// slack is for how much longer the relay takes an address for permitted than the kernel does, so that what
// the one let through at the last moment is not refused by the other.
const slack = 2 * time.Second

// ledger is what a Router knows of one task: which addresses its names stand for and until when, and
// what it did.
type ledger struct {
	rules []Rule
	audit bool

	mu       sync.Mutex
	admitted map[netip.Addr]*resolved
	denied   map[deniedKey]int64
	total    int64
	traffic  map[string]*Traffic
	needed   map[string]bool
}

// resolved is an address that a name was resolved to.
type resolved struct {
	name  string            // the last one
	until map[int]time.Time // by rule
	// names are all of them, at most maxNames, until when they stand for it; for an audit alone.
	names map[string]time.Time
}

// maxNames is for how many of an address's names an audit finds rules.
const maxNames = 16

type deniedKey struct {
	proto  string
	addr   netip.Addr
	port   uint16
	name   string
	reason string
}

func newLedger(spec *RouterSpec) *ledger {
	return &ledger{
		rules: spec.Rules, audit: spec.Audit,
		admitted: map[netip.Addr]*resolved{}, denied: map[deniedKey]int64{}, traffic: map[string]*Traffic{}, needed: map[string]bool{},
	}
}

// named are the rules, by index, that are for a name.
func (l *ledger) named(name string) (all []int) {
	for i := range l.rules {
		if l.rules[i].matches(name) {
			all = append(all, i)
		}
	}
	return all
}

// note notes that name stands for a until then, for these rules. It reports whether there is room.
func (l *ledger) note(name string, a netip.Addr, rules []int, until time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.admitted[a]
	if r == nil {
		if len(l.admitted) >= maxAdmitted && !l.forget() {
			return false
		}
		r = &resolved{until: map[int]time.Time{}}
		l.admitted[a] = r
	}
	r.name = name
	if l.audit {
		r.alias(name, until)
	}
	for _, i := range rules {
		if until.After(r.until[i]) {
			r.until[i] = until
		}
	}
	return true
}

// alias keeps a name, in place of that which ends first if there are too many.
func (r *resolved) alias(name string, until time.Time) {
	if _, known := r.names[name]; !known && len(r.names) >= maxNames {
		first := ""
		for n, t := range r.names {
			if first == "" || t.Before(r.names[first]) {
				first = n
			}
		}
		delete(r.names, first)
	}
	if r.names == nil {
		r.names = map[string]time.Time{}
	}
	if until.After(r.names[name]) {
		r.names[name] = until
	}
}

// until is until when an address is permitted to any of these rules, by whatever name.
func (l *ledger) until(a netip.Addr, rules []int) (last time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.admitted[a]; r != nil {
		for _, i := range rules {
			if r.until[i].After(last) {
				last = r.until[i]
			}
		}
	}
	return last
}

// forget drops what is over. It reports whether anything was.
func (l *ledger) forget() bool {
	now, before := time.Now(), len(l.admitted)
	for a, r := range l.admitted {
		over := true
		for _, t := range r.until {
			over = over && now.After(t.Add(slack))
		}
		if over {
			delete(l.admitted, a)
		}
	}
	return len(l.admitted) < before
}

// permit returns what to account a connection to, or that no rule allows it.
func (l *ledger) permit(proto string, to netip.AddrPort) (rule string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.admitted[to.Addr()]
	for i := range l.rules {
		x := &l.rules[i]
		if !x.permits(proto, to.Port()) {
			continue
		}
		if x.Name == "" && x.Prefix.Contains(to.Addr()) {
			return x.Text, true
		}
		if r != nil && x.Name != "" && time.Now().Before(r.until[i].Add(slack)) {
			return x.Text, true
		}
	}
	if !l.audit {
		return "", false
	}
	name := ""
	if r != nil {
		name = r.name
	}
	return ruleText(name, to, proto), true
}

// need notes which rules it takes to reach an address as the task did: by any of its names, since
// nobody knows which of them the task meant.
func (l *ledger) need(proto string, to netip.AddrPort, rule string) {
	if !l.audit {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	all := []string{rule}
	if r := l.admitted[to.Addr()]; r != nil {
		for name, until := range r.names {
			if time.Now().After(until.Add(slack)) {
				continue
			}
			i := slices.IndexFunc(l.rules, func(x Rule) bool { return x.matches(name) && x.permits(proto, to.Port()) })
			if i >= 0 {
				all = append(all, l.rules[i].Text)
			} else {
				all = append(all, ruleText(name, to, proto))
			}
		}
	}
	for _, s := range all {
		if len(l.needed) < maxReported {
			l.needed[s] = true
		}
	}
}

// ruleText is a rule for a name, or for the address where that is not one that a rule can have.
func ruleText(name string, to netip.AddrPort, proto string) string {
	switch {
	case name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == "":
	case to.Addr().Is6():
		name = "[" + to.Addr().String() + "]"
	default:
		name = to.Addr().String()
	}
	return fmt.Sprintf("%s:%d/%s", name, to.Port(), proto)
}

const noRule = "no rule allows it"

// refuse counts what was refused. What is refused because of more than a report holds is in the total.
func (l *ledger) refuse(proto string, to netip.AddrPort, name, reason string, count int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.admitted[to.Addr()]; r != nil && name == "" {
		name = r.name
	}
	l.total += count
	k := deniedKey{proto, to.Addr(), to.Port(), name, reason}
	if _, there := l.denied[k]; there || len(l.denied) < maxReported {
		l.denied[k] += count
	}
}

// account adds to what passed by a rule. What would be more rules than a report holds is under one.
func (l *ledger) account(rule string, connections, sent, received int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.traffic[rule]
	if t == nil {
		if len(l.traffic) >= maxReported-1 {
			rule = "others"
		}
		if t = l.traffic[rule]; t == nil {
			t = &Traffic{Rule: rule}
			l.traffic[rule] = t
		}
	}
	t.Connections += connections
	t.Sent += sent
	t.Received += received
}

// report is all of it, sorted.
func (l *ledger) report() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := Report{DeniedTotal: l.total}
	for k, n := range l.denied {
		r.Denied = append(r.Denied, Denied{Protocol: k.proto, Address: k.addr, Port: k.port, Name: k.name, Count: n, Reason: k.reason})
	}
	slices.SortFunc(r.Denied, func(a, b Denied) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Name, b.Name), a.Address.Compare(b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Reason, b.Reason))
	})
	for _, t := range l.traffic {
		r.Traffic = append(r.Traffic, *t)
	}
	for s := range l.needed {
		r.Needed = append(r.Needed, s)
	}
	slices.SortFunc(r.Traffic, func(a, b Traffic) int { return cmp.Compare(a.Rule, b.Rule) })
	slices.Sort(r.Needed)
	return r
}
