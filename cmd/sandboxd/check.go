package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// finding is one line of check.
type finding struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Detail is what was found, Remedy what to do about it.
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
	// Required says that without it the default task cannot run.
	Required bool `json:"required"`
}

func (e *env) checkCommand() *cobra.Command {
	var (
		file   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Show what this host can do, with remedies; exit 1 if the default task cannot run",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := readConfig(file, e.configFile)
			if err != nil {
				return err
			}
			if err := c.validate(); err != nil {
				return err
			}
			return e.printFindings(e.parts.check(cmd.Context(), c), asJSON)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "configuration (default "+e.configFile+", if it exists)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func (e *env) printFindings(fs []finding, asJSON bool) error {
	able := true
	for _, f := range fs {
		able = able && (f.OK || !f.Required)
	}
	if asJSON {
		if err := writeJSON(e.stdout, map[string]any{"able": able, "findings": fs}); err != nil {
			return err
		}
	} else {
		for _, f := range fs {
			fmt.Fprintln(e.stdout, f)
		}
	}
	if !able {
		return exitStatus(exitFailure)
	}
	return nil
}

// String is the line that check prints.
func (f finding) String() string {
	if f.OK {
		return fmt.Sprintf("%-8s %s: %s", "ok", f.Name, f.Detail)
	}
	s := fmt.Sprintf("%-8s %s: %s", "MISSING", f.Name, f.Detail)
	if f.Remedy != "" {
		s += " — " + f.Remedy
	}
	if !f.Required {
		s += " (the default task runs without)"
	}
	return s
}
