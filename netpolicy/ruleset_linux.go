package netpolicy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// routerLink is the router's end of the link, as inside.Link is the task's.
	routerLink = "gw0"
	// relayPort is where the relay listens: TPROXY alone leads there.
	relayPort = 1
	// permitted marks a packet that a rule has let through, and the socket of a flow.
	permitted = 1
	// setBuffer holds the answers to the largest ruleset.
	setBuffer = 8 << 20
)

// ruleset is the table in a router's namespace.
type ruleset struct {
	ns     *os.File
	table  *nftables.Table
	groups []*group
	denied [2]*nftables.Set // what was refused, by family: address, protocol, port
	other  [2]*nftables.Set // the same without ports: address, protocol
	count  *nftables.Chain  // its one rule counts all of it
	sets   uint32
}

// group are the rules with the same protocols and ports: they share sets.
type group struct {
	id    int
	rules []int // in RouterSpec.Rules
	Rule        // of which only protocols and ports count
	named [2]*nftables.Set
}

// The families, as indices.
const (
	v4 = iota
	v6
)

func family(a netip.Addr) int {
	if a.Is4() {
		return v4
	}
	return v6
}

var families = [2]struct {
	nfproto         byte
	address         nftables.SetDatatype
	source, dest    uint32 // offsets in the network header
	length          uint32
	icmp            byte
	errors          [2]byte // the types of ICMP errors
	multicast, mask []byte
}{
	{unix.NFPROTO_IPV4, nftables.TypeIPAddr, 12, 16, 4, unix.IPPROTO_ICMP, [2]byte{3, 3}, []byte{0xe0, 0, 0, 0}, []byte{0xf0, 0, 0, 0}},
	{unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 8, 24, 16, unix.IPPROTO_ICMPV6, [2]byte{1, 4}, append([]byte{0xff}, make([]byte, 15)...), append([]byte{0xff}, make([]byte, 15)...)},
}

// groupRules puts together what has the same protocols and ports.
func groupRules(rules []Rule) []*group {
	var all []*group
	for i, r := range rules {
		j := slices.IndexFunc(all, func(g *group) bool {
			return g.TCP == r.TCP && g.UDP == r.UDP && slices.Equal(g.Ports, r.Ports)
		})
		if j < 0 {
			j = len(all)
			all = append(all, &group{id: j, Rule: Rule{Ports: r.Ports, TCP: r.TCP, UDP: r.UDP}})
		}
		all[j].rules = append(all[j].rules, i)
	}
	return all
}

func (r *ruleset) conn() (*nftables.Conn, error) {
	buffers := func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(setBuffer), c.SetWriteBuffer(setBuffer))
	}
	return nftables.New(nftables.WithNetNSFd(int(r.ns.Fd())), nftables.WithSockOptions(buffers))
}

// install makes the table. denied goes before all rules.
func (r *ruleset) install(spec *RouterSpec, denied []netip.Prefix) error {
	c, err := r.conn()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	r.table = c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "sandboxd"})
	b := &builder{Conn: c, ruleset: r}
	b.build(spec, denied)
	if b.err == nil {
		b.err = c.Flush()
	}
	if b.err != nil {
		return fmt.Errorf("nftables: %w", b.err)
	}
	return nil
}

// builder keeps the first error, so that a ruleset reads as a list.
type builder struct {
	*nftables.Conn
	*ruleset
	err error
}

func (b *builder) set(s nftables.Set, elements []nftables.SetElement) *nftables.Set {
	// The library would draw a number from a variable that all share, without a lock.
	b.sets++
	s.Table, s.ID = b.table, b.sets
	if err := b.AddSet(&s, elements); err != nil && b.err == nil {
		b.err = fmt.Errorf("set %s: %w", s.Name, err)
	}
	return &s
}

