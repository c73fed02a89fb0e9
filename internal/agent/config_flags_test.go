package agent

import (
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
