package main

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser/hawser/internal/agent"
	"github.com/hawser/hawser/internal/demo"
)

func (a *app) agent() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run an instance's agent",
		Long: `Runs the agent of one instance in the foreground: attached to a server that runs
already (postgres.connection), or with a managed cluster of its own
(postgres.managed). Every key of the configuration file is a flag and a HAWSER_
variable, too; a flag wins over a variable, and a variable over the file. See
docs/configuration.md.

What ends the agent is told once: to a terminal, and with -o json, as any command tells
an error, and else in the log.

The first SIGINT or SIGTERM ends the agent in good order; another one, at least a
second later, at once.
With -o json the log is in JSON.`,
		Example: `  hawser agent --config /etc/hawser.yaml
  hawser agent --name on-prem --postgres-connection 'host=db1 user=hawser dbname=postgres'
  hawser agent --name mi-west --postgres-managed-port 5433 --state-dir ~/mi-west`,
		Args: args(),
	}
	c.Flags().StringVar(&file, "config", "", "configuration `file` in YAML (default HAWSER_CONFIG)")
	agent.BindFlags(c.Flags())
	c.RunE = a.do(func(c *cobra.Command, _ []string) error {
		config, err := agent.LoadConfig(agent.Sources{File: cmp.Or(file, a.env("HAWSER_CONFIG")), Environ: a.environ, Flags: c.Flags()})
		if err != nil {
			return usage{err}
		}
		if a.output == outputJSON && !c.Flags().Changed("log-format") {
			config.Log.Format = agent.LogJSON
		}
		err = a.runAgent(c.Context(), config, version)
		if ended(c.Context()) && (err == nil || errors.Is(err, context.Canceled)) {
			return nil // asked to end, it did
		}
		if err != nil && !a.errTerminal && a.output == outputText {
			config.Log.Logger(a.err).Error("agent ended", "instance", config.Name, "cause", err)
			return quietly{exitCode(err)}
		}
		return err
	})
	return c
}

// ended reports whether a signal ended ctx.
func ended(ctx context.Context) bool {
	var s signalled
	return errors.As(context.Cause(ctx), &s)
}

func (a *app) demo() *cobra.Command {
	var keep bool
	var duration time.Duration
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show a link at work on this machine",
		Long: `Starts two instances on this machine, a schema and a steady workload as
applications have them, links them, seeds, fails over and back while a client
writes, and proves at the end that both sides hold the same rows. It needs
PostgreSQL's programs and nothing else, and removes what it made. The exit code is
0 only when the proof holds.`,
		Example: `  hawser demo
  hawser demo --keep`,
		Args: args(),
	}
	c.Flags().BoolVar(&keep, "keep", false, "leave all running at the end, and print how to connect")
	c.Flags().DurationVar(&duration, "duration", 0, "how long the workload runs between the steps (default: the demo chooses)")
	c.RunE = a.do(func(c *cobra.Command, _ []string) error {
		return a.runDemo(c.Context(), demo.Options{
			Keep: keep, Duration: duration, Out: a.out, JSON: a.output == outputJSON, Terminal: a.inPlace(),
		})
	})
	return c
}
