package rootfs

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErr checks that an error is there and says what it should.
func wantErr(t testing.TB, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Fatalf("error is %v; want one with %q", err, text)
	}
}

// tree makes files below a new directory: "d/" is a directory, "l -> t" a link,
// "f" a file that holds its own path.
func tree(t testing.TB, entries ...string) string {
	t.Helper()
	dir := t.TempDir()
	addTree(t, dir, entries...)
	return dir
}

func addTree(t testing.TB, dir string, entries ...string) {
	t.Helper()
	for _, e := range entries {
		name, to, link := strings.Cut(e, " -> ")
		p := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		switch {
		case link:
			must(t, os.Symlink(to, p))
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(p, 0o755))
		default:
			must(t, os.WriteFile(p, []byte(name), 0o644))
		}
	}
}

func openTest(t *testing.T, spec Spec) *Rootfs {
	t.Helper()
	r, err := Open(filepath.Join(t.TempDir(), "skeleton"), spec)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

func targets(r *Rootfs) (all []string) {
	for _, m := range r.Mounts() {
		all = append(all, m.Target)
	}
	return all
}

func TestOpenHost(t *testing.T) {
	testutil.CheckLeaks(t)
	r := openTest(t, Spec{Hostname: "box", UID: 1234, GID: 4321})
	for _, d := range ownDirs {
		st, err := os.Lstat(filepath.Join(r.Dir(), d))
		must(t, err)
		if st.Mode() != os.ModeDir|0o755 {
			t.Errorf("%s is %v", d, st.Mode())
		}
	}
	for name, want := range map[string]string{
		"passwd": "build:x:1234:4321:", "group": "build:x:4321:", "hosts": "127.0.1.1 box", "hostname": "box\n",
		"nsswitch.conf": "hosts: files\n",
	} {
		b, err := os.ReadFile(filepath.Join(r.Dir(), "etc", name))
		must(t, err)
		if !strings.Contains(string(b), want) {
			t.Errorf("%s is %q", name, b)
		}
	}
	for _, name := range []string{"shadow", "machine-id", "fstab", "ssh", "gitconfig", "environment", "sudoers"} {
		if _, err := os.Lstat(filepath.Join(r.Dir(), "etc", name)); err == nil {
			t.Errorf("%s is shown", name)
		}
	}
	if !slices.Contains(targets(r), "/usr") {
		t.Errorf("mounts are %q", targets(r))
	}
	for _, m := range r.Mounts() {
		st, err := os.Lstat(filepath.Join(r.Dir(), m.Target))
		must(t, err)
		if st.IsDir() != m.Dir {
			t.Errorf("mount point %s is %v, Dir is %v", m.Target, st.Mode(), m.Dir)
		}
		flags, err := unix.FcntlInt(m.FD.Fd(), unix.F_GETFL, 0)
		must(t, err)
		if flags&unix.O_PATH == 0 {
			t.Errorf("%s is not opened with O_PATH", m.Source)
		}
	}
	if to, err := os.Readlink("/bin"); err == nil {
		if got, err := os.Readlink(filepath.Join(r.Dir(), "bin")); err != nil || got != to {
			t.Errorf("bin leads to %q (%v), not %q", got, err, to)
		}
	}
	if b, err := os.ReadFile(filepath.Join(r.Dir(), "etc/resolv.conf")); err != nil || len(b) != 0 {
		t.Errorf("resolv.conf is %q (%v)", b, err)
	}
	d, err := r.OpenDir()
	must(t, err)
	must(t, d.Close())
	if !r.Fresh() {
		t.Error("is not fresh")
	}
	if again := openTest(t, Spec{Hostname: "box", UID: 1234, GID: 4321}); again.Identity() != r.Identity() || len(r.Identity()) != 64 {
		t.Errorf("identities %s, %s", r.Identity(), again.Identity())
	}
	if other := openTest(t, Spec{}); other.Identity() == r.Identity() {
		t.Error("another user has the same identity")
	}
}

func TestOpenFullNetwork(t *testing.T) {
	r := openTest(t, Spec{Network: NetworkFull})
	want, _ := os.ReadFile("/etc/resolv.conf")
	got, err := os.ReadFile(filepath.Join(r.Dir(), "etc/resolv.conf"))
	must(t, err)
	if string(got) != string(want) || !r.Fresh() {
		t.Errorf("resolv.conf is %q, fresh %v", got, r.Fresh())
	}
}

func TestOpenControlledNetwork(t *testing.T) {
	at := netip.MustParseAddr("198.19.255.1")
	r := openTest(t, Spec{Network: NetworkControlled, Nameserver: at})
	for name, want := range map[string]string{"resolv.conf": "nameserver 198.19.255.1\n", "nsswitch.conf": "\nhosts: files dns\n"} {
		got, err := os.ReadFile(filepath.Join(r.Dir(), "etc", name))
		must(t, err)
		if !strings.Contains(string(got), want) {
			t.Errorf("%s is %q", name, got)
		}
	}
	// Which addresses a link has is nothing of the root's.
	if other := openTest(t, Spec{Network: NetworkControlled, Nameserver: at.Next()}); other.Identity() != r.Identity() {
		t.Error("the identity depends on the nameserver")
	}
	for _, s := range []Spec{{Network: NetworkControlled}, {Nameserver: at}} {
		if _, err := Open(filepath.Join(t.TempDir(), "x"), s); err == nil {
			t.Errorf("%+v was opened", s)
		}
	}
}

func TestClose(t *testing.T) {
	testutil.CheckLeaks(t)
	r, err := Open(filepath.Join(t.TempDir(), "skeleton"), Spec{})
	must(t, err)
	must(t, r.Close())
	must(t, r.Close())
	if _, err := os.Lstat(r.Dir()); !os.IsNotExist(err) {
		t.Errorf("the skeleton is there: %v", err)
	}
	if _, err := r.OpenDir(); err == nil {
		t.Error("the skeleton opens")
	}
}

func TestOpenBadSpec(t *testing.T) {
	testutil.CheckLeaks(t)
	for _, c := range []struct {
		spec Spec
		text string
	}{
		{Spec{Network: "controlled"}, "network"},
		{Spec{Hostname: "a b"}, "hostname"},
		{Spec{Hostname: strings.Repeat("a", 64)}, "hostname"},
		{Spec{UID: 65534}, "uid"},
		{Spec{Root: "/nonexistent"}, "no such file"},
		{Spec{Root: "/etc/passwd"}, "not a directory"},
		{Spec{Root: "/"}, "the machine's own"},
		{Spec{Root: "/proc"}, "file system of type proc"},
		{Spec{Root: "/proc/self"}, "file system of type proc"},
		{Spec{Root: "/sys"}, "file system of type sysfs"},
	} {
		dir := filepath.Join(t.TempDir(), "skeleton")
		_, err := Open(dir, c.spec)
		wantErr(t, err, c.text)
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("%+v leaves the skeleton", c.spec)
		}
	}
	_, err := Open(t.TempDir(), Spec{})
	wantErr(t, err, "file exists")
}

