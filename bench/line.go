package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// The line of the wan works: 80 ms there and back, 20 Mbit/s each way. There is no
// loss on it. The proxy carries streams, not packets, so it can lose none; the
// kernel's netem could, but is in neither every kernel nor every user's reach.
const (
	lineDelayMS = 40
	lineKBs     = 2_500
	lineRate    = lineKBs * 1000 // bytes a second
)

// line is a proxy between two programs. It is quick until narrow. The rate holds
// for each connection; each contestant carries its changes on one.
type line struct {
	proxy  *toxiproxy.Proxy
	passed *atomic.Int64 // bytes that came out at either end, payload of TCP
}

// lines has each one's counter under its name, where the counting toxic finds it.
var lines sync.Map

// count is a toxic that does nothing but count. The proxy's own metrics know a
// connection's bytes only when it has ended.
type count struct {
	Line string `json:"line"`
}

func (c *count) Pipe(stub *toxics.ToxicStub) {
	passed, _ := lines.Load(c.Line)
	for {
		select {
		case <-stub.Interrupt:
			return
		case chunk := <-stub.Input:
			if chunk == nil {
				stub.Close()
				return
			}
			passed.(*atomic.Int64).Add(int64(len(chunk.Data)))
			stub.Output <- chunk
		}
	}
}

var registerCount = sync.OnceFunc(func() {
	zerolog.SetGlobalLevel(zerolog.Disabled) // a connection that ends is no news
	toxics.Register("count", new(count))
})

func newLine(name, to string) (*line, error) {
	registerCount()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	l := &line{proxy: toxiproxy.NewProxy(server, name, "127.0.0.1:0", to), passed: new(atomic.Int64)}
	lines.Store(name, l.passed)
	return l, l.proxy.Start()
}

func (l *line) address() string { return l.proxy.Listen }

// narrow makes it the line that it stands for, for connections that are made from
// now on: those that found it quick end. The bandwidth stands before the delay, so
// that what waits for its turn waits with the sender; the counter stands behind both.
func (l *line) narrow() error {
	l.proxy.Stop()
	for _, way := range []string{"upstream", "downstream"} {
		for _, toxic := range []string{
			fmt.Sprintf(`{"type": "bandwidth", "stream": %q, "attributes": {"rate": %d}}`, way, lineKBs),
			fmt.Sprintf(`{"type": "latency", "stream": %q, "attributes": {"latency": %d}}`, way, lineDelayMS),
			fmt.Sprintf(`{"type": "count", "stream": %q, "attributes": {"line": %q}}`, way, l.proxy.Name),
		} {
			if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
				return fmt.Errorf("make the line narrow: %s: %w", toxic, err)
			}
		}
	}
	return l.proxy.Start() // at the same port
}

func (l *line) close() {
	l.proxy.Stop()
	lines.Delete(l.proxy.Name)
}

// passage is how many bytes had passed at a time.
type passage struct {
	at    time.Time
	bytes int64
}

// watch samples the line until ctx ends.
func (l *line) watch(ctx context.Context) <-chan []passage {
	out := make(chan []passage, 1)
	go func() {
		var list []passage
		for {
			list = append(list, passage{time.Now(), l.passed.Load()})
			if sleep(ctx, 50*time.Millisecond) != nil {
				out <- append(list, passage{time.Now(), l.passed.Load()})
				return
			}
		}
	}()
	return out
}

// bytesAndRate are all bytes, and those a second between the first and the last
// tenth of them: while the backlog drains, without the begin and the end.
func bytesAndRate(list []passage) (bytes, rate float64, err error) {
	first, all := list[0].bytes, list[len(list)-1].bytes-list[0].bytes
	var from, to passage
	for _, p := range list {
		if from.at.IsZero() && p.bytes-first >= all/10 {
			from = p
		}
		if to.at.IsZero() && p.bytes-first >= all*9/10 {
			to = p
		}
	}
	if within := to.at.Sub(from.at); all > 0 && within > 0 {
		return float64(all), float64(to.bytes-from.bytes) / within.Seconds(), nil
	}
	return 0, 0, fmt.Errorf("%d bytes passed too quickly to tell a rate", all)
}

// lined is a contestant at the far end of a line.
type lined struct {
	contestant
	line *line
}

// overLine makes one whose replica reaches its primary by a line alone.
func overLine(r rival, o options) *lined {
	l := &lined{}
	switch r.name {
	case "hawser":
		l.contestant = &hawser{program: o.hawser, front: func(endpoint string) (string, error) {
			err := l.lay(r.name, endpoint)
			return l.address(), err
		}}
	case "native":
		l.contestant = &native{}
	}
	return l
}

func (l *lined) lay(name, to string) (err error) {
	l.line, err = newLine(name, to)
	return err
}

func (l *lined) address() string {
	if l.line == nil {
		return ""
	}
	return l.line.address()
}

// setup is the initial copy, over the line while it is quick.
func (l *lined) setup(ctx context.Context, p *pair) error {
	if n, ok := l.contestant.(*native); ok {
		if err := p.primary.exec(ctx, "postgres", "ALTER ROLE postgres PASSWORD 'bench'"); err != nil {
			return err
		}
		if err := l.lay("native", net.JoinHostPort("127.0.0.1", fmt.Sprint(p.primary.port))); err != nil {
			return err
		}
		host, port, err := net.SplitHostPort(l.address())
		if err != nil {
			return err
		}
		n.via = fmt.Sprintf("host=%s port=%s user=postgres password=bench dbname=%s", host, port, database)
	}
	if err := l.contestant.setup(ctx, p); err != nil {
		return err
	}
	if err := l.line.narrow(); err != nil {
		return err
	}
	if h, ok := l.contestant.(*hawser); ok {
		return h.knowsDelay(ctx)
	}
	return nil
}

func (l *lined) close() {
	l.contestant.close()
	if l.line != nil {
		l.line.close()
	}
}
