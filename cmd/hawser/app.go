package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hawser/hawser/internal/agent"
	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/demo"
	"github.com/hawser/hawser/internal/problem"
)

// app is one call of the program, with all that it has of the world.
type app struct {
	in          io.Reader
	out, err    io.Writer
	environ     []string
	inTerminal  bool
	outTerminal bool
	errTerminal bool
	rows        func() int // of the terminal
	now         func() time.Time
	poll        time.Duration // between two looks at a link
	runAgent    func(context.Context, agent.Config, string) error
	runDemo     func(context.Context, demo.Options) error

	output    outputFormat
	socket    string
	tokenFile string
	began     bool // a command runs: errors before that are errors of usage
}

// version is set by the linker: -X main.version=1.2.3.
var version = "dev"

// run executes the program and returns its exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	switch {
	case !a.began:
		err = usage{err}
		a.output = max(a.output, outputIn(args)) // flags behind a wrong one were not read
	case ended(ctx) && errors.Is(err, context.Canceled):
		err = context.Cause(ctx)
	}
	a.report(cmd, err)
	return exitCode(err)
}

func (a *app) root() *cobra.Command {
	root := group("hawser", "Managed instance link for PostgreSQL", a.demo(), a.agent(), a.validate("validate"), a.cert(), a.peer(), a.link(), a.database(), a.status(), a.version(), exitCodes())
	root.Long = `Hawser ties one database on any PostgreSQL server to a managed instance in near
real time. The replica is readable while the link runs, and becomes writable by a
failover. Each instance has an agent (hawser agent); the other commands speak to
the agent of this machine.`
	root.Example = `  hawser demo
  hawser status
  hawser link create orders --database shop --peer mi-west`
	root.Version = version
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetVersionTemplate("hawser {{.Version}}\n")
	root.SetFlagErrorFunc(flagError)
	flags := root.PersistentFlags()
	flags.VarP(&a.output, "output", "o", "output `format`: text or json")
	flags.StringVar(&a.socket, "socket", "", "`path` of the agent's socket, or URL of its api.listen (default HAWSER_SOCKET, else the default socket)")
	flags.StringVar(&a.tokenFile, "token-file", "", "`file` with the token for a URL (default HAWSER_TOKEN_FILE)")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)) // fails for a flag that does not exist
	return root
}

// group is a command that has others and does nothing itself.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: knownCommand, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(commands...)
	return c
}

// knownCommand refuses the name of a command that does not exist.
func knownCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	c.SuggestionsMinimumDistance = 2
	near := c.SuggestionsFor(args[0])
	if len(near) == 0 {
		near = elsewhere(c, args)
	}
	return fmt.Errorf("%s has no command %q%s", c.CommandPath(), args[0], suggest(near))
}

// elsewhere are the commands of other groups that have the name, as they would be typed.
func elsewhere(c *cobra.Command, args []string) (typed []string) {
	for _, g := range c.Root().Commands() {
		if g == c || g.RunE == nil || !g.IsAvailableCommand() { // cobra's own have no RunE
			continue
		}
		for _, sub := range g.Commands() {
			if named := func(name string) bool { return strings.EqualFold(name, args[0]) }; named(sub.Name()) || slices.ContainsFunc(sub.SuggestFor, named) {
				typed = append(typed, strings.Join(append([]string{sub.CommandPath()}, words(args[1:])...), " "))
			}
		}
	}
	return typed
}

// words are arguments as a shell reads them back.
func words(args []string) []string {
	out := make([]string, len(args))
	for i, arg := range args {
		out[i] = problem.Word(arg)
	}
	return out
}

// flagError names the flag that was meant. Where the command is unknown, that is
// what is wrong: no flag of it can be known.
func flagError(c *cobra.Command, err error) error {
	if given := c.Flags().Args(); c.HasSubCommands() && len(given) > 0 {
		return usage{knownCommand(c, given)}
	}
	var odd *pflag.InvalidValueError
	if errors.As(err, &odd) && odd.GetFlag().Value.Type() == "duration" {
		if _, number := strconv.ParseFloat(odd.GetValue(), 64); number == nil {
			return usage{fmt.Errorf("--%s %s has no unit; %s", odd.GetFlag().Name, odd.GetValue(), problem.DidYouMean(odd.GetValue()+"s"))}
		}
	}
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return usage{err}
	}
	name := unknown.GetSpecifiedName()
	var near []string
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if levenshtein.ComputeDistance(f.Name, name) <= max(1, len(name)/3) {
			near = append(near, "--"+f.Name)
		}
	})
	return usage{fmt.Errorf("%w%s", err, suggest(near))}
}

