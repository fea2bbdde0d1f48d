package rootfs

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The networks of a Spec; the empty one is NetworkIsolated.
const (
	NetworkIsolated = "isolated"
	NetworkLoopback = "loopback"
	// NetworkControlled has names resolved by Spec.Nameserver.
	NetworkControlled = "controlled"
	NetworkFull       = "full"
)

// Bounds on what a tree may hold, whatever Limits say.
const (
	// DefaultMaxBytes is Limits.MaxBytes where that is 0.
	DefaultMaxBytes = 64 << 30
	// DefaultMaxEntries is Limits.MaxEntries where that is 0.
	DefaultMaxEntries = 1_000_000
	// DefaultMaxDepth is Limits.MaxDepth where that is 0; a walk holds a descriptor for each level.
	DefaultMaxDepth = 256
	// maxPath is the kernel's PATH_MAX less its NUL.
	maxPath = 4095
	// maxNames bounds the bytes of all paths and link targets of one Collect.
	maxNames = 128 << 20
	// maxResolvConf bounds the host's resolv.conf.
	maxResolvConf = 64 << 10
	// maxTopLevel bounds the entries of a root's own directory and of its var.
	maxTopLevel = 1024
)

// Spec says which root a sandbox gets. The zero value is the host's programs
// for user 1000 without a network.
type Spec struct {
	// Root is a directory; empty is the host's /.
	Root string
	// Network is one of the constants above: it decides resolv.conf and nsswitch.conf.
	Network string
	// Nameserver is an address, for NetworkControlled alone.
	Nameserver netip.Addr
	// UID and GID of the user "build", as seen inside; 0 means 1000.
	UID, GID uint32
	// Hostname is a DNS label; empty means "sandboxd".
	Hostname string
}

// Mount is a read-only bind mount that the sandbox must put in place.
type Mount struct {
	// Source is the host's path, for messages only: what is there may have changed.
	Source string
	// Target is absolute, inside; its mount point exists.
	Target string
	// Dir is true for a directory, false for a regular file.
	Dir bool
	// FD is the source, opened with O_PATH, to be cloned with open_tree(FD, "",
	// AT_EMPTY_PATH|OPEN_TREE_CLONE|AT_RECURSIVE). The Rootfs owns it: don't
	// close it, and don't use it after Rootfs.Close.
	FD *os.File
}

// Entry is one collected file, directory or symbolic link.
type Entry struct {
	// Path is relative to the work directory, clean, valid UTF-8.
	Path string
	// Kind is 'f' for a regular file, 'd' for a directory, 'l' for a symbolic link.
	Kind byte
	// Mode has permission bits only; 0 for links.
	Mode uint32
	// Size in bytes of a file, holes included.
	Size int64
	// Target of a link, as the task wrote it: data, never to be followed.
	Target string
	// Blob is what Store returned for a file.
	Blob string
}

// Placing is what a [Place] is about to do, for [Recover] if it is cut short.
type Placing struct {
	// Token is what the temporary names begin with. Nobody can have guessed it.
	Token string
	// Outputs are those that are placed; their number is part of their temporary names.
	Outputs []string
	// Missing is of how many directories above each output were not there.
	Missing []int
}

// Limits bound Collect; 0 is the default of the same name.
type Limits struct {
	// MaxBytes bounds the sum of the sizes of files, holes included.
	MaxBytes int64
	// MaxEntries bounds the number of entries.
	MaxEntries int64
	// MaxDepth bounds the levels below a declared output.
	MaxDepth int
}

func (l Limits) orDefault() Limits {
	if l.MaxBytes == 0 {
		l.MaxBytes = DefaultMaxBytes
	}
	if l.MaxEntries == 0 {
		l.MaxEntries = DefaultMaxEntries
	}
	if l.MaxDepth == 0 {
		l.MaxDepth = DefaultMaxDepth
	}
	return l
}

// Store keeps the content of a regular file and returns an opaque id for it. It
// reads size bytes from offset 0 of f, which Collect closes, and fails if there
// are fewer; path is for messages. Several goroutines call it at once.
type Store func(ctx context.Context, path string, f *os.File, size int64) (blob string, err error)