func TestOpenDirectory(t *testing.T) {
	testutil.CheckLeaks(t)
	src := tree(t, "bin/sh", "lib -> usr/lib", "usr/lib/x", "opt/", "hello", "dev/null", "etc/passwd", "etc/resolv.conf",
		"etc/app.conf", "etc/deep/x", "var/lib/x", "var/tmp/x", "var/run -> /run", "home/me/x", "proc/", "secret", "private/x", ".sandboxd/x")
	must(t, unix.Mkfifo(filepath.Join(src, "fifo"), 0o666))
	must(t, os.WriteFile(filepath.Join(src, "large"), make([]byte, maxCopy+1), 0o755))
	must(t, os.Chmod(filepath.Join(src, "secret"), 0o600))
	must(t, os.Chmod(filepath.Join(src, "private"), 0o700))
	must(t, os.Chmod(filepath.Join(src, "hello"), 0o755))
	r := openTest(t, Spec{Root: src})
	want := []string{"/bin", "/etc/deep", "/large", "/opt", "/usr", "/var/lib"}
	if got := slices.Sorted(slices.Values(targets(r))); !slices.Equal(got, want) {
		t.Errorf("mounts are %q, want %q", got, want)
	}
	for name, want := range map[string]string{"etc/app.conf": "etc/app.conf", "hello": "hello", "etc/hostname": "sandboxd\n", "large": ""} {
		if b, err := os.ReadFile(filepath.Join(r.Dir(), name)); err != nil || string(b) != want {
			t.Errorf("%s is %q (%v)", name, b, err)
		}
	}
	if st, err := os.Lstat(filepath.Join(r.Dir(), "hello")); err != nil || st.Mode() != 0o755 {
		t.Errorf("hello is %v (%v)", st, err)
	}
	for name, want := range map[string]string{"lib": "usr/lib", "var/run": "/run"} {
		if to, err := os.Readlink(filepath.Join(r.Dir(), name)); err != nil || to != want {
			t.Errorf("%s leads to %q (%v)", name, to, err)
		}
	}
	for _, name := range []string{"fifo", "secret", "private", "home/me", "var/tmp/x", ".sandboxd/x", "dev/null"} {
		if _, err := os.Lstat(filepath.Join(r.Dir(), name)); !os.IsNotExist(err) {
			t.Errorf("%s is shown (%v)", name, err)
		}
	}
	id := r.Identity()
	if again := openTest(t, Spec{Root: src}); again.Identity() != id || !again.Fresh() {
		t.Error("the same root has another identity")
	}
	// Each of these must show, at any depth.
	for _, change := range []func() error{
		func() error { return os.WriteFile(filepath.Join(src, "var/lib/x"), []byte("other"), 0o644) },
		func() error { return os.Chmod(filepath.Join(src, "usr/lib/x"), 0o755) },
		func() error { return os.WriteFile(filepath.Join(src, "usr/lib/y"), nil, 0o644) },
		func() error { return os.WriteFile(filepath.Join(src, "etc/app.conf"), []byte("longer"), 0o644) },
		func() error { return os.Symlink("x", filepath.Join(src, "etc/deep/link")) },
	} {
		must(t, change())
		now := openTest(t, Spec{Root: src})
		if now.Identity() == id {
			t.Error("a change does not show in the identity")
		}
		id = now.Identity()
	}
	if r.Fresh() {
		t.Error("is fresh after etc/app.conf changed")
	}
}

