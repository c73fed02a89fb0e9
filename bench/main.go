// Command bench measures Hawser against its rivals on one machine.
//
// Each contestant has a primary and a replica of its own, copies of one prepared
// cluster with the same settings. Only one contestant works at a time; their order
// turns with every round, so that a machine that is busy with other things slows
// them alike. Hawser runs as its users run it: two agents in processes of their
// own, tied by mutual TLS.
//
// It prints medians and ratios, and keeps them as Markdown (bench/RESULTS.md) and
// JSON. It must never report a figure that it did not measure in the same run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

type options struct {
	works, rivals []string
	rounds        int
	short         bool
	keep          bool
	large         bool
	render        bool
	hawser        string // the program
	out, json     string
	dir           string
}

func main() {
	var o options
	works := flag.String("work", "", "works to run, with commas; empty: all. "+strings.Join(workNames(), " "))
	rivals := flag.String("rivals", "", "rivals to measure, with commas; empty: all that are installed. "+strings.Join(rivalNames(), " "))
	flag.IntVar(&o.rounds, "rounds", 3, "how often each work is done by each contestant")
	flag.BoolVar(&o.short, "short", false, "a tenth of the data: shows that all runs, proves no ratio")
	flag.BoolVar(&o.large, "large", false, "10,000,000 changes and 10,000 tables too, where a work grows its sizes")
	flag.BoolVar(&o.render, "render", false, "measure nothing: write the Markdown and the chart from the JSON file")
	flag.BoolVar(&o.keep, "keep", false, "leave the directory with the clusters' and agents' logs")
	flag.StringVar(&o.hawser, "hawser", "bin/hawser", "the program to measure")
	flag.StringVar(&o.out, "out", "bench/RESULTS.md", "the Markdown file; works that were not run keep their place in it")
	flag.StringVar(&o.json, "json", "bench/results.json", "the JSON file, from which the Markdown is made")
	flag.StringVar(&o.dir, "dir", "", "directory for the clusters; a temporary one when empty")
	flag.Parse()
	o.works, o.rivals = split(*works, workNames()), split(*rivals, rivalNames())

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func split(s string, all []string) []string {
	if s == "" {
		return all
	}
	return strings.Split(s, ",")
}

func run(ctx context.Context, o options) error {
	if o.rounds < 1 {
		return fmt.Errorf("-rounds %d: at least 1", o.rounds)
	}
	for _, name := range o.works {
		if !slices.Contains(workNames(), name) {
			return fmt.Errorf("-work %s: there are %s", name, strings.Join(workNames(), ", "))
		}
	}
	for _, name := range o.rivals {
		if !slices.Contains(rivalNames(), name) {
			return fmt.Errorf("-rivals %s: there are %s", name, strings.Join(rivalNames(), ", "))
		}
	}
	book, err := openBook(o)
	if err != nil {
		return err
	}
	b := &bench{options: o, book: book}
	if o.render {
		return book.save()
	}
	if err := b.open(); err != nil {
		return err
	}
	defer b.close()
	for _, w := range works {
		if !slices.Contains(o.works, w.name) {
			continue
		}
		if err := w.run(ctx, b, w); err != nil {
			return fmt.Errorf("work %s: %w", w.name, err)
		}
		// What is done is kept, whatever happens to the next.
		if err := book.save(); err != nil {
			return err
		}
	}
	return nil
}
