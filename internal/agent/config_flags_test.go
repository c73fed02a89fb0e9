package agent

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// TestLogLevelFlag: the flag takes what the documentation names, as the file and
// the environment do.
func TestLogLevelFlag(t *testing.T) {
	for _, level := range []string{"debug", "info", "warn", "error"} {
		flags := pflag.NewFlagSet("agent", pflag.ContinueOnError)
		BindFlags(flags)
		if err := flags.Parse([]string{"--log-level", level}); err != nil {
			t.Error(err)
		}
	}
}

// TestFlagHelp: help speaks of forms and defaults as the documentation does.
func TestFlagHelp(t *testing.T) {
	flags := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	BindFlags(flags)
	usage := flags.FlagUsages()
	for _, want := range []string{"--log-level level", "--limits-memory size", "--limits-seed-workers number", "(required)"} {
		if !strings.Contains(usage, want) {
			t.Errorf("%q is missing in\n%s", want, usage)
		}
	}
	for _, wrong := range []string{"default required", "default []", " int "} {
		if strings.Contains(usage, wrong) {
			t.Errorf("%q stands in\n%s", wrong, usage)
		}
	}
}