// TestOpenHostileDirectory: a link where the sandbox mounts its own leads the mount elsewhere.
func TestOpenHostileDirectory(t *testing.T) {
	testutil.CheckLeaks(t)
	outside := t.TempDir()
	for _, d := range append(slices.Clone(ownDirs), "dev/console", "dev/pts", "dev/shm") {
		src := tree(t, "bin/sh")
		must(t, os.MkdirAll(filepath.Join(src, filepath.Dir(d)), 0o755))
		must(t, os.Symlink(outside, filepath.Join(src, d)))
		_, err := Open(filepath.Join(t.TempDir(), "s"), Spec{Root: src})
		wantErr(t, err, "symbolic link")
		must(t, os.Remove(filepath.Join(src, d)))
		must(t, unix.Mkfifo(filepath.Join(src, d), 0o666))
		if d == "dev/console" {
			continue // never used
		}
		_, err = Open(filepath.Join(t.TempDir(), "s"), Spec{Root: src})
		wantErr(t, err, "a FIFO")
	}
	for entry, text := range map[string]string{
		"bad\xff":          "not UTF-8",
		"bad -> to\xff":    "not UTF-8",
		"etc/bad\xff":      "not UTF-8",
		"var/bad -> \xfe/": "not UTF-8",
	} {
		_, err := Open(filepath.Join(t.TempDir(), "s"), Spec{Root: tree(t, entry)})
		wantErr(t, err, text)
	}
	src := t.TempDir()
	for i := range maxMounts + 1 {
		must(t, os.Mkdir(filepath.Join(src, strings.Repeat("x", i%200+1)+string(rune('a'+i/200))), 0o755))
	}
	_, err := Open(filepath.Join(t.TempDir(), "s"), Spec{Root: src})
	wantErr(t, err, "has more than 512")
	src = t.TempDir()
	for i := range maxCopied/maxPath + 1 {
		must(t, os.Symlink(strings.Repeat("x", maxPath), fmt.Sprintf("%s/%d", src, i)))
	}
	_, err = Open(filepath.Join(t.TempDir(), "s"), Spec{Root: src})
	wantErr(t, err, "bytes in the targets of its links")
	src = t.TempDir()
	for i := range maxTopLevel + 1 {
		must(t, unix.Mkfifo(fmt.Sprintf("%s/%d", src, i), 0o666))
	}
	_, err = Open(filepath.Join(t.TempDir(), "s"), Spec{Root: src})
	wantErr(t, err, "has more than 1024 entries")
	src = tree(t, "opt/"+strings.Repeat("d/", DefaultMaxDepth+2))
	_, err = Open(filepath.Join(t.TempDir(), "s"), Spec{Root: src})
	wantErr(t, err, "levels of directories")
	src = tree(t, "x")
	must(t, os.Chmod(src, 0o700))
	_, err = Open(filepath.Join(t.TempDir(), "s"), Spec{Root: src})
	wantErr(t, err, "chmod o+rx")
}

// TestOpenManySmallFiles: beyond what may be copied, files are mounted.
func TestOpenManySmallFiles(t *testing.T) {
	src := t.TempDir()
	const n = maxCopied/maxCopy + 10
	for i := range n {
		must(t, os.WriteFile(fmt.Sprintf("%s/%d", src, i), make([]byte, maxCopy), 0o644))
	}
	if r := openTest(t, Spec{Root: src}); len(r.Mounts()) != 10 {
		t.Errorf("%d mounts", len(r.Mounts()))
	}
}