// Layer is the upper layer of a work directory, for Collect.
type Layer struct {
	// Dir is it, open. Nobody else may be able to write to what is in it, nor to open it.
	Dir *os.File
	// Take is the Store of a file that is in Dir under the same path and no other, with all its content, without extended
	// attributes. It may take the file away, or change its owner, mode and times, and fails if it changes meanwhile.
	Take Store
}

// EntryError is a path that cannot be collected or placed, for a reason that
// lies in the tree; whoever wrote the task can mend it.
type EntryError struct {
	// Path is relative to the work directory, raw: print it quoted.
	Path string
	// Reason says what it is, and what to do.
	Reason string
	// Err is the cause where the kernel gave one, else nil.
	Err error
}

// Error quotes the path where it holds what a terminal should not see.
func (e *EntryError) Error() string {
	s := display(e.Path) + ": " + e.Reason
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the kernel's error, or nil.
func (e *EntryError) Unwrap() error { return e.Err }

// LimitError is outputs beyond one of Limits.
type LimitError struct {
	// Path is where the limit was met, relative to the work directory, raw.
	Path string
	// Limit is what there is too much of: "bytes", "entries", "levels of
	// directories" or "bytes of names".
	Limit string
	// Max is the limit.
	Max int64
}

// Error names the limit, and the way out.
func (e *LimitError) Error() string {
	return fmt.Sprintf("%s: the outputs exceed %d %s; declare fewer outputs, or raise the limit", display(e.Path), e.Max, e.Limit)
}

// display is a name fit for a terminal: quoted if any of it is not printable.
func display(name string) string {
	if !utf8.ValidString(name) {
		return strconv.Quote(name)
	}
	for _, r := range name {
		if !strconv.IsPrint(r) {
			return strconv.Quote(name)
		}
	}
	return name
}

// checkOutputs refuses all but clean paths below the work directory, none in another.
func checkOutputs(outputs []string) error {
	seen := make(map[string]bool, len(outputs))
	for _, o := range outputs {
		if reason := badPath(o); reason != "" {
			return &EntryError{Path: o, Reason: reason}
		}
		if seen[o] {
			return &EntryError{Path: o, Reason: "is declared twice; name it once"}
		}
		seen[o] = true
	}
	for _, o := range outputs {
		for d := path.Dir(o); d != "."; d = path.Dir(d) {
			if seen[d] {
				return &EntryError{Path: o, Reason: fmt.Sprintf("lies in the output %s; name only the latter", display(d))}
			}
		}
	}
	return nil
}

// badPath says why p is not a path strictly below a directory; empty if it is one.
func badPath(p string) string {
	switch {
	case p == "" || p == "." || p[0] == '/' || p != path.Clean(p) || p == ".." || strings.HasPrefix(p, "../"):
		return "is not a clean path below the work directory; write it relative, without . and .."
	case len(p) > maxPath:
		return fmt.Sprintf("is longer than %d bytes; shorten it", maxPath)
	case strings.ContainsRune(p, 0):
		return "holds a NUL byte; rename it"
	case !utf8.ValidString(p):
		return "is not UTF-8; rename it"
	}
	return ""
}

// comparePaths orders a directory before what it holds, and that before its next sibling.
func comparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		case a[i] < b[i]:
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}

// isHostname tells whether h is one label (RFC 1123) in lower case.
func isHostname(h string) bool {
	const chars = "abcdefghijklmnopqrstuvwxyz0123456789-"
	return h != "" && len(h) <= 63 && strings.Trim(h, chars) == "" && strings.Trim(h, "-") == h
}

