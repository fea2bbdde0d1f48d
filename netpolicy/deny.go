package netpolicy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// DefaultDeny is what no rule permits unless a configuration says otherwise: this host, what is on its
// link alone, with the metadata services of clouds, and what is no one's address.
func DefaultDeny() []netip.Prefix {
	var all []netip.Prefix
	for _, s := range []string{
		"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32",
		"::/96", "fe80::/10", "fec0::/10", "ff00::/8", "64:ff9b:1::/48",
		// Metadata that is not link-local: of Alibaba, Azure and Oracle; of AWS, Google and Scaleway.
		"100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32",
		"fd00:ec2::254/128", "fd20:ce::254/128", "fd00:42::42/128",
	} {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// ParseDeny reads an address or a CIDR.
func ParseDeny(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if a, e := netip.ParseAddr(s); e == nil && a.Zone() == "" {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil:
		return p, fmt.Errorf("%q is not an address or a CIDR; write one such as 192.0.2.1 or 10.0.0.0/8", s)
	case p.Addr().Is4In6():
		return p, fmt.Errorf("%q is an IPv4 address in IPv6; write it as IPv4, which covers it", s)
	case p.Masked() != p:
		return p, fmt.Errorf("%q has bits beyond its length; write %s", s, p.Masked())
	}
	return p, nil
}

// denyList tells what is denied, whichever way it is written.
type denyList struct{ all []netip.Prefix }

// match returns the entry that denies a.
func (d denyList) match(a netip.Addr) (entry netip.Prefix, denied bool) {
	for _, form := range forms(a) {
		for _, p := range d.all {
			if p.Contains(form) {
				return p, true
			}
		}
	}
	return netip.Prefix{}, false
}

// forms are a and the IPv4 address in it, where a translator or tunnel would take it for one.
func forms(a netip.Addr) []netip.Addr {
	a = a.WithZone("").Unmap()
	all := []netip.Addr{a}
	if a.Is4() {
		return all
	}
	b := a.As16()
	for _, e := range embeddings {
		if e.prefix.Contains(a) {
			all = append(all, netip.AddrFrom4([4]byte(b[e.at:e.at+4])))
		}
	}
	return all
}

// embeddings are prefixes of IPv6 that have an IPv4 address behind them: NAT64 (RFC 6052), 6to4 (RFC
// 3056), and IPv4-mapped and -compatible addresses (RFC 4291).
var embeddings = []struct {
	prefix netip.Prefix
	at     int // bytes
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12},
	{netip.MustParsePrefix("2002::/16"), 2},
	{netip.MustParsePrefix("::ffff:0:0/96"), 12},
	{netip.MustParsePrefix("::/96"), 12},
}

// expand is ps with the forms of IPv6 that lead to its IPv4 addresses.
func expand(ps []netip.Prefix) []netip.Prefix {
	all := slices.Clone(ps)
	for _, p := range ps {
		if !p.Addr().Is4() {
			continue
		}
		v4 := p.Addr().As4()
		for _, e := range embeddings {
			b := e.prefix.Addr().As16()
			copy(b[e.at:], v4[:])
			all = append(all, netip.PrefixFrom(netip.AddrFrom16(b), e.at*8+p.Bits()))
		}
	}
	return all
}

// apart is ps of one family, sorted, without those that lie in another: two prefixes cannot
// overlap in another way.
func apart(ps []netip.Prefix, v4 bool) []netip.Prefix {
	var all []netip.Prefix
	for _, p := range ps {
		if p.Addr().Is4() == v4 {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []netip.Prefix
	for _, p := range all {
		if len(out) == 0 || !out[len(out)-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// last is the highest address of p.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := range b {
		keep := max(0, min(8, p.Bits()-8*i))
		b[i] |= 0xff >> keep
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// matches reports whether the rule is for that name.
func (r *Rule) matches(name string) bool {
	if below, ok := strings.CutPrefix(r.Name, "*"); ok {
		return strings.HasSuffix(name, below) && len(name) > len(below)
	}
	return r.Name != "" && r.Name == name
}

// permits reports whether the rule is for that protocol and port, of whatever address.
func (r *Rule) permits(proto string, port uint16) bool {
	if proto == "tcp" && !r.TCP || proto == "udp" && !r.UDP {
		return false
	}
	return len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p Ports) bool { return p.First <= port && port <= p.Last })
}