// TestOpenDirectoryWithMounts: a mount can be another's, who may never answer.
func TestOpenDirectoryWithMounts(t *testing.T) {
	inMountNamespace(t, func() {
		for p, ok := range map[string]bool{"proc": true, "dev": true, "opt": false, "usr/lib": false, "etc/x": false, "etc": false, "var": false} {
			src := tree(t, "bin/sh", p+"/")
			must(t, unix.Mount("test", filepath.Join(src, p), "tmpfs", 0, ""))
			r, err := Open(filepath.Join(t.TempDir(), "s"), Spec{Root: src})
			if ok {
				must(t, err)
				must(t, r.Close())
			} else {
				wantErr(t, err, "another mount")
			}
			must(t, unix.Unmount(filepath.Join(src, p), 0))
		}
		// The root itself may be one.
		src := t.TempDir()
		must(t, unix.Mount("test", src, "tmpfs", 0, "mode=755"))
		addTree(t, src, "bin/sh")
		r, err := Open(filepath.Join(t.TempDir(), "s"), Spec{Root: src})
		must(t, err)
		if got := targets(r); !slices.Equal(got, []string{"/bin"}) || r.Mounts()[0].Source != src+"/bin" {
			t.Errorf("mounts are %+v", r.Mounts())
		}
		must(t, r.Close())
		must(t, unix.Unmount(src, 0))
	})
}

// TestOpenRace: whatever the moment at which a link takes the place of what the
// sandbox is to see, it is taken as a link or not at all.
func TestOpenRace(t *testing.T) {
	testutil.CheckLeaks(t)
	outside := tree(t, "secret", "large")
	for name, target := range map[string]string{"opt": outside, "etc": outside, "etc/large": outside + "/large", "dev": outside} {
		t.Run(name, func(t *testing.T) {
			src := tree(t, "src/opt/mine", "src/etc/mine", "src/etc/large", "src/dev/")
			must(t, os.WriteFile(filepath.Join(src, "src/etc/large"), make([]byte, maxCopy+1), 0o644))
			dir := filepath.Join(t.TempDir(), "s")
			flip(t, filepath.Join(src, "src", name), target, func(round int) {
				if round >= 100 {
					return
				}
				r, err := Open(dir, Spec{Root: filepath.Join(src, "src")})
				if err != nil {
					return
				}
				for _, m := range r.Mounts() {
					if at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", m.FD.Fd())); err != nil || strings.HasPrefix(at, outside) {
						t.Errorf("%s is %s (%v)", m.Target, at, err)
					}
				}
				for p := range snapshot(t, dir) {
					if filepath.Base(p) == "secret" {
						t.Errorf("%s was taken from outside", p)
					}
				}
				must(t, r.Close())
			})
		})
	}
}

