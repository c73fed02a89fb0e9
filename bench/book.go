package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// book keeps the latest figures of every work. A work that is run again replaces
// its own; those of other works stay, each with the run that it is of.
type book struct {
	md, json string
	machine  machine
	Works    []*page `json:"works"`
}

// page is one work's latest run.
type page struct {
	Work    string    `json:"work"`
	At      time.Time `json:"at"`
	Commit  string    `json:"commit"`
	Short   bool      `json:"short,omitempty"`
	Machine machine   `json:"machine"`
	LeftOut []string  `json:"left_out,omitempty"` // rivals that are not installed
	Samples []entered `json:"samples"`
}

// entered is a sample with whose it is.
type entered struct {
	Rival  string `json:"rival"`
	Values sample `json:"values"`
}

type machine struct {
	CPU      string `json:"cpu"`
	Cores    int    `json:"cores"`
	MemoryGB int    `json:"memory_gb"`
	Kernel   string `json:"kernel"`
	Postgres string `json:"postgres"`
	short    bool
	commit   string
}

func openBook(o options) (*book, error) {
	b := &book{md: o.out, json: o.json}
	data, err := os.ReadFile(o.json)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	} else if err == nil {
		err = json.Unmarshal(data, b)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", o.json, err)
	}
	b.machine = thisMachine()
	b.machine.short = o.short
	return b, nil
}

func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), CPU: "unknown"}
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if rest, ok := strings.CutPrefix(line, "model name"); ok {
				m.CPU = strings.TrimSpace(strings.TrimLeft(rest, "\t :"))
				break
			}
		}
	}
	if data, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kb int
		_, _ = fmt.Sscanf(string(data), "MemTotal: %d kB", &kb)
		m.MemoryGB = (kb + 1<<19) >> 20
	}
	if data, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(data))
	}
	if out, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		m.commit = strings.TrimSpace(string(out))
	}
	return m
}

func (b *book) begin(postgres string) { b.machine.Postgres = postgres }

// start opens a new page for a work.
func (b *book) start(w *work) {
	b.Works = slices.DeleteFunc(b.Works, func(p *page) bool { return p.Work == w.name })
	p := &page{Work: w.name, At: time.Now().UTC().Truncate(time.Second), Machine: b.machine, Commit: b.machine.commit, Short: b.machine.short}
	for _, name := range w.rivals {
		if !rivalOf(name).here() {
			p.LeftOut = append(p.LeftOut, name)
		}
	}
	b.Works = append(b.Works, p)
}

func (b *book) page(name string) *page {
	for _, p := range b.Works {
		if p.Work == name {
			return p
		}
	}
	return nil
}

func (b *book) add(w *work, rival string, s sample) {
	p := b.page(w.name)
	p.Samples = append(p.Samples, entered{rival, s})
}

// of is a rival's figures of one name, in the order of the rounds.
func (p *page) of(rival, name string) []float64 {
	var out []float64
	for _, s := range p.Samples {
		if v, ok := s.Values[name]; ok && s.Rival == rival {
			out = append(out, v)
		}
	}
	return out
}

// rivals are those that have figures, in the order of the table of rivals.
func (p *page) rivals() []string {
	var out []string
	for _, s := range p.Samples {
		if !slices.Contains(out, s.Rival) {
			out = append(out, s.Rival)
		}
	}
	slices.SortStableFunc(out, func(a, b string) int {
		return slices.Index(rivalNames(), a) - slices.Index(rivalNames(), b)
	})
	return out
}

func (b *book) save() error {
	slices.SortStableFunc(b.Works, func(x, y *page) int {
		return slices.Index(workNames(), x.Work) - slices.Index(workNames(), y.Work)
	})
	data, err := json.MarshalIndent(b, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.json, append(data, '\n'), 0o644); err != nil {
		return err
	}
	text := b.markdown()
	fmt.Println()
	fmt.Println(summary(b))
	return errors.Join(os.WriteFile(b.chartFile(), []byte(b.svg()), 0o644), os.WriteFile(b.md, text, 0o644))
}

func title(rival string) string {
	if r := rivalOf(rival); r.title != "" {
		return r.title
	}
	return rival
}

func workOf(name string) *work {
	for _, w := range works {
		if w.name == name {
			return w
		}
	}
	return nil
}

func amount(v float64, unit string) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f %s", v, unit)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

func (b *book) markdown() []byte {
	var out bytes.Buffer
	out.WriteString("# Results\n\nWritten by `go run ./bench`; `bench/results.json` holds every sample. Better by is the ratio of medians, Hawser's and the rival's, of one run:\n" +
		"2.00 × is twice as fast, or half as much. A limit does less than replication has to, and bounds it.\n\n" + summary(b) +
		"\n![Each figure and its bar](" + filepath.Base(b.chartFile()) + ")\n\n")
	var missing []string
	for _, w := range works {
		if b.page(w.name) == nil {
			missing = append(missing, "`"+w.name+"`")
		}
	}
	if len(missing) > 0 {
		fmt.Fprintf(&out, "Not run yet: %s.\n\n", strings.Join(missing, ", "))
	}
	for _, p := range b.Works {
		if w := workOf(p.Work); w != nil {
			p.write(&out, w)
		}
	}
	return out.Bytes()
}