// orDefault checks the spec and fills in its defaults.
func (s Spec) orDefault() (Spec, error) {
	if s.Network == "" {
		s.Network = NetworkIsolated
	}
	if s.Hostname == "" {
		s.Hostname = "sandboxd"
	}
	if s.UID == 0 {
		s.UID = 1000
	}
	if s.GID == 0 {
		s.GID = 1000
	}
	switch {
	case !slices.Contains([]string{NetworkIsolated, NetworkLoopback, NetworkControlled, NetworkFull}, s.Network):
		return s, fmt.Errorf("network: %q is unknown to rootfs; use isolated, loopback, controlled or full", s.Network)
	case (s.Network == NetworkControlled) != s.Nameserver.IsValid():
		return s, fmt.Errorf("nameserver: %v with network %s; give an address with controlled, and none else", s.Nameserver, s.Network)
	case !isHostname(s.Hostname):
		return s, fmt.Errorf("hostname: %q is not a DNS label; use a-z, 0-9 and -, at most 63 bytes", s.Hostname)
	case s.UID >= 65534 || s.GID >= 65534:
		return s, fmt.Errorf("uid, gid: %d:%d is nobody or beyond a sandbox's range; use 1 to 65533", s.UID, s.GID)
	}
	return s, nil
}

// synthesised are the files of /etc that a task sees in place of the host's, by
// name. Nothing in them comes from the host but resolv, the content of resolv.conf.
func (s Spec) synthesised(resolv []byte) map[string]string {
	hosts := "files"
	if s.Network == NetworkFull || s.Network == NetworkControlled {
		hosts = "files dns"
	}
	return map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\n" +
			fmt.Sprintf("build:x:%d:%d:build:/home/build:/bin/sh\n", s.UID, s.GID) +
			"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"group":         fmt.Sprintf("root:x:0:\nbuild:x:%d:\nnogroup:x:65534:\n", s.GID),
		"hosts":         "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 " + s.Hostname + "\n",
		"hostname":      s.Hostname + "\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: " + hosts + "\nnetworks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n",
		"resolv.conf":   string(resolv),
		"shells":        "/bin/sh\n",
	}
}

// ownDirs are the directories of every root that are never the root's own: the
// sandbox mounts its own over them, or we fill them.
var ownDirs = []string{"proc", "dev", "sys", "tmp", "build", "run", "home", "home/build", "var", "var/tmp", "etc", ".sandboxd"}

// hostTop are the directories of the host's / that a task sees, where they are.
var hostTop = []string{"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32"}

// hostEtc is all that a task sees of the host's /etc, as patterns of path.Match
// in each component. What others may not read is left out even if it matches; a
// symbolic link is copied as one. Not here, and why: passwd, group, hosts and kin are
// synthesised; shadow, ssh, ssl/private, pki/tls/private hold secrets; machine-id and
// fstab tell of the machine; profile, environment, gitconfig, pip.conf, npmrc and
// maven are habits, and may hold credentials.
var hostEtc = []string{
	// The dynamic linker, and which program is cc.
	"ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld-musl-*.path", "alternatives",
	// Certificates of authorities and the settings of TLS libraries.
	"ssl/certs", "ssl/cert.pem", "ssl/openssl.cnf", "ca-certificates", "ca-certificates.conf",
	"pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf", "pki/ca-trust/extracted", "crypto-policies",
	// Databases of names and types.
	"mime.types", "magic", "magic.mime", "protocols", "services", "rpc", "ethertypes",
	// What system this is, when, and in which language.
	"os-release", "debian_version", "lsb-release", "redhat-release", "fedora-release", "system-release",
	"alpine-release", "arch-release", "localtime", "timezone", "locale.alias", "locale.conf",
	// Settings without which interpreters and document tools do not start.
	"java", "java-*", "python3", "python3.*", "perl", "terminfo", "fonts", "xml", "sgml", "texmf", "groff",
}

// packageRecords are files, below a root, that change when a package manager
// changes the root.
var packageRecords = []string{
	"var/lib/dpkg/status",
	"usr/lib/sysimage/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite-wal",
	"var/lib/rpm/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite-wal", "var/lib/rpm/Packages",
	"lib/apk/db/installed", "usr/lib/apk/db/installed",
}

// osRelease counts towards the identity, too.
const osRelease = "usr/lib/os-release"

// maxRecord bounds what is read of a package record or a file of etc.
const maxRecord = 256 << 20

// handMade are directories of the host where people install by hand, past its
// package manager. They count towards the identity with all that is below them, up to
// maxHandMade files.
var handMade = []string{"usr/local/bin", "usr/local/sbin", "usr/local/lib", "usr/local/include", "usr/local/share", "usr/local"}

const maxHandMade = 200_000
