package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hawser/hawser/internal/problem"
)

// Config is what a server needs.
type Config struct {
	Service Service
	Version string // of the agent, for the API's description
	Socket  string // path of the Unix socket
	Listen  string // host:port on loopback; "" for none
	Token   string // what a client on Listen must show
	Log     *slog.Logger
}

// Server answers on an agent's socket, and on a TCP address if it has one.
type Server struct {
	config Config
	socket *socketListener
	tcp    net.Listener // nil without Listen
}

// Listen opens the server's doors. Serve answers at them.
func Listen(config Config) (*Server, error) {
	if config.Listen != "" {
		if err := CheckListen(config.Listen); err != nil {
			return nil, err
		}
		if config.Token == "" {
			return nil, problem.New("token-missing", "setting api.token_file",
				"On a TCP port every user of the machine can connect; only a token tells them apart.", "").Advise("set api.token_file, or leave out api.listen")
		}
	}
	socket, err := listenSocket(config.Socket)
	if err != nil {
		return nil, err
	}
	s := &Server{config: config, socket: socket}
	if config.Listen == "" {
		return s, nil
	}
	if s.tcp, err = net.Listen("tcp", config.Listen); err != nil {
		p := problem.New("port-in-use", "setting api.listen", "The agent can't listen on "+config.Listen+".", "").Advise("set another port").Because(err)
		return nil, errors.Join(p, socket.Close())
	}
	return s, nil
}

// CheckListen refuses an address for the API that is not on loopback: the
// token would cross the network in the clear.
func CheckListen(address string) error {
	host, port, err := net.SplitHostPort(address)
	if cause := CheckPort(port); err == nil && port != "0" && cause != "" { // 0 is any that is free
		return problem.New("invalid-setting", "setting api.listen", cause, "api: {listen: '127.0.0.1:5023'}")
	}
	if err != nil {
		return problem.New("invalid-setting", "setting api.listen", fmt.Sprintf("%q is not host:port.", address), "api: {listen: '127.0.0.1:5023'}")
	}
	if !isLoopback(host) {
		return problem.New("invalid-setting", "setting api.listen",
			fmt.Sprintf("%q is not on loopback. The API speaks no TLS, so its token would cross the network in the clear.", address),
			"api: {listen: '127.0.0.1:5023'}").Advise("reach it from elsewhere by ssh -L 5023:127.0.0.1:5023")
	}
	return nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Addr is the TCP address on which the server listens, nil without one.
func (s *Server) Addr() net.Addr {
	if s.tcp == nil {
		return nil
	}
	return s.tcp.Addr()
}

// Serve answers until ctx ends. Then it stops listening, ends the context of
// every operation that runs, and gives them a moment to answer. It returns nil
// when ctx ended it.
func (s *Server) Serve(ctx context.Context) error {
	handler := newHandler(ctx, s.config)
	g, ctx := errgroup.WithContext(ctx)
	s.serve(ctx, g, s.socket, handler)
	if s.tcp != nil {
		s.serve(ctx, g, s.tcp, requireToken(s.config.Token, handler))
	}
	return g.Wait()
}

// Close closes the doors of a server that was never served.
func (s *Server) Close() error {
	err := s.socket.Close()
	if s.tcp != nil {
		err = errors.Join(err, s.tcp.Close())
	}
	return err
}

func (s *Server) serve(ctx context.Context, g *errgroup.Group, l net.Listener, h http.Handler) {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.config.Log.Handler(), slog.LevelWarn),
	}
	g.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the API on %s: %w", l.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		const grace = 3 * time.Second
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if err := server.Shutdown(last); err != nil {
			s.config.Log.Warn("API clients did not end in time", "error", err)
			return server.Close()
		}
		return nil
	})
}

// requireToken lets through who shows the token. Hashing makes the comparison
// blind to the length as well.
func requireToken(token string, next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(shown))
		if subtle.ConstantTimeCompare(want[:], got[:]) == 1 {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", "Bearer")
		writeError(w, problem.New(CodeUnauthorized, "", "The agent asks for its token on this address.",
			"--token-file FILE").Advise("FILE is the agent's api.token_file, or a copy; in a request its content is the header Authorization: Bearer TOKEN"))
	})
}

// writeError answers where huma is not in play.
func writeError(w http.ResponseWriter, err error) {
	body := encodeError(err)
	w.Header().Set("Content-Type", body.ContentType(""))
	w.WriteHeader(body.Status)
	_ = json.NewEncoder(w).Encode(body) // the client went away
}