// prefixes makes a set of one family; nil if there is nothing for it.
func (b *builder) prefixes(name string, fam int, ps []netip.Prefix) *nftables.Set {
	var elements []nftables.SetElement
	for _, p := range apart(ps, fam == v4) {
		elements = append(elements, nftables.SetElement{Key: p.Addr().AsSlice()})
		// An interval that ends with the last address has no end.
		if end := last(p).Next(); end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	if len(elements) == 0 {
		return nil
	}
	return b.set(nftables.Set{Name: name, KeyType: families[fam].address, Interval: true}, elements)
}

func (b *builder) chain(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority, policy nftables.ChainPolicy) *nftables.Chain {
	c := &nftables.Chain{Name: name, Table: b.table}
	if hook != nil {
		c.Type, c.Hooknum, c.Priority, c.Policy = nftables.ChainTypeFilter, hook, priority, &policy
	}
	return b.AddChain(c)
}

func (b *builder) rule(c *nftables.Chain, parts ...[]expr.Any) {
	b.AddRule(&nftables.Rule{Table: b.table, Chain: c, Exprs: slices.Concat(parts...)})
}

// build is the whole of a router's policy. Who adds to it must see that it fails closed: what no
// rule marks as permitted is refused in the chain input.
func (b *builder) build(spec *RouterSpec, denied []netip.Prefix) {
	relay := b.chain("relay", nil, nil, 0)
	b.rule(relay, tproxy(relayPort), mark(), verdict(expr.VerdictAccept))

	b.count = b.chain("count", nil, nil, 0)
	b.rule(b.count, []expr.Any{&expr.Counter{}})
	for fam := range families {
		key, err := nftables.ConcatSetType(families[fam].address, nftables.TypeInetProto, nftables.TypeInetService)
		bare, err2 := nftables.ConcatSetType(families[fam].address, nftables.TypeInetProto)
		if err != nil || err2 != nil {
			b.err = fmt.Errorf("concatenation: %v, %v", err, err2)
			return
		}
		// Their bound is that of a report.
		b.denied[fam] = b.set(nftables.Set{Name: "denied" + suffix(fam), KeyType: key, Concatenation: true, Dynamic: true, Size: maxReported}, nil)
		b.other[fam] = b.set(nftables.Set{Name: "other" + suffix(fam), KeyType: bare, Concatenation: true, Dynamic: true, Size: maxReported}, nil)
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			b.rule(b.count, isFamily(fam), isProtocol(proto), tally(fam, b.denied[fam], true))
		}
		b.rule(b.count, isFamily(fam), isNotProtocol(unix.IPPROTO_TCP), isNotProtocol(unix.IPPROTO_UDP), tally(fam, b.other[fam], false))
	}

	pre := b.chain("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityMangle, nftables.ChainPolicyAccept)
	b.rule(pre, fromElsewhere(), verdict(expr.VerdictDrop))
	for fam, task := range spec.Addresses.tasks() {
		// What the task's kernel says by itself comes from no address or one of the link's.
		b.rule(pre, isFamily(fam), isNotFrom(fam, task), verdict(expr.VerdictDrop))
		b.rule(pre, isFamily(fam), isMulticast(fam), jump(b.count))
		b.rule(pre, isFamily(fam), isMulticast(fam), verdict(expr.VerdictDrop))
	}
	// Those of the link are not routed to lo, and so never come to the chain input. Link-local multicast is above.
	b.rule(pre, isLinkLocal(), jump(b.count))
	b.reject(pre, isLinkLocal())
	for fam, router := range spec.Addresses.routers() {
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			b.rule(pre, isFamily(fam), isTo(fam, router), isProtocol(proto), isPort(Ports{53, 53}), mark(), verdict(expr.VerdictAccept))
		}
		b.rule(pre, isFamily(fam), isTo(fam, router), verdict(expr.VerdictAccept))
	}
	// Of connections only the first packet is looked at: without it, there is no socket for the others.
	b.rule(pre, isProtocol(unix.IPPROTO_TCP), isNoStart(), mark(), verdict(expr.VerdictAccept))
	// Likewise of flows, which have a socket each, connected to the task's.
	b.rule(pre, isProtocol(unix.IPPROTO_UDP), isFlow(), mark(), verdict(expr.VerdictAccept))
	for fam := range families {
		if s := b.prefixes("deny"+suffix(fam), fam, expand(denied)); s != nil {
			b.rule(pre, isFamily(fam), isIn(fam, s), verdict(expr.VerdictAccept))
		}
	}
	b.permit(pre, relay, spec)

	in := b.chain("input", nftables.ChainHookInput, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
	b.rule(in, fromElsewhere(), verdict(expr.VerdictDrop))
	b.rule(in, isMarked(), verdict(expr.VerdictAccept))
	for fam := range families {
		// That a port of the task's is closed, for one.
		b.rule(in, isFamily(fam), isICMPError(fam), verdict(expr.VerdictAccept))
	}
	b.rule(in, jump(b.count))
	b.reject(in, nil)

	b.chain("forward", nftables.ChainHookForward, nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
}

// reject says at once that there is no way.
func (b *builder) reject(c *nftables.Chain, what []expr.Any) {
	b.rule(c, what, isProtocol(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	b.rule(c, what, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
}

// permit adds what the task's rules let through.
func (b *builder) permit(pre, relay *nftables.Chain, spec *RouterSpec) {
	if spec.Audit {
		b.rule(pre, isProtocol(unix.IPPROTO_TCP), goTo(relay))
		b.rule(pre, isProtocol(unix.IPPROTO_UDP), goTo(relay))
		return
	}
	b.groups = groupRules(spec.Rules)
	for _, g := range b.groups {
		var ps []netip.Prefix
		names := false
		for _, i := range g.rules {
			if r := spec.Rules[i]; r.Name != "" {
				names = true
			} else {
				ps = append(ps, r.Prefix)
			}
		}
		var ports *nftables.Set
		if len(g.Ports) > 1 {
			var elements []nftables.SetElement
			for _, p := range g.Ports {
				elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(p.First)})
				if p.Last < 65535 {
					elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(p.Last + 1), IntervalEnd: true})
				}
			}
			ports = b.set(nftables.Set{Name: fmt.Sprintf("ports%d", g.id), KeyType: nftables.TypeInetService, Interval: true}, elements)
		}
		for fam := range families {
			sets := []*nftables.Set{b.prefixes(fmt.Sprintf("addresses%d%s", g.id, suffix(fam)), fam, ps)}
			if names {
				g.named[fam] = b.set(nftables.Set{Name: fmt.Sprintf("resolved%d%s", g.id, suffix(fam)), KeyType: families[fam].address, HasTimeout: true, Size: maxAdmitted}, nil)
				sets = append(sets, g.named[fam])
			}
			for _, s := range sets {
				if s == nil {
					continue
				}
				if g.TCP {
					b.rule(pre, isFamily(fam), isIn(fam, s), isProtocol(unix.IPPROTO_TCP), g.isPorts(ports), goTo(relay))
				}
				if g.UDP {
					b.rule(pre, isFamily(fam), isIn(fam, s), isProtocol(unix.IPPROTO_UDP), g.isPorts(ports), goTo(relay))
				}
			}
		}
	}
}

func (g *group) isPorts(set *nftables.Set) []expr.Any {
	switch {
	case set != nil:
		return []expr.Any{destinationPort(), &expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: set.Name, SetID: set.ID}}
	case len(g.Ports) == 1:
		return isPort(g.Ports[0])
	}
	return nil
}

