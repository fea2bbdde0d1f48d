package vmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Kernel is an unpacked kernel package.
type Kernel struct {
	Version string // as `uname -r` says it
	Image   string // path of the plain ELF image
	Modules string // path of lib/modules/VERSION
}

// OpenKernel finds the kernel under dir (which has boot/ and lib/modules/). The
// ELF image is unpacked beside it at the first use: qemu boots it directly, and
// the guest, which is slow when emulated, need not unpack itself.
func OpenKernel(dir string) (Kernel, error) {
	mods, err := filepath.Glob(filepath.Join(dir, "lib/modules/*"))
	if err != nil || len(mods) != 1 {
		return Kernel{}, fmt.Errorf("%s holds no unpacked kernel package: fetch one with internal/vmtest/kernel.sh", dir)
	}
	k := Kernel{Version: filepath.Base(mods[0]), Image: filepath.Join(dir, "vmlinux"), Modules: mods[0]}
	if _, err := os.Stat(k.Image); err == nil {
		return k, nil
	}
	bz, err := os.ReadFile(filepath.Join(dir, "boot", "vmlinuz-"+k.Version))
	if err != nil {
		return Kernel{}, err
	}
	image, err := unpackImage(bz)
	if err != nil {
		return Kernel{}, fmt.Errorf("kernel %s: %w", k.Version, err)
	}
	tmp := fmt.Sprintf("%s.%d", k.Image, os.Getpid())
	if err := os.WriteFile(tmp, image, 0o644); err != nil {
		return Kernel{}, err
	}
	return k, os.Rename(tmp, k.Image)
}

// unpackImage returns the ELF image in a bzImage, by the fields of the x86 boot
// protocol that say where it lies.
func unpackImage(bz []byte) ([]byte, error) {
	const setupSects, magic, payloadOffset, payloadLength = 0x1f1, 0x202, 0x248, 0x24c
	if len(bz) < 0x260 || string(bz[magic:magic+4]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	start := (int64(bz[setupSects])+1)*512 + int64(binary.LittleEndian.Uint32(bz[payloadOffset:]))
	end := start + int64(binary.LittleEndian.Uint32(bz[payloadLength:]))
	if end > int64(len(bz)) || end-start < 8 {
		return nil, errors.New("the bzImage is cut short")
	}
	payload := bz[start:end]
	cmd, err := decompressor(payload)
	if err != nil {
		return nil, err
	}
	var out, diag bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(payload), &out, &diag
	// The payload ends in four bytes of its unpacked size, at which some of the
	// tools complain after all is written: what came out is what counts.
	err = cmd.Run()
	if !bytes.HasPrefix(out.Bytes(), []byte("\x7fELF")) {
		return nil, fmt.Errorf("%s: %v %s", cmd, err, diag.Bytes())
	}
	return out.Bytes(), nil
}

func decompressor(payload []byte) (*exec.Cmd, error) {
	for _, c := range []struct{ magic, tool string }{
		{"\x28\xb5\x2f\xfd", "zstd"},
		{"\xfd7zXZ\x00", "xz"},
		{"\x02\x21\x4c\x18", "lz4"},
		{"\x1f\x8b", "gzip"},
	} {
		if bytes.HasPrefix(payload, []byte(c.magic)) {
			return exec.Command(c.tool, "-dcq"), nil
		}
	}
	return nil, fmt.Errorf("the kernel is packed in a way unknown here (% x)", payload[:6])
}
