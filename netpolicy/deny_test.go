package netpolicy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDenyList: an address is denied in whichever way it is written.
func TestDenyList(t *testing.T) {
	d := denyList{append(DefaultDeny(), netip.MustParsePrefix("203.0.113.7/32"))}
	for a, entry := range map[string]string{
		"127.0.0.1": "127.0.0.0/8", "127.255.255.255": "127.0.0.0/8", "::1": "::/96", "::": "::/96", "0.0.0.0": "0.0.0.0/8",
		"169.254.169.254": "169.254.0.0/16", "fe80::1": "fe80::/10", "fd00:ec2::254": "fd00:ec2::254/128",
		"::ffff:169.254.169.254": "169.254.0.0/16", "64:ff9b::a9fe:a9fe": "169.254.0.0/16", "2002:a9fe:a9fe::": "169.254.0.0/16",
		"2002:7f00:1:ffff::1": "127.0.0.0/8", "64:ff9b:1::a9fe:a9fe": "64:ff9b:1::/48", "::7f00:1": "::/96",
		"224.0.0.251": "224.0.0.0/4", "ff02::1": "ff00::/8", "255.255.255.255": "255.255.255.255/32", "fe80::1%eth0": "fe80::/10",
		"100.100.100.200": "100.100.100.200/32", "168.63.129.16": "168.63.129.16/32", "192.0.0.192": "192.0.0.192/32",
		"fd20:ce::254": "fd20:ce::254/128", "fd00:42::42": "fd00:42::42/128", "64:ff9b::6464:64c8": "100.100.100.200/32",
		"203.0.113.7": "203.0.113.7/32", "64:ff9b::cb00:7107": "203.0.113.7/32",
	} {
		if p, denied := d.match(netip.MustParseAddr(a)); !denied || p.String() != entry {
			t.Errorf("%s: %v, %v, want %s", a, p, denied, entry)
		}
	}
	for _, a := range []string{"10.0.0.1", "203.0.113.8", "2001:db8::1", "64:ff9b::a00:1", "2002:a00:1::", "128.0.0.1", "::ffff:8.8.8.8", "fd00:ec2::255"} {
		if p, denied := d.match(netip.MustParseAddr(a)); denied {
			t.Errorf("%s is denied by %s", a, p)
		}
	}
}

// TestExpandedDenyList: what the kernel is told is what the relay checks.
func TestExpandedDenyList(t *testing.T) {
	d := denyList{DefaultDeny()}
	var both [2][]netip.Prefix
	both[0], both[1] = apart(expand(d.all), true), apart(expand(d.all), false)
	for _, a := range []string{
		"127.0.0.1", "128.0.0.0", "169.254.0.0", "169.255.0.0", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::8000:0", "2002:7f00::1", "2002:8000::", "2002:a9fe::1", "::1", "1::1", "fe80::", "fec0::", "2001:db8::1",
	} {
		x := netip.MustParseAddr(a)
		_, denied := d.match(x)
		told := slices.ContainsFunc(slices.Concat(both[0], both[1]), func(p netip.Prefix) bool {
			return p.Contains(x) || x.Is4In6() && p.Contains(x.Unmap())
		})
		if denied != told {
			t.Errorf("%s: denied %t, the kernel is told %t", a, denied, told)
		}
	}
	for _, ps := range both {
		for i, p := range ps[1:] {
			if p.Overlaps(ps[i]) || !last(ps[i]).Less(p.Addr()) {
				t.Errorf("%s and %s are not apart", ps[i], p)
			}
		}
	}
}

// FuzzParseDeny: what is read is an entry as it is written, and nothing else.
func FuzzParseDeny(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "::ffff:1.2.3.4", "fe80::1%eth0", "10.0.0.1/8", "0.0.0.0/0", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseDeny(s)
		if err != nil {
			return
		}
		if again, err := ParseDeny(p.String()); err != nil || again != p || !p.IsValid() || p.Masked() != p || p.Addr().Zone() != "" {
			t.Errorf("%q: %v, which is read as %v, %v", s, p, again, err)
		}
	})
}

// TestLedgerIsBounded: a task cannot make it grow by names, addresses or destinations.
func TestLedgerIsBounded(t *testing.T) {
	l := newLedger(&RouterSpec{Audit: true})
	addr := netip.MustParseAddr("10.0.0.0")
	for i := range 2 * maxAdmitted {
		addr = addr.Next()
		kept := l.note(fmt.Sprint(i, ".example"), addr, []int{0}, time.Now().Add(time.Hour))
		if kept != (i < maxAdmitted) {
			t.Fatalf("address %d: %t", i, kept)
		}
		l.refuse("tcp", netip.AddrPortFrom(addr, 1), "", noRule, 1)
		l.account(fmt.Sprint(i), 1, 2, 3)
		l.need("tcp", netip.AddrPortFrom(addr, 1), fmt.Sprint(i))
		l.note(fmt.Sprint(i, ".example"), netip.MustParseAddr("10.0.0.1"), []int{0}, time.Now().Add(time.Hour))
	}
	r := l.report()
	if len(r.Denied) != maxReported || r.DeniedTotal != 2*maxAdmitted || len(r.Traffic) != maxReported || len(r.Needed) != maxReported || len(l.admitted[netip.MustParseAddr("10.0.0.1")].names) != maxNames {
		t.Errorf("%d, %d, %d, %d", len(r.Denied), r.DeniedTotal, len(r.Traffic), len(r.Needed))
	}
	var sum Traffic
	for _, x := range r.Traffic {
		sum.Connections, sum.Sent, sum.Received = sum.Connections+x.Connections, sum.Sent+x.Sent, sum.Received+x.Received
	}
	if sum.Connections != 2*maxAdmitted || sum.Sent != 4*maxAdmitted || sum.Received != 6*maxAdmitted {
		t.Errorf("traffic in all: %+v", sum)
	}
	// What is over makes room.
	l = newLedger(&RouterSpec{})
	for range maxAdmitted {
		addr = addr.Next()
		l.note("a", addr, []int{0}, time.Now().Add(-time.Minute))
	}
	if !l.note("b", netip.MustParseAddr("192.0.2.1"), []int{0}, time.Now()) {
		t.Error("what is over makes no room")
	}
}

// TestNeededRuleIsOne: an audit's list holds what TaskSpec.Allow takes, whatever the task has asked for.
func TestNeededRuleIsOne(t *testing.T) {
	l := newLedger(&RouterSpec{Audit: true})
	a := netip.MustParseAddr("192.0.2.1")
	for name, want := range map[string]string{"a-b.example": "a-b.example:1/tcp", `a\001b"`: "192.0.2.1:1/tcp", "a b": "192.0.2.1:1/tcp"} {
		l.note(name, a, nil, time.Now().Add(time.Hour))
		if got, ok := l.permit("tcp", netip.AddrPortFrom(a, 1)); got != want || !ok {
			t.Errorf("%q: %q, %t", name, got, ok)
		}
	}
	if got, _ := l.permit("udp", netip.MustParseAddrPort("[2001:db8::1]:53")); got != "[2001:db8::1]:53/udp" || strings.Contains(got, " ") {
		t.Error(got)
	}
}