// admit permits an address that was resolved to a group's rules for some time.
func (r *ruleset) admit(g *group, a netip.Addr, ttl time.Duration) error {
	set := g.named[family(a)]
	e := nftables.SetElement{Key: a.AsSlice(), Timeout: ttl}
	// An element that is there keeps its time, so it is replaced; one that is not cannot be deleted.
	for _, replace := range []bool{true, false} {
		c, err := r.conn()
		if err == nil && replace {
			err = c.SetDeleteElements(set, []nftables.SetElement{{Key: e.Key}})
		}
		if err == nil {
			err = c.SetAddElements(set, []nftables.SetElement{e})
		}
		if err == nil {
			err = c.Flush()
		}
		if err == nil {
			return nil
		}
		if !replace {
			return fmt.Errorf("nftables: admit %s: %w", a, err)
		}
	}
	return nil
}

// refused is one destination of what was refused.
type refused struct {
	proto byte
	addr  netip.Addr
	port  uint16
	count int64
}

// read returns what was refused, and how much that was in all.
func (r *ruleset) read() (all []refused, total int64, err error) {
	c, err := r.conn()
	if err != nil {
		return nil, 0, fmt.Errorf("nftables: %w", err)
	}
	for fam := range families {
		for _, s := range []*nftables.Set{r.denied[fam], r.other[fam]} {
			elements, err := c.GetSetElements(s)
			if err != nil {
				return nil, 0, fmt.Errorf("nftables: read %s: %w", s.Name, err)
			}
			for _, e := range elements {
				n := int(families[fam].length)
				if len(e.Key) < n+4 || e.Counter == nil {
					return nil, 0, fmt.Errorf("nftables: set %s has an element without what was counted", s.Name)
				}
				x := refused{proto: e.Key[n], count: int64(e.Counter.Packets)}
				x.addr, _ = netip.AddrFromSlice(e.Key[:n])
				if len(e.Key) >= n+8 {
					x.port = binary.BigEndian.Uint16(e.Key[n+4:])
				}
				all = append(all, x)
			}
		}
	}
	rules, err := c.GetRules(r.table, r.count)
	if err != nil {
		return nil, 0, fmt.Errorf("nftables: read the counter: %w", err)
	}
	for _, rule := range rules {
		if n, ok := rule.Exprs[0].(*expr.Counter); ok {
			return all, int64(n.Packets), nil
		}
	}
	return nil, 0, fmt.Errorf("nftables: the counter is not there")
}