func (p *page) write(out *bytes.Buffer, w *work) {
	fmt.Fprintf(out, "## %s (`%s`)\n\n%s.\n", w.title, w.name, w.note)
	if p.Short {
		out.WriteString("**A short run, with a tenth of the data: no proof of any ratio.**\n")
	}
	for _, name := range p.LeftOut {
		fmt.Fprintf(out, "Left out: %s, which is not installed (%s).\n", title(name), rivalOf(name).remedy)
	}
	fmt.Fprintf(out, "\n%s, commit %s, %s; %d cores of %s, %d GB, Linux %s.\n\n", p.At.Format(time.DateOnly), p.Commit, p.Machine.Postgres,
		p.Machine.Cores, p.Machine.CPU, p.Machine.MemoryGB, p.Machine.Kernel)
	if len(p.Samples) == 0 {
		out.WriteString("Nothing was measured.\n\n")
		return
	}
	out.WriteString("```text\n" + p.chart(w) + "```\n\n")
	p.table(out)
}

// chart draws the medians as bars.
func (p *page) chart(w *work) string {
	const width = 50
	most := 0.0
	for _, r := range p.rivals() {
		most = max(most, median(p.of(r, "value")))
	}
	var out strings.Builder
	for _, r := range p.rivals() {
		v := p.of(r, "value")
		m := median(v)
		name := title(r)
		if rivalOf(r).limit {
			name += " (limit)"
		}
		fmt.Fprintf(&out, "%-24s %-*s %s   (%s to %s, %d rounds)\n", name, width, strings.Repeat("█", max(1, int(m/most*width+0.5))), amount(m, w.unit),
			amount(slices.Min(v), w.unit), amount(slices.Max(v), w.unit), len(v))
	}
	return out.String()
}

// columns are what is shown beside the value, where somebody has it.
var columns = []struct {
	name, head, form string
	each             bool // for each change, in µs
}{
	{"cpu_primary", "primary's CPU", "%.1f µs", true},
	{"cpu_replica", "replica's CPU", "%.1f µs", true},
	{"cpu_agent_primary", "primary agent's CPU", "%.1f µs", true},
	{"cpu_agent_replica", "replica agent's CPU", "%.1f µs", true},
	{"rss_agent_primary", "primary agent's memory", "%.0f MB", false},
	{"rss_agent_replica", "replica agent's memory", "%.0f MB", false},
	{"p99", "99th percentile", "%.2f ms", false},
	{"most", "at most", "%.0f ms", false},
	{"closed", "no side took writes (median)", "%.0f ms", false},
	{"seconds", "time", "%.1f s", false},
	{"line", "of the line's rate", "%.0f %%", false},
	{"wire", "bytes on the wire", "%.1f MB", false},
	{"lag", "most lag at that rate", "%.0f ms", false},
	{"asked", "rate asked for", "%.0f tx/s", false},
	{"us_1000", "10³ changes, each", "%.1f µs", false},
	{"us_10000", "10⁴ changes, each", "%.1f µs", false},
	{"us_100000", "10⁵ changes, each", "%.1f µs", false},
	{"us_1000000", "10⁶ changes, each", "%.1f µs", false},
	{"us_10000000", "10⁷ changes, each", "%.1f µs", false},
	{"us_t10", "10 tables, a change", "%.1f µs", false},
	{"us_t100", "100 tables, a change", "%.1f µs", false},
	{"us_t1000", "1,000 tables, a change", "%.1f µs", false},
	{"us_t10000", "10,000 tables, a change", "%.1f µs", false},
	{"flat", "memory, largest size to the one before", "%.2f ×", false},
	{"links", "links", "%.0f", false},
	{"rss_link", "agents' memory a link", "%.2f MB", false},
	{"connections", "connections to the replica's databases", "%.0f", false},
	{"connections_link", "the same, a link", "%.2f", false},
	{"sessions_primary", "sessions on the primary", "%.0f", false},
	{"sessions_replica", "sessions on the replica", "%.0f", false},
	{"cpu_servers", "both PostgreSQL's CPU, of one core", "%.1f %%", false},
	{"load", "load average", "%.1f", false},
}

// table tells CPU for each change, and the peak of memory.
func (p *page) table(out *bytes.Buffer) {
	head, rule := "| ", "| ---"
	var lines []string
	for _, r := range p.rivals() {
		lines = append(lines, "| "+title(r))
	}
	for _, c := range columns {
		any := false
		for _, r := range p.rivals() {
			any = any || len(p.of(r, c.name)) > 0
		}
		if !any || c.each && len(p.of(p.rivals()[0], "changes")) == 0 {
			continue
		}
		head, rule = head+" | "+c.head, rule+" | ---"
		if c.each {
			head += " a change"
		}
		for i, r := range p.rivals() {
			v := p.of(r, c.name)
			cell := "–"
			if len(v) > 0 {
				m := median(v)
				if c.each {
					m = m / median(p.of(r, "changes")) * 1e6
				}
				cell = fmt.Sprintf(c.form, m)
			}
			lines[i] += " | " + cell
		}
	}
	if head == "| " {
		return
	}
	fmt.Fprintf(out, "%s |\n%s |\n%s |\n\n", head, rule, strings.Join(lines, " |\n"))
}
