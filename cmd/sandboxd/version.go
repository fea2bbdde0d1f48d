package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker: -ldflags "-X main.version=1.2.3".
var version string

// buildVersion is the linker's version, else that of the module, with the commit.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return orElse(version, "unknown")
	}
	v := orElse(version, info.Main.Version)
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return orElse(v, "(devel)") + " " + s.Value[:min(len(s.Value), 12)]
		}
	}
	return orElse(v, "(devel)")
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func (e *env) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: noArgs, RunE: func(*cobra.Command, []string) error {
		_, err := fmt.Fprintf(e.stdout, "sandboxd %s %s %s/%s\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	}}
}
