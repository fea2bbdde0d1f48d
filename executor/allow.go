package executor

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Bounds on the rules of a task.
const (
	// MaxAllow bounds TaskSpec.Allow.
	MaxAllow = 256
	// MaxAllowBytes bounds one rule.
	MaxAllowBytes = 512
	// maxPortRanges bounds the ports and ranges of one rule.
	maxPortRanges = 16
)

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// AllowRule is a destination that a task with the network policy controlled reaches.
type AllowRule struct {
	// Name is a DNS name in lower case, without a dot at its end. A first label of *
	// stands for one label or more. Empty where Prefix is set.
	Name string
	// Prefix is the addresses.
	Prefix netip.Prefix
	// Ports are sorted and apart; none is all ports.
	Ports []PortRange
	// TCP and UDP say which protocols are meant: one at least.
	TCP, UDP bool
}

// ParseAllow reads a rule: HOST[:PORTS][/PROTO]. HOST is a DNS name, one that begins with *.
// for all names below it, an address or a CIDR; an IPv6 address or CIDR before ports stands in brackets. PORTS are
// ports and ranges A-B, with commas between; without them, all ports are meant. PROTO is tcp
// or udp; without it, both are. The error says what is wrong, and how to write it.
func ParseAllow(s string) (AllowRule, error) {
	if len(s) > MaxAllowBytes {
		return AllowRule{}, fmt.Errorf("rule %.40q… is %d bytes long; use at most %d", s, len(s), MaxAllowBytes)
	}
	r, err := parseAllow(s)
	if err != nil {
		return AllowRule{}, fmt.Errorf("rule %q: %w", s, err)
	}
	return r, nil
}

func parseAllow(s string) (r AllowRule, err error) {
	rest := s
	r.TCP, r.UDP = true, true
	if i := strings.LastIndexByte(rest, '/'); i >= 0 {
		switch p := rest[i+1:]; {
		case p == "tcp":
			rest, r.UDP = rest[:i], false
		case p == "udp":
			rest, r.TCP = rest[:i], false
		case p == "" || strings.Trim(p, "0123456789") != "" && !strings.ContainsAny(p, ":]"):
			return r, fmt.Errorf("protocol %q is unknown; use tcp or udp, or leave it out for both", p)
		}
	}
	host, ports, hasPorts := rest, "", false
	switch {
	case strings.HasPrefix(rest, "["):
		end := strings.IndexByte(rest, ']')
		if end < 0 {
			return r, fmt.Errorf("there is no ] for the [")
		}
		host, ports = rest[1:end], rest[end+1:]
		if ports != "" {
			if ports, hasPorts = strings.CutPrefix(ports, ":"); !hasPorts {
				return r, fmt.Errorf("%q follows the ]; write a colon and ports there, or nothing", ports)
			}
		}
		if !strings.Contains(host, ":") {
			return r, fmt.Errorf("brackets are for IPv6 addresses; write %q without", host)
		}
	case strings.Count(rest, ":") > 1: // an IPv6 address without ports
	default:
		host, ports, hasPorts = strings.Cut(rest, ":")
	}
	if hasPorts {
		if r.Ports, err = parsePorts(ports); err != nil {
			return r, err
		}
	}
	if err := r.setHost(host); err != nil {
		return r, err
	}
	return r, nil
}

func (r *AllowRule) setHost(host string) error {
	if host == "" {
		return fmt.Errorf("there is no host; write a name, an address or a CIDR")
	}
	digits := strings.Trim(host, "0123456789./") == ""
	if !strings.Contains(host, ":") && !digits {
		return r.setName(host)
	}
	if strings.Contains(host, "%") {
		return fmt.Errorf("address %q has a zone, which is of the host alone; leave it out", host)
	}
	if strings.Contains(host, "/") {
		p, err := netip.ParsePrefix(host)
		if err != nil {
			return fmt.Errorf("%q is not a CIDR; write one such as 10.0.0.0/8 or 2001:db8::/32", host)
		}
		if p.Addr().Is4In6() {
			return fmt.Errorf("%q is an IPv4 address in IPv6; write it as IPv4", host)
		}
		if p.Masked() != p {
			return fmt.Errorf("%q has bits beyond its length; write %s", host, p.Masked())
		}
		r.Prefix = p
		return nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return fmt.Errorf("%q is not an address; write one such as 192.0.2.1 or 2001:db8::1", host)
	}
	if a.Is4In6() {
		return fmt.Errorf("%q is an IPv4 address in IPv6; write %s", host, a.Unmap())
	}
	r.Prefix = netip.PrefixFrom(a, a.BitLen())
	return nil
}

