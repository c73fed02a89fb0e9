package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/hawser/hawser/internal/problem"
)

// Sources are where a configuration is read from. A later one wins: file,
// environment, flags.
type Sources struct {
	File    string         // YAML; "" for none
	Environ []string       // as os.Environ gives it
	Flags   *pflag.FlagSet // to which BindFlags was applied; nil for none
}

// LoadConfig reads, completes and checks a configuration. Its error holds every
// finding.
func LoadConfig(sources Sources) (Config, error) {
	k := koanf.New(".")
	findings, err := load(k, sources)
	if err != nil {
		return Config{}, err
	}
	c := DefaultConfig()
	if k.Exists("postgres.managed") {
		c.Postgres.Managed = defaultManaged()
	}
	wrong := decode(k, &c)
	findings = append(findings, wrong...)
	if err := c.complete(); err != nil {
		return Config{}, err
	}
	for _, f := range c.Check() {
		if !follows(f, wrong) {
			findings = append(findings, f)
		}
	}
	if err := findings.Err(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// follows reports whether a finding says again, in other words, that a value could
// not be read: it then looks as if it were missing.
func follows(f *problem.Problem, wrong problem.Findings) bool {
	return slices.ContainsFunc(wrong, func(w *problem.Problem) bool {
		return w.Object == f.Object || strings.HasPrefix(w.Object, f.Object+".")
	})
}

// BindFlags defines a flag for every key. A flag takes any text: LoadConfig reads it
// as it reads the other sources, and tells of all that are wrong at once.
func BindFlags(flags *pflag.FlagSet) {
	for _, key := range configKeys() {
		if key.kind == reflect.Map {
			flags.StringToString(key.flag, nil, strings.Replace(key.doc, "name=value,…", "`name=value,…`", 1)) // the word for its form
			flags.Lookup(key.flag).DefValue = ""                                                               // help would show []
			continue
		}
		flags.Var(&flagText{kind: key.form}, key.flag, key.usage())
	}
}

// flagText is the text of a flag, and the word that help has for its form.
type flagText struct{ text, kind string }

func (f *flagText) Set(text string) error { f.text = text; return nil }
func (f *flagText) String() string        { return f.text }
func (f *flagText) Type() string          { return f.kind }

// configKey is one key of the configuration, under all its names.
type configKey struct {
	name, flag, env string
	doc, standard   string // standard: the default, in words or as a value
	kind            reflect.Kind
	form            string // of its value, in a word
}

func (k configKey) usage() string {
	switch k.standard {
	case "":
		return k.doc
	case "required":
		return k.doc + " (required)"
	}
	return k.doc + " (default " + k.standard + ")"
}

// formOf is the word for what a key's value is.
func formOf(value any) string {
	switch value.(type) {
	case ByteSize:
		return "size"
	case slog.Level:
		return "level"
	case LogFormat:
		return "format"
	case int:
		return "number"
	}
	return "text"
}

// configKeys lists the keys of Config in their order.
func configKeys() []configKey {
	c := DefaultConfig()
	c.StateDir = ""
	c.Postgres.Managed = defaultManaged()
	return keysOf(reflect.ValueOf(c), "")
}

func keysOf(v reflect.Value, prefix string) []configKey {
	var keys []configKey
	for i := range v.NumField() {
		field, value := v.Type().Field(i), reflect.Indirect(v.Field(i))
		name := prefix + field.Tag.Get("koanf")
		if value.Kind() == reflect.Struct {
			keys = append(keys, keysOf(value, name+".")...)
			continue
		}
		standard := field.Tag.Get("default")
		if standard == "" {
			standard = textOf(value)
		}
		keys = append(keys, configKey{
			name: name, doc: field.Tag.Get("doc"), standard: standard, kind: value.Kind(), form: formOf(value.Interface()),
			flag: strings.NewReplacer(".", "-", "_", "-").Replace(name),
			env:  envPrefix + strings.ToUpper(strings.ReplaceAll(name, ".", "_")),
		})
	}
	return keys
}

// textOf is a default as it stands in the file, "" when there is none.
func textOf(v reflect.Value) string {
	if level, ok := v.Interface().(slog.Level); ok {
		return strings.ToLower(level.String())
	}
	if v.IsZero() {
		return ""
	}
	return fmt.Sprint(v.Interface())
}

const envPrefix = "HAWSER_"

// load reads the sources into k, and finds what no key is known for. Its error
// is that of a file that can't be read at all.
func load(k *koanf.Koanf, sources Sources) (problem.Findings, error) {
	keys := configKeys()
	var findings problem.Findings
	if sources.File != "" {
		if err := k.Load(file.Provider(sources.File), yaml.Parser()); err != nil {
			return nil, unreadable(sources.File, err)
		}
		findings = append(findings, unknownKeys(k.Raw(), "", keys, sources.File)...)
	}
	vars := envSource{keys: keys, environ: sources.Environ}
	_ = k.Load(env.Provider(".", env.Opt{Prefix: envPrefix, EnvironFunc: func() []string { return sources.Environ }, TransformFunc: vars.read}), nil) // never fails: it reads memory
	findings = append(findings, vars.findings...)
	if sources.Flags != nil {
		_ = k.Load(posflag.ProviderWithFlag(sources.Flags, ".", nil, func(f *pflag.Flag) (string, any) { return flagValue(sources.Flags, f, keys) }), nil) // nor does this
	}
	return findings, nil
}

func unreadable(path string, err error) *problem.Problem {
	object := "file " + path
	if errors.Is(err, fs.ErrNotExist) {
		return problem.New("config-not-found", object, "The configuration file does not exist.", "--config FILE").Advise("docs/configuration.md shows such a file")
	}
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		return problem.New("invalid-config", object, "The configuration file can't be read", "").Advise("let the agent's user read it").Because(pathErr.Err)
	}
	return problem.New("invalid-config", object, "The configuration file is not a map in YAML", "").Advise("docs/configuration.md shows such a file").Because(err)
}

// unknownKeys finds the keys of a file that mean nothing.
func unknownKeys(m map[string]any, prefix string, keys []configKey, path string) problem.Findings {
	var findings problem.Findings
	for name, value := range m {
		full := prefix + name
		if slices.ContainsFunc(keys, func(k configKey) bool { return k.name == full }) {
			continue
		}
		section := slices.ContainsFunc(keys, func(k configKey) bool { return strings.HasPrefix(k.name, full+".") })
		inner, isMap := value.(map[string]any)
		switch {
		case section && isMap:
			findings = append(findings, unknownKeys(inner, full+".", keys, path)...)
		case section && value != nil:
			findings = append(findings, problem.New("invalid-config", "key "+full, "It is a section with keys of its own, not a value, in "+path+".", "").Advise("docs/configuration.md shows it"))
		case !section:
			findings = append(findings, problem.New("invalid-config", "key "+full, "There is no such key; "+path+" has it.", "").Advise(meant(nearestKey(prefix, name, keys))))
		}
	}
	slices.SortFunc(findings, func(a, b *problem.Problem) int { return strings.Compare(a.Object, b.Object) })
	return findings
}

// nearestKey is the key or section that was most likely meant by one of that name
// behind prefix: one of the same section, else one of its name elsewhere.
func nearestKey(prefix, name string, keys []configKey) string {
	var near, far []string
	for _, k := range keys {
		if rest, ok := strings.CutPrefix(k.name, prefix); ok {
			first, _, _ := strings.Cut(rest, ".")
			near = append(near, first)
		}
		if strings.HasSuffix(k.name, "."+name) {
			far = append(far, k.name)
		}
	}
	if found := problem.Nearest(name, near); found != "" {
		return prefix + found
	}
	if len(far) == 1 {
		return far[0]
	}
	return ""
}

// meant is the advice for a name that is not known.
func meant(nearest string) string {
	if nearest == "" {
		return "remove it; hawser agent --help lists what is known"
	}
	return problem.DidYouMean(nearest)
}

// envSource turns HAWSER_ variables into keys.
type envSource struct {
	keys     []configKey
	environ  []string
	findings problem.Findings
}

// read returns the key of a variable, or "" for one that is not the agent's.
func (s *envSource) read(name, value string) (string, any) {
	for _, key := range s.keys {
		if key.env != name {
			continue
		}
		if key.kind != reflect.Map {
			return key.name, value
		}
		m, err := parseMap(value)
		if err != nil {
			s.findings = append(s.findings, problem.New("invalid-config", "variable "+name, "It is not name=value,name=value.", name+`='work_mem=64MB,"shared_preload_libraries=a,b"'`))
			return "", nil
		}
		return key.name, m
	}
	if !s.isForeign(name, value) {
		known := make([]string, len(s.keys))
		for i, key := range s.keys {
			known[i] = key.env
		}
		s.findings = append(s.findings, problem.New("invalid-config", "variable "+name, "No key is set by this variable.", "").Advise(meant(problem.Nearest(name, known))))
	}
	return "", nil
}

// isForeign knows the HAWSER_ variables that are not keys: those of the command
// line, and those that Kubernetes sets in every container for a Service whose
// name begins with hawser. A port of Kubernetes' is told from a key that is spelt
// wrong by its value, which is a URL, or by the Service's host that stands beside it.
func (s *envSource) isForeign(name, value string) bool {
	switch name {
	case "HAWSER_CONFIG", "HAWSER_TOKEN_FILE", "HAWSER_PG_BIN":
		return true
	}
	if kubernetesOwn.MatchString(name) {
		return true
	}
	m := kubernetesPort.FindStringSubmatch(name)
	return m != nil && (strings.Contains(value, "://") || s.isSet(m[1]+"_SERVICE_HOST"))
}

var (
	kubernetesOwn  = regexp.MustCompile(`^HAWSER(_\w+)?_(SERVICE_HOST|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)$`)
	kubernetesPort = regexp.MustCompile(`^(HAWSER(?:_\w+?)??)_(?:SERVICE_PORT(?:_\w+)?|PORT)$`)
)

func (s *envSource) isSet(name string) bool {
	return slices.ContainsFunc(s.environ, func(v string) bool { return strings.HasPrefix(v, name+"=") })
}

func flagValue(flags *pflag.FlagSet, f *pflag.Flag, keys []configKey) (string, any) {
	for _, key := range keys {
		if key.flag != f.Name {
			continue
		}
		if m, err := flags.GetStringToString(f.Name); err == nil {
			return key.name, toAny(m)
		}
		return key.name, f.Value.String()
	}
	return "", nil
}

// parseMap reads name=value,… as the flag of the same key does.
func parseMap(s string) (map[string]any, error) {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	m := flags.StringToString("m", nil, "")
	if err := flags.Set("m", s); err != nil {
		return nil, fmt.Errorf("read %q: %w", s, err)
	}
	return toAny(*m), nil
}

func toAny(m map[string]string) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// decode writes what k holds over c, and finds each value that has the wrong type.
func decode(k *koanf.Koanf, c *Config) problem.Findings {
	err := k.UnmarshalWithConf("", c, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		DecodeHook:       mapstructure.ComposeDecodeHookFunc(boolText, mapstructure.TextUnmarshallerHookFunc()),
		WeaklyTypedInput: true,
		TagName:          "koanf",
	}})
	var findings problem.Findings
	for _, e := range decodeErrors(err) {
		findings = append(findings, wrongForm(e, k.Get(e.Name())))
	}
	if err != nil && len(findings) == 0 {
		findings = append(findings, problem.New("invalid-config", "", "The configuration can't be read", "").Advise("docs/configuration.md shows what it has").Because(err))
	}
	return findings
}