func suffix(fam int) string { return []string{"_4", "_6"}[fam] }

// The vocabulary of rules. Each part loads what it looks at into the first register.

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: data}
}

func meta(key expr.MetaKey, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: unix.NFT_REG_1}, compare(op, data)}
}

func isFamily(fam int) []expr.Any {
	return meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{families[fam].nfproto})
}

func isProtocol(p byte) []expr.Any { return meta(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{p}) }

func isNotProtocol(p byte) []expr.Any { return meta(expr.MetaKeyL4PROTO, expr.CmpOpNeq, []byte{p}) }

func fromElsewhere() []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, routerLink)
	return meta(expr.MetaKeyIIFNAME, expr.CmpOpNeq, name)
}

func network(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func isNotFrom(fam int, a netip.Addr) []expr.Any {
	return []expr.Any{network(families[fam].source, families[fam].length), compare(expr.CmpOpNeq, a.AsSlice())}
}

func isTo(fam int, a netip.Addr) []expr.Any {
	return []expr.Any{network(families[fam].dest, families[fam].length), compare(expr.CmpOpEq, a.AsSlice())}
}

func isIn(fam int, s *nftables.Set) []expr.Any {
	return []expr.Any{network(families[fam].dest, families[fam].length), &expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: s.Name, SetID: s.ID}}
}

func isMulticast(fam int) []expr.Any {
	return isMasked(fam, families[fam].mask, families[fam].multicast)
}

// isLinkLocal is fe80::/10, which the kernel always takes for the link that a packet comes by.
func isLinkLocal() []expr.Any {
	mask, prefix := make([]byte, 16), make([]byte, 16)
	mask[0], mask[1], prefix[0], prefix[1] = 0xff, 0xc0, 0xfe, 0x80
	return append(isFamily(v6), isMasked(v6, mask, prefix)...)
}

func isMasked(fam int, mask, want []byte) []expr.Any {
	f := families[fam]
	return []expr.Any{
		network(f.dest, f.length),
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: f.length, Mask: mask, Xor: make([]byte, f.length)},
		compare(expr.CmpOpEq, want),
	}
}

func transport(offset, length uint32) *expr.Payload {
	return &expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

func destinationPort() expr.Any { return transport(2, 2) }

func isPort(p Ports) []expr.Any {
	first, last := binaryutil.BigEndian.PutUint16(p.First), binaryutil.BigEndian.PutUint16(p.Last)
	if p.First == p.Last {
		return []expr.Any{destinationPort(), compare(expr.CmpOpEq, first)}
	}
	return []expr.Any{destinationPort(), &expr.Range{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, FromData: first, ToData: last}}
}

// isNoStart is every packet but the first of a connection.
func isNoStart() []expr.Any {
	const fin, syn, rst, ack = 1, 2, 4, 16
	return []expr.Any{
		transport(13, 1),
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
		compare(expr.CmpOpNeq, []byte{syn}),
	}
}

func isFlow() []expr.Any {
	return []expr.Any{&expr.Socket{Key: expr.SocketKeyMark, Register: unix.NFT_REG_1}, compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(permitted))}
}

func isICMPError(fam int) []expr.Any {
	f := families[fam]
	return append(isProtocol(f.icmp), transport(0, 1),
		&expr.Range{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, FromData: f.errors[:1], ToData: f.errors[1:]})
}

func isMarked() []expr.Any {
	return meta(expr.MetaKeyMARK, expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(permitted))
}

func mark() []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG_1, Data: binaryutil.NativeEndian.PutUint32(permitted)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: unix.NFT_REG_1},
	}
}

func tproxy(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: unix.NFT_REG_1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.TProxy{Family: unix.NFPROTO_UNSPEC, TableFamily: byte(nftables.TableFamilyINet), RegPort: unix.NFT_REG_1},
	}
}

// tally counts a packet in a set, by destination. A concatenation takes four bytes of the registers
// for each of its short parts.
func tally(fam int, s *nftables.Set, port bool) []expr.Any {
	next := unix.NFT_REG32_00 + families[fam].length/4
	all := []expr.Any{
		&expr.Payload{DestRegister: unix.NFT_REG32_00, Base: expr.PayloadBaseNetworkHeader, Offset: families[fam].dest, Len: families[fam].length},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
	}
	if port {
		all = append(all, &expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
	}
	return append(all, &expr.Dynset{
		SrcRegKey: unix.NFT_REG32_00, SetName: s.Name, SetID: s.ID, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE),
		Exprs: []expr.Any{&expr.Counter{}},
	})
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func jump(c *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: c.Name}}
}

func goTo(c *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: c.Name}}
}
