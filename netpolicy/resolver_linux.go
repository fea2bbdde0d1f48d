package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// upstreamTime bounds one question to one of the host's resolvers; each is asked twice.
	upstreamTime = 2 * time.Second
	// maxResolvers is how many of resolv.conf are asked, as in libc.
	maxResolvers = 3
	// maxAliases is how long a chain of CNAMEs may be.
	maxAliases = 16
	// upstreamBytes is the size of an answer by UDP that crosses every network in one piece.
	upstreamBytes = 1232
)

// serveDNS answers the task's questions.
func (r *Router) serveDNS(slots chan struct{}, packets net.PacketConn, streams net.Listener) {
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			r.answer(w, q)
		default:
			respond(w, q, dns.RcodeServerFailure, nil)
		}
	})
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: h}, {Listener: streams, Handler: h}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		failed := make(chan struct{})
		r.work.Go(func() {
			defer close(failed)
			s.ActivateAndServe() //nolint:errcheck // it ends when its socket is closed, and has no other error
		})
		select {
		case <-up:
			r.later(s.Shutdown)
		case <-failed:
		}
	}
}

func respond(w dns.ResponseWriter, q *dns.Msg, code int, answers []dns.RR) {
	m := new(dns.Msg).SetRcode(q, code)
	m.RecursionAvailable = true
	m.Answer = answers
	size := dns.MinMsgSize
	if o := q.IsEdns0(); o != nil {
		m.SetEdns0(upstreamBytes, false)
		size = max(size, min(int(o.UDPSize()), upstreamBytes))
	}
	if w.RemoteAddr().Network() == "udp" {
		m.Truncate(size)
	}
	w.WriteMsg(m) //nolint:errcheck // a task that does not want its answer
}

// answer answers one message. A name that no rule has is refused.
func (r *Router) answer(w dns.ResponseWriter, q *dns.Msg) {
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery || q.Response {
		respond(w, q, dns.RcodeNotImplemented, nil)
		return
	}
	x := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(x.Name, "."))
	rules := r.named(name)
	if len(rules) == 0 && !r.audit || x.Qclass != dns.ClassINET {
		r.refuse("dns", netip.AddrPort{}, name, noRule, 1)
		respond(w, q, dns.RcodeRefused, nil)
		return
	}
	if x.Qtype != dns.TypeA && x.Qtype != dns.TypeAAAA {
		respond(w, q, dns.RcodeSuccess, nil) // there is such a name, without anything of that kind
		return
	}
	found, ttl, code, err := r.lookUp(name, x.Qtype)
	if err != nil {
		respond(w, q, dns.RcodeServerFailure, nil)
		return
	}
	var answers []dns.RR
	refused := false
	for _, a := range found {
		if reason := r.m.refusal(a); reason != "" {
			r.refuse("dns", netip.AddrPortFrom(a, 0), name, reason, 1)
			refused = true
			continue
		}
		if a.Is4In6() || r.m.look(a) != away {
			continue // else who is told of it waits for it in vain
		}
		if err := r.admit(name, a, rules, ttl); err != nil {
			respond(w, q, dns.RcodeServerFailure, nil)
			return
		}
		h := dns.RR_Header{Name: x.Name, Rrtype: x.Qtype, Class: dns.ClassINET, Ttl: uint32(ttl / time.Second)}
		if a.Is4() {
			answers = append(answers, &dns.A{Hdr: h, A: a.AsSlice()})
		} else {
			answers = append(answers, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
		}
	}
	if refused && len(answers) == 0 {
		code = dns.RcodeRefused
	}
	respond(w, q, code, answers)
}

// admit permits an address to these rules, by the kernel and by the relay.
func (r *Router) admit(name string, a netip.Addr, rules []int, ttl time.Duration) error {
	if !r.note(name, a, rules, time.Now().Add(ttl)) {
		return fmt.Errorf("more than %d addresses were resolved", maxAdmitted)
	}
	for _, g := range r.rules.groups {
		if !slices.ContainsFunc(rules, func(i int) bool { return slices.Contains(g.rules, i) }) {
			continue
		}
		// Another name may have it for longer.
		if err := r.rules.admit(g, a, time.Until(r.until(a, g.rules))); err != nil {
			return err
		}
	}
	return nil
}

// lookUp asks the host's resolvers, one after the other, twice.
func (r *Router) lookUp(name string, kind uint16) (found []netip.Addr, ttl time.Duration, code int, err error) {
	conf, err := dns.ClientConfigFromFile(r.m.cfg.ResolvConf)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("the host's resolvers: %w", err)
	}
	err = errors.New("the host has no resolver")
	servers := conf.Servers[:min(len(conf.Servers), maxResolvers)]
	for range 2 {
		for _, s := range servers {
			var m *dns.Msg
			if m, err = r.ask(net.JoinHostPort(s, conf.Port), name, kind); err != nil {
				continue
			}
			switch m.Rcode {
			case dns.RcodeSuccess, dns.RcodeNameError:
				found, ttl = addresses(m, name, kind)
				return found, min(max(ttl, r.m.cfg.MinTTL), maxTTL), m.Rcode, nil
			}
			err = fmt.Errorf("resolver %s says %s", s, dns.RcodeToString[m.Rcode])
		}
	}
	return nil, 0, 0, err
}

// ask asks one resolver, by TCP where the answer is too long.
func (r *Router) ask(server, name string, kind uint16) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	q.SetEdns0(upstreamBytes, false)
	for _, network := range []string{"udp", "tcp"} {
		ctx, stop := context.WithTimeout(r.life, upstreamTime)
		m, _, err := (&dns.Client{Net: network, Timeout: upstreamTime}).ExchangeContext(ctx, q, server)
		stop()
		if err != nil {
			return nil, err
		}
		if !m.Response || len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.Question[0].Name) || m.Question[0].Qtype != kind {
			return nil, fmt.Errorf("resolver %s answers another question", server)
		}
		if !m.Truncated {
			return m, nil
		}
	}
	return nil, fmt.Errorf("resolver %s has a longer answer than TCP takes", server)
}

// addresses are those of name in an answer, by whichever alias, and for how long the shortest of the
// records on the way is good.
func addresses(m *dns.Msg, name string, kind uint16) (found []netip.Addr, ttl time.Duration) {
	ttl = maxTTL
	at := dns.Fqdn(name)
	for range maxAliases {
		next := ""
		for _, rr := range m.Answer {
			if !strings.EqualFold(rr.Header().Name, at) {
				continue
			}
			var ip net.IP
			switch rr := rr.(type) {
			case *dns.CNAME:
				next = rr.Target
			case *dns.A:
				ip = rr.A.To4()
			case *dns.AAAA:
				ip = rr.AAAA.To16()
			}
			a, ok := netip.AddrFromSlice(ip)
			if next == "" && !(ok && rr.Header().Rrtype == kind) {
				continue
			}
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
			if ok && !slices.Contains(found, a) && len(found) < maxAnswers {
				found = append(found, a)
			}
		}
		if next == "" || len(found) > 0 {
			break
		}
		at = next
	}
	return found, ttl
}
