package local

import (
	"errors"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/netpolicy"
	"github.com/sandboxd/sandboxd/sandbox"
)

// admitNetwork makes the blueprint of a controlled task's router.
func (t *task) admitNetwork() error {
	rules, err := t.spec.AllowRules()
	if err != nil {
		return err
	}
	t.router.Audit = t.spec.Audit
	for _, r := range rules {
		x := netpolicy.Rule{Text: r.String(), Name: r.Name, Prefix: r.Prefix, TCP: r.TCP, UDP: r.UDP}
		for _, p := range r.Ports {
			x.Ports = append(x.Ports, netpolicy.Ports(p))
		}
		t.router.Rules = append(t.router.Rules, x)
	}
	if err := t.network.Probe(); err != nil {
		return unsupportedNetwork(err)
	}
	t.router.Addresses, err = t.network.Addresses(t.router.Rules)
	return unsupportedNetwork(err)
}

func unsupportedNetwork(err error) error {
	if errors.Is(err, netpolicy.ErrUnsupported) {
		return &executor.Error{Kind: executor.Unsupported, Field: "network", Text: err.Error()}
	}
	return err
}

// reportNetwork adds what a controlled network let through, and what it did not.
func (t *task) reportNetwork(box *sandbox.Sandbox, out *executor.TaskOutput) error {
	r, err := box.Traffic()
	if err != nil {
		return err
	}
	out.DeniedTotal, out.NeededAllow = r.DeniedTotal, r.Needed
	for _, d := range r.Denied {
		x := executor.DeniedConnection{Protocol: d.Protocol, Port: int(d.Port), Name: d.Name, Count: d.Count, Rule: d.Reason}
		if d.Address.IsValid() {
			x.Address = d.Address.String()
		}
		out.DeniedConnections = append(out.DeniedConnections, x)
	}
	for _, x := range r.Traffic {
		out.NetworkTraffic = append(out.NetworkTraffic, executor.RuleTraffic{Rule: x.Rule, Connections: x.Connections, Sent: x.Sent, Received: x.Received})
	}
	return nil
}
