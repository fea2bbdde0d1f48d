package executor

import (
	"strings"
	"testing"
)

func TestParseAllow(t *testing.T) {
	for in, want := range map[string]string{
		"registry.example:443":          "registry.example:443",
		"Registry.Example.:443/tcp":     "registry.example:443/tcp",
		"*.example.com":                 "*.example.com",
		"10.0.0.0/8:5432/tcp":           "10.0.0.0/8:5432/tcp",
		"[2001:db8::/32]:443":           "[2001:db8::/32]:443",
		"[2001:DB8::1]:80,443/udp":      "[2001:db8::1]:80,443/udp",
		"2001:db8::1":                   "2001:db8::1",
		"2001:db8::/32/udp":             "2001:db8::/32/udp",
		"[2001:db8::1]":                 "2001:db8::1",
		"192.0.2.1/32:1":                "192.0.2.1:1",
		"192.0.2.1":                     "192.0.2.1",
		"0.0.0.0/0":                     "0.0.0.0/0",
		"a_b.example:9,7-8,1-2,3":       "a_b.example:1-3,7-9",
		"localhost:1-65535":             "localhost",
		"1x.example:20-30,25-26,31/udp": "1x.example:20-31/udp",
	} {
		r, err := ParseAllow(in)
		if err != nil || r.String() != want {
			t.Errorf("%s: %s, %v, want %s", in, r, err, want)
		}
	}
}

func TestParseAllowRefuses(t *testing.T) {
	for in, says := range map[string]string{
		"":                        "no host",
		":443":                    "no host",
		"a.example:":              `port ""`,
		"a.example:0":             `port "0"`,
		"a.example:65536":         `port "65536"`,
		"a.example:080":           `port "080"`,
		"a.example:+1":            `port "+1"`,
		"a.example:9-7":           "write 7-9",
		"a.example:1,,2":          `port ""`,
		"a.example/icmp":          `protocol "icmp"`,
		"a.example/":              `protocol ""`,
		"a.example/TCP":           `protocol "TCP"`,
		"a..example":              `the part ""`,
		"-a.example":              `the part "-a"`,
		"*":                       `the part "*"`,
		"a.*.example":             `the part "*"`,
		"bücher.example":          "xn--",
		"host.123":                "ends in a number",
		"10.0.0.1/8":              "write 10.0.0.0/8",
		"10.0.0.0/33":             "not a CIDR",
		"10.0.0":                  "not an address",
		"010.0.0.1":               "not an address",
		"[10.0.0.1]:80":           "without",
		"[2001:db8::1]80":         "follows the ]",
		"[2001:db8::1":            "no ]",
		"2001:db8::1:zz":          "not an address",
		"fe80::1%eth0":            "zone",
		"::ffff:10.0.0.1":         "write 10.0.0.1",
		"::ffff:10.0.0.0/104":     "IPv4",
		"a b.example":             "part",
		"a.example:1 ":            `port "1 "`,
		strings.Repeat("a", 600):  "at most 512",
		strings.Repeat("a.", 200): "at most 253",
		"a.example:1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31,33": "more than 16",
	} {
		r, err := ParseAllow(in)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %s, %v, want an error with %q", in, r, err, says)
		}
	}
}

// FuzzParseAllow: what is read is written so that it is read as the same.
func FuzzParseAllow(f *testing.F) {
	for _, s := range []string{"registry.example:443", "10.0.0.0/8:5432/tcp", "[2001:db8::/32]:1-5,9/udp", "*.a.example", "::1", "::/0/tcp", "[::ffff:1.2.3.4]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseAllow(s)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x00") {
				t.Errorf("%q: the error %q holds what it should quote", s, err)
			}
			return
		}
		if !r.TCP && !r.UDP || (r.Name == "") != r.Prefix.IsValid() {
			t.Errorf("%q: rule and not: %+v", s, r)
		}
		again, err := ParseAllow(r.String())
		if err != nil || again.String() != r.String() {
			t.Errorf("%q: %q, which is read as %q, %v", s, r, again, err)
		}
	})
}

func TestAllowIsSortedAndSingle(t *testing.T) {
	a := &TaskSpec{Script: "true", Network: NetworkControlled, Allow: []string{"b.example:2,1", "A.example", "b.example:1-2"}}
	if err := a.Validate(); err != nil {
		t.Fatal(err)
	}
	rules, err := a.AllowRules()
	if err != nil || len(rules) != 2 || rules[0].String() != "a.example" || rules[1].String() != "b.example:1-2" {
		t.Errorf("%v, %v", rules, err)
	}
}

func TestValidateNetwork(t *testing.T) {
	for field, s := range map[string]*TaskSpec{
		"allow": {Script: "true", Allow: []string{"a.example"}},
		"audit": {Script: "true", Network: NetworkFull, Audit: true},
	} {
		wantField(t, s.Validate(), field)
	}
	wantField(t, (&TaskSpec{Script: "true", Network: NetworkControlled, Allow: []string{"a.example:x"}}).Validate(), "allow")
	wantField(t, (&TaskSpec{Script: "true", Network: NetworkControlled, Allow: make([]string, MaxAllow+1)}).Validate(), "allow")
}

func wantField(t *testing.T, err error, field string) {
	t.Helper()
	if e, ok := err.(*Error); !ok || e.Kind != Invalid || e.Field != field {
		t.Errorf("%v, want an Invalid %s", err, field)
	}
}