func (r *AllowRule) setName(host string) error {
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	below, _ := strings.CutPrefix(name, "*.")
	if len(name) > 253 {
		return fmt.Errorf("name is %d bytes long; DNS takes at most 253", len(name))
	}
	for label := range strings.SplitSeq(below, ".") {
		if !isLabel(label) {
			return fmt.Errorf("name %q has the part %q; use letters, digits, - and _, or *. in front of a name for all below it (other scripts as xn--…)", host, label)
		}
	}
	if last := below[strings.LastIndexByte(below, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("name %q ends in a number; no DNS name does", host)
	}
	r.Name = name
	return nil
}

func isLabel(l string) bool {
	const chars = "abcdefghijklmnopqrstuvwxyz0123456789-_"
	return l != "" && len(l) <= 63 && strings.Trim(l, chars) == "" && strings.Trim(l, "-") == l
}

func parsePorts(s string) (all []PortRange, err error) {
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		var p PortRange
		if p.First, err = parsePort(first); err != nil {
			return nil, err
		}
		p.Last = p.First
		if isRange {
			if p.Last, err = parsePort(last); err != nil {
				return nil, err
			}
		}
		if p.Last < p.First {
			return nil, fmt.Errorf("port range %q ends before it begins; write %d-%d", part, p.Last, p.First)
		}
		if all = append(all, p); len(all) > maxPortRanges {
			return nil, fmt.Errorf("there are more than %d ports and ranges; write several rules", maxPortRanges)
		}
	}
	slices.SortFunc(all, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
	apart := all[:1]
	for _, p := range all[1:] {
		if last := &apart[len(apart)-1]; int(p.First) <= int(last.Last)+1 {
			last.Last = max(last.Last, p.Last)
		} else {
			apart = append(apart, p)
		}
	}
	if apart[0] == (PortRange{1, 65535}) {
		return nil, nil
	}
	return apart, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// String is the rule in its one canonical form, which ParseAllow reads back.
func (r AllowRule) String() string {
	host := r.Name
	if host == "" {
		host = r.Prefix.String()
		if r.Prefix.IsSingleIP() {
			host = r.Prefix.Addr().String()
		}
		if r.Prefix.Addr().Is6() && len(r.Ports) > 0 {
			host = "[" + host + "]"
		}
	}
	var ports []string
	for _, p := range r.Ports {
		s := strconv.Itoa(int(p.First))
		if p.Last != p.First {
			s += "-" + strconv.Itoa(int(p.Last))
		}
		ports = append(ports, s)
	}
	if len(ports) > 0 {
		host += ":" + strings.Join(ports, ",")
	}
	switch {
	case !r.UDP:
		return host + "/tcp"
	case !r.TCP:
		return host + "/udp"
	}
	return host
}

// AllowRules are the rules of the task, sorted, each once. The error is that of Validate.
func (t *TaskSpec) AllowRules() ([]AllowRule, error) {
	if len(t.Allow) > MaxAllow {
		return nil, FieldErrorf("allow", "has %d rules; use at most %d", len(t.Allow), MaxAllow)
	}
	all := make([]AllowRule, 0, len(t.Allow))
	for _, s := range t.Allow {
		r, err := ParseAllow(s)
		if err != nil {
			return nil, FieldErrorf("allow", "%w", err)
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b AllowRule) int { return strings.Compare(a.String(), b.String()) })
	return slices.CompactFunc(all, func(a, b AllowRule) bool { return a.String() == b.String() }), nil
}