func suggest(near []string) string {
	if len(near) == 0 {
		return ""
	}
	slices.Sort(near)
	return "; " + problem.DidYouMean(near...)
}

// args asks for exactly the named arguments.
func args(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, given []string) error {
		if len(given) == len(names) {
			return nil
		}
		if len(names) == 0 {
			return fmt.Errorf("%s takes no argument, and was given %q", c.CommandPath(), given[0])
		}
		return fmt.Errorf("%s takes %s, and was given %d arguments%s", c.CommandPath(), strings.Join(names, " "), len(given), suggest(saidTwice(c, given, len(names))))
	}
}

// saidTwice is the command without the group's name, or its own, among the arguments, as in
// link create link orders.
func saidTwice(c *cobra.Command, given []string, takes int) (typed []string) {
	rest := slices.Clone(given)
	for len(rest) > takes && len(rest) > 0 && (rest[0] == c.Name() || c.HasParent() && rest[0] == c.Parent().Name()) {
		rest = rest[1:]
	}
	if len(rest) != takes || len(rest) == len(given) {
		return nil
	}
	return []string{strings.Join(append([]string{c.CommandPath()}, words(rest)...), " ")}
}

// optional allows one argument.
func optional(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, given []string) error {
		if len(given) <= 1 {
			return nil
		}
		return fmt.Errorf("%s takes at most one %s, and was given %d arguments", c.CommandPath(), name, len(given))
	}
}

// ask makes a command's body of one that needs the agent.
func (a *app) ask(do func(ctx context.Context, c *api.Client, args []string) error) func(*cobra.Command, []string) error {
	return a.do(func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		return do(cmd.Context(), c, args)
	})
}

// do marks the moment after which an error is none of usage.
func (a *app) do(body func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.began = true
		return body(cmd, args)
	}
}

// client returns a client of the agent that the flags or the environment name.
func (a *app) client() (*api.Client, error) {
	socket := cmp.Or(a.socket, a.env("HAWSER_SOCKET"), agent.DefaultSocket())
	file := cmp.Or(a.tokenFile, a.env("HAWSER_TOKEN_FILE"))
	if file == "" || !strings.Contains(socket, "://") {
		return api.Dial(socket, "")
	}
	token, err := api.ReadToken(file)
	if err != nil {
		return nil, err
	}
	return api.Dial(socket, token)
}

func (a *app) env(name string) string {
	for _, v := range slices.Backward(a.environ) {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}

// colour reports whether to write colours to a stream.
func (a *app) colour(terminal bool) bool {
	return terminal && a.env("NO_COLOR") == "" && a.env("TERM") != "dumb"
}

// inPlace reports whether lines can be written over.
func (a *app) inPlace() bool {
	return a.outTerminal && a.env("TERM") != "dumb" && a.output == outputText
}

func (a *app) page() page { return page{w: a.out, colour: a.colour(a.outTerminal)} }

// show writes a result: v as JSON, or text for people.
func (a *app) show(v any, text func(p page)) {
	if a.output == outputJSON {
		encode(a.out, v)
		return
	}
	text(a.page())
}

// note tells a person something that is no result.
func (a *app) note(format string, args ...any) {
	if a.output == outputText {
		fmt.Fprintf(a.err, format+"\n", args...)
	}
}

// outputFormat is the value of --output.
type outputFormat int

const (
	outputText outputFormat = iota
	outputJSON
)

func (o outputFormat) String() string {
	if o == outputJSON {
		return "json"
	}
	return "text"
}

// outputIn finds --output in arguments that could not be parsed.
func outputIn(args []string) outputFormat {
	all := " " + strings.Join(args, " ") + " "
	for _, form := range []string{" -o json ", " -ojson ", " -o=json ", " --output json ", " --output=json "} {
		if strings.Contains(all, form) {
			return outputJSON
		}
	}
	return outputText
}

// Set is called by pflag.
func (o *outputFormat) Set(s string) error {
	switch s {
	case "text":
		*o = outputText
	case "json":
		*o = outputJSON
	default:
		return fmt.Errorf("want text or json")
	}
	return nil
}

// Type is called by pflag.
func (o outputFormat) Type() string { return "format" }

// build tells what the program was made of.
func build() (revision, goVersion string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "", ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			revision = s.Value
		}
	}
	return revision, info.GoVersion
}