// wrongForm says in words what a value should be; the decoder speaks of Go's types.
func wrongForm(e *mapstructure.DecodeError, value any) *problem.Problem {
	name := e.Name()
	i := slices.IndexFunc(configKeys(), func(k configKey) bool { return k.name == name })
	if i < 0 {
		return invalid(name, "Its value has the wrong form: "+rootCause(e).Error()+".", "").Advise("docs/configuration.md shows the key")
	}
	key := configKeys()[i]
	text := fmt.Sprintf("%q", fmt.Sprint(value))
	switch value.(type) {
	case map[string]any:
		text = "A map"
	case []any:
		text = "A list"
	}
	want := map[string]string{"size": "a size such as 256MiB or 16GB", "level": "a level of log lines", "number": "a whole number", "text": "text"}[key.form]
	if key.kind == reflect.Map {
		want = "a map of names and values"
	}
	remedy, advice := "", "docs/configuration.md shows the key"
	switch {
	case key.form == "level":
		remedy, advice = "log: {level: info}", "or debug, warn or error"
	case key.standard != "" && key.form != "text":
		remedy, advice = "", "for instance "+name+": "+key.standard
	}
	return invalid(name, text+" is not "+want+".", remedy).Advise(advice)
}

// boolText keeps PostgreSQL's spelling of a YAML boolean among the settings.
func boolText(from, to reflect.Type, data any) (any, error) {
	if from.Kind() == reflect.Bool && to.Kind() == reflect.String {
		return strconv.FormatBool(reflect.ValueOf(data).Bool()), nil
	}
	return data, nil
}

// decodeErrors finds the errors of single values, which the decoder joins and wraps.
func decodeErrors(err error) []*mapstructure.DecodeError {
	switch e := err.(type) {
	case *mapstructure.DecodeError:
		return []*mapstructure.DecodeError{e}
	case interface{ Unwrap() []error }:
		var all []*mapstructure.DecodeError
		for _, one := range e.Unwrap() {
			all = append(all, decodeErrors(one)...)
		}
		return all
	case interface{ Unwrap() error }:
		return decodeErrors(e.Unwrap())
	}
	return nil
}

func rootCause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