// TestOpenUsrIsLink: on a host whose /usr lies elsewhere, that is mounted.
// hostAt is a root that takes src for the host's, before anything is taken of it.
func hostAt(t *testing.T, src string) *Rootfs {
	t.Helper()
	r := &Rootfs{dir: t.TempDir(), resolve: beneath, seen: map[string]fileKey{}}
	var err error
	r.src, err = os.OpenFile(src, unix.O_PATH, 0)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

func TestOpenUsrIsLink(t *testing.T) {
	src := tree(t, "srv/usr/bin/sh", "usr -> /srv/usr", "bin -> usr/bin", "lib -> gone", "etc/ld.so.conf", "etc/shadow", "etc/ssl/certs/a", "etc/ssl/private/b", "etc/java-9/x")
	r := hostAt(t, src)
	must(t, r.takeHost())
	if got := targets(r); !slices.Equal(got, []string{"/usr", "/etc/ssl/certs", "/etc/java-9"}) {
		t.Errorf("mounts are %q", got)
	}
	if _, err := unix.FcntlInt(r.Mounts()[0].FD.Fd(), unix.F_GETFL, 0); err != nil {
		t.Error(err)
	}
	st, err := os.Lstat(filepath.Join(r.dir, "usr"))
	must(t, err)
	if to, err := os.Readlink(filepath.Join(r.dir, "bin")); err != nil || to != "usr/bin" || !st.IsDir() {
		t.Errorf("bin leads to %q (%v), usr is %v", to, err, st.Mode())
	}
	for _, p := range []string{"etc/shadow", "etc/ssl/private", "lib"} {
		if _, err := os.Lstat(filepath.Join(r.dir, p)); err == nil {
			t.Errorf("%s is shown", p)
		}
	}
	// Without a package manager, each file counts.
	id, err := r.identify()
	must(t, err)
	must(t, os.Chmod(filepath.Join(src, "srv/usr/bin/sh"), 0o700))
	other, err := r.identify()
	must(t, err)
	// With one, its records do.
	addTree(t, src, "var/lib/dpkg/status")
	recorded, err := r.identify()
	must(t, err)
	addTree(t, src, "srv/usr/bin/new")
	same, err := r.identify()
	must(t, err)
	if id == other || recorded == other || same != recorded {
		t.Errorf("identities are %s, %s, %s, %s", id, other, recorded, same)
	}
	if !r.Fresh() {
		t.Error("is not fresh")
	}
	addTree(t, src, "var/lib/dpkg/status-new")
	must(t, os.Rename(filepath.Join(src, "var/lib/dpkg/status-new"), filepath.Join(src, "var/lib/dpkg/status")))
	if r.Fresh() {
		t.Error("is fresh after a package was installed")
	}
}

func BenchmarkFresh(b *testing.B) {
	r, err := Open(filepath.Join(b.TempDir(), "skeleton"), Spec{})
	must(b, err)
	defer func() { must(b, r.Close()) }()
	for b.Loop() {
		r.Fresh()
	}
	b.ReportMetric(float64(len(r.Mounts())), "mounts")
}

// What is installed by hand, however deep, makes another root of the host's.
func TestHandMadeCounts(t *testing.T) {
	src := tree(t, "usr/bin/sh", "usr/local/lib/python3/dist-packages/a.py", "etc/ssl/certs/a", "etc/perl/Net/x", "var/lib/dpkg/status", "usr/local/lib/old")
	openHost := func() *Rootfs {
		r := hostAt(t, src)
		var err error
		r.watch, err = newWatcher()
		must(t, err)
		must(t, r.takeHost())
		r.identity, err = r.identify()
		must(t, err)
		return r
	}
	was := openHost()
	if !was.Fresh() || was.watch.partial || openHost().Identity() != was.Identity() {
		t.Fatal("an unchanged root is not fresh, or is another")
	}
	local := filepath.Join(src, "usr/local/lib")
	for _, change := range []struct {
		name string
		do   func() error
	}{
		{"write in place", func() error { return os.WriteFile(local+"/python3/dist-packages/a.py", []byte("new"), 0o644) }},
		{"new file", func() error { return os.WriteFile(local+"/python3/dist-packages/b.py", nil, 0o644) }},
		{"new directories", func() error { return os.MkdirAll(local+"/python3/site/deep", 0o755) }},
		{"file in a new directory", func() error { return os.WriteFile(local+"/python3/site/deep/c", nil, 0o644) }},
		{"rename", func() error { return os.Rename(local+"/python3", local+"/python4") }},
		{"chmod", func() error { return os.Chmod(local+"/old", 0o755) }},
		{"remove", func() error { return os.Remove(local + "/old") }},
		{"below etc", func() error { return os.WriteFile(filepath.Join(src, "etc/perl/Net/x"), []byte("new"), 0o644) }},
	} {
		must(t, change.do())
		if was.Fresh() {
			t.Errorf("%s: is still fresh", change.name)
		}
		now := openHost()
		if !now.Fresh() || now.Identity() == was.Identity() {
			t.Errorf("%s: fresh %v, another %v", change.name, now.Fresh(), now.Identity() != was.Identity())
		}
		was = now
	}
	// Where not all can be watched, what is listed at the top must do.
	was.watch.partial = true
	must(t, was.watch.close())
	was.watch.f = nil
	if !was.Fresh() {
		t.Error("unwatched: an unchanged root is not fresh")
	}
	must(t, os.WriteFile(local+"/top", nil, 0o644))
	if was.Fresh() {
		t.Error("unwatched: is still fresh")
	}
}

// A tree by hand that is too large to look at does not keep the host's root from being used.
func TestHandMadeTooLarge(t *testing.T) {
	src := tree(t, "usr/bin/sh", "usr/local/lib/a/b/c", "var/lib/dpkg/status")
	r := hostAt(t, src)
	var err error
	r.watch, err = newWatcher()
	must(t, err)
	r.watch.n = maxWatches
	if _, err := r.identify(); err != nil || !r.watch.partial || !r.Fresh() {
		t.Errorf("%v, partial %v, fresh %v", err, r.watch.partial, r.Fresh())
	}
}
