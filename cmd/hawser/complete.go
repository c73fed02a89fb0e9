package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser/hawser/internal/agent/api"
)

// Completion asks the running agent, and stays silent without one.

func (a *app) completeLink(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.names(cmd, func(ctx context.Context, c *api.Client) (names []string, err error) {
		links, err := c.Links(ctx)
		for _, l := range links {
			names = append(names, cobra.CompletionWithDesc(l.Name, string(l.State)))
		}
		return names, err
	})
}

func (a *app) completePeer(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.peerNames(cmd)
}

func (a *app) peerNames(cmd *cobra.Command) ([]string, cobra.ShellCompDirective) {
	return a.names(cmd, func(ctx context.Context, c *api.Client) (names []string, err error) {
		list, err := c.Peers(ctx)
		for _, p := range list.Peers {
			names = append(names, p.Name)
		}
		return names, err
	})
}

func (a *app) databaseNames(cmd *cobra.Command) ([]string, cobra.ShellCompDirective) {
	return a.names(cmd, func(ctx context.Context, c *api.Client) (names []string, err error) {
		all, err := c.Databases(ctx)
		for _, d := range all {
			if !d.ReadOnly && !d.Maintenance && clean(d.Name) == d.Name { // what a shell can take
				names = append(names, d.Name)
			}
		}
		return names, err
	})
}

// everyDatabase offers those of links too.
func (a *app) everyDatabase(cmd *cobra.Command) ([]string, cobra.ShellCompDirective) {
	return a.names(cmd, func(ctx context.Context, c *api.Client) (names []string, err error) {
		all, err := c.Databases(ctx)
		for _, d := range all {
			if clean(d.Name) == d.Name {
				names = append(names, d.Name)
			}
		}
		return names, err
	})
}

func (a *app) names(cmd *cobra.Command, ask func(context.Context, *api.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	names, _ := ask(ctx, c)
	return names, cobra.ShellCompDirectiveNoFileComp
}
