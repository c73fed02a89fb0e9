package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// Client asks an agent. It is a Service too: what the agent's own Service
// returned, problems included, is what a method returns. It is safe for
// concurrent use.
type Client struct {
	base  string // URL without a slash at the end
	where string // as the user named it
	path  string // of the socket; "" over TCP
	token string
	http  *http.Client
}

var _ Service = (*Client)(nil)

// Dial returns a client of the agent at the path of a socket or at the URL of
// its TCP address. It does not connect yet. token is needed for a URL alone.
func Dial(socketOrURL, token string) (*Client, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second}
	c := &Client{where: socketOrURL, token: token, http: &http.Client{Transport: transport}}
	if !strings.Contains(socketOrURL, "://") {
		if socketOrURL == "" {
			return nil, problem.New("invalid-socket", "", "No socket is named.", "--socket PATH").Advise("or set HAWSER_SOCKET")
		}
		if host, port, err := net.SplitHostPort(socketOrURL); err == nil && host != "" && !strings.Contains(socketOrURL, "/") && isNumber(port) {
			return nil, problem.New("invalid-socket", "agent "+socketOrURL, "It is an address, not the path of a socket; an address is given as a URL.", "--socket http://"+socketOrURL)
		}
		c.path, c.base, c.token = socketOrURL, "http://agent", ""
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", c.path)
		}
		return c, nil
	}
	u, err := url.Parse(socketOrURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, problem.New("invalid-socket", "agent "+socketOrURL, "It is neither the path of a socket nor an http URL.", "--socket http://127.0.0.1:5023")
	}
	if u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return nil, problem.New("invalid-socket", "agent "+socketOrURL, "The token would cross the network in the clear.",
			"ssh -N -L 5023:127.0.0.1:5023 "+problem.Word(u.Hostname())).Advise("then ask through this tunnel: --socket http://127.0.0.1:5023")
	}
	transport.Proxy = http.ProxyFromEnvironment
	c.base = strings.TrimSuffix(u.String(), "/")
	return c, nil
}

func isNumber(s string) bool { _, err := strconv.ParseUint(s, 10, 16); return err == nil }

// readTimeout bounds requests that only read what the agent knows.
const readTimeout = 30 * time.Second

// Instance asks for the instance itself.
func (c *Client) Instance(ctx context.Context) (Instance, error) {
	return get[Instance](ctx, c, "/v1/instance")
}

// Certificate asks for the instance's certificate.
func (c *Client) Certificate(ctx context.Context) (Certificate, error) {
	return get[Certificate](ctx, c, "/v1/certificate")
}

// RotateCertificate renews the instance's certificate.
func (c *Client) RotateCertificate(ctx context.Context) (Rotation, error) {
	return call[Rotation](ctx, c, http.MethodPost, "/v1/certificate/rotate", nil)
}

// Peers asks for the trusted and the refused instances.
func (c *Client) Peers(ctx context.Context) (PeerList, error) {
	return get[PeerList](ctx, c, "/v1/peers")
}

// AddPeer trusts an instance.
func (c *Client) AddPeer(ctx context.Context, peer AddPeer) (Peer, error) {
	return call[Peer](ctx, c, http.MethodPost, "/v1/peers", peer)
}

// SetPeer changes a peer's address and grant.
func (c *Client) SetPeer(ctx context.Context, name string, change SetPeer) (Peer, error) {
	return call[Peer](ctx, c, http.MethodPatch, "/v1/peers/"+url.PathEscape(name), change)
}

// RemovePeer ends the trust.
func (c *Client) RemovePeer(ctx context.Context, name string) error {
	_, err := call[none](ctx, c, http.MethodDelete, "/v1/peers/"+url.PathEscape(name), nil)
	return err
}

// TestPeer walks the way to a peer.
func (c *Client) TestPeer(ctx context.Context, name string) ([]PeerTestStep, error) {
	l, err := call[stepList](ctx, c, http.MethodPost, "/v1/peers/"+url.PathEscape(name)+"/test", nil)
	return l.Steps, err
}

// Links asks for all links.
func (c *Client) Links(ctx context.Context) ([]Link, error) {
	l, err := get[linkList](ctx, c, "/v1/links")
	return l.Links, err
}

// Link asks for one link.
func (c *Client) Link(ctx context.Context, name string) (Link, error) {
	return get[Link](ctx, c, linkPath(name, ""))
}

// ValidateLink asks what would stop a link.
func (c *Client) ValidateLink(ctx context.Context, spec LinkSpec) (problem.Findings, error) {
	l, err := call[findingList](ctx, c, http.MethodPost, "/v1/validate", validateSpec(spec))
	return l.Findings, err
}

// CreateLink creates a link.
func (c *Client) CreateLink(ctx context.Context, spec LinkSpec) (Link, error) {
	return call[Link](ctx, c, http.MethodPost, "/v1/links", spec)
}

// PauseLink stops applying changes.
func (c *Client) PauseLink(ctx context.Context, name string) error {
	_, err := call[none](ctx, c, http.MethodPost, linkPath(name, "/pause"), nil)
	return err
}

// ResumeLink goes on.
func (c *Client) ResumeLink(ctx context.Context, name string) error {
	_, err := call[none](ctx, c, http.MethodPost, linkPath(name, "/resume"), nil)
	return err
}

// ResyncLink copies tables again; without names, every one that differs.
func (c *Client) ResyncLink(ctx context.Context, name string, tables []string) error {
	_, err := call[none](ctx, c, http.MethodPost, linkPath(name, "/resync"), resyncBody{Tables: orEmpty(tables)})
	return err
}

// SetLinkMaxWAL bounds the WAL that a link may hold back.
func (c *Client) SetLinkMaxWAL(ctx context.Context, name string, bytes *int64) error {
	_, err := call[none](ctx, c, http.MethodPut, linkPath(name, "/max-wal"), maxWALBody{bytes})
	return err
}

// RejoinLink makes a side that was forced out follow the new primary.
func (c *Client) RejoinLink(ctx context.Context, name string) error {
	_, err := call[none](ctx, c, http.MethodPost, linkPath(name, "/rejoin"), nil)
	return err
}

// FollowLink makes this secondary follow the instance that leads its database now.
func (c *Client) FollowLink(ctx context.Context, name, primary string) error {
	_, err := call[none](ctx, c, http.MethodPost, linkPath(name, "/follow"), followBody{Primary: primary})
	return err
}

// FailoverLink swaps the roles.
func (c *Client) FailoverLink(ctx context.Context, name string, o FailoverOptions) (FailoverResult, error) {
	return call[FailoverResult](ctx, c, http.MethodPost, linkPath(name, "/failover"), failoverBody{Force: o.Force, Check: o.Check, TimeoutSeconds: o.Timeout.Seconds()})
}

// VerifyLink compares both sides.
func (c *Client) VerifyLink(ctx context.Context, name string, o VerifyOptions) (VerifyReport, error) {
	return call[VerifyReport](ctx, c, http.MethodPost, linkPath(name, "/verify"), verifyBody{TimeoutSeconds: o.Timeout.Seconds()})
}

// DropLink drops a link.
func (c *Client) DropLink(ctx context.Context, name string, o DropOptions) (DropResult, error) {
	q := url.Values{"remove_replica": {strconv.FormatBool(o.RemoveReplica)}, "force": {strconv.FormatBool(o.Force)}}
	return call[DropResult](ctx, c, http.MethodDelete, linkPath(name, "")+"?"+q.Encode(), nil)
}

// Databases asks for the databases of the instance.
func (c *Client) Databases(ctx context.Context) ([]Database, error) {
	l, err := get[databaseList](ctx, c, "/v1/databases")
	return l.Databases, err
}

func linkPath(name, operation string) string { return "/v1/links/" + url.PathEscape(name) + operation }

// get asks for what the agent knows.
func get[O any](ctx context.Context, c *Client, path string) (O, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, readTimeout, c.silent())
	defer cancel()
	return call[O](ctx, c, http.MethodGet, path, nil)
}

// call sends one request and reads its answer.
func call[O any](ctx context.Context, c *Client, method, path string, in any) (O, error) {
	var out O
	body, err := c.send(ctx, method, path, in)
	if err != nil || len(body) == 0 {
		return out, err
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return out, c.notHawser().Because(err)
	}
	return out, nil
}

// send returns the body of a good answer, and the error that another one holds.
func (c *Client) send(ctx context.Context, method, path string, in any) ([]byte, error) {
	var payload io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		payload = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, payload)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	defer resp.Body.Close()
	const most = 64 << 20
	body, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	return c.judge(resp, body)
}

// judge tells a good answer from an error and from what is not Hawser's.
func (c *Client) judge(resp *http.Response, body []byte) ([]byte, error) {
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	good := resp.StatusCode/100 == 2
	if good && (media == "application/json" || resp.StatusCode == http.StatusNoContent) {
		return body, nil
	}
	var e errorBody
	if good || media != "application/problem+json" || json.Unmarshal(body, &e) != nil || e.Code == "" {
		return nil, c.notHawser().Because(errors.New("it answered " + resp.Status))
	}
	return nil, e.decode()
}

func (c *Client) notHawser() *problem.Problem {
	return problem.New(CodeNotHawser, "agent at "+c.where, "What answers there is not a Hawser agent, or one of another version", "hawser version").Advise("look at --socket and HAWSER_SOCKET, and compare this version with the agent's")
}

func (c *Client) silent() *problem.Problem {
	return problem.New(CodeUnreachable, "agent at "+c.where, fmt.Sprintf("The agent did not answer within %s.", readTimeout), "").Advise("see the agent's log").Retry()
}

// explain makes a problem of a request that got no answer.
func (c *Client) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("ask the agent: %w", context.Cause(ctx))
	}
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" {
		return problem.New(CodeInterrupted, "agent at "+c.where, "The agent went away before it answered; whether it did what was asked is not known", "hawser status").Because(err).Retry()
	}
	if c.path == "" {
		return problem.New(CodeUnreachable, "agent at "+c.where, "No agent answers there", "hawser agent --config FILE").Advise("start the agent there, with api.listen set").Because(op.Err).Retry()
	}
	return c.explainSocket(err)
}

func (c *Client) explainSocket(err error) error {
	const other = "start the agent so, or name another socket with --socket or HAWSER_SOCKET"
	object := "socket " + c.path
	info, statErr := os.Stat(c.path)
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(statErr, fs.ErrPermission):
		if info == nil { // its directory is closed to this user
			info, _ = os.Stat(filepath.Dir(c.path))
		}
		owner := ownerOf(info)
		return problem.New(CodeForbidden, object, "It belongs to "+owner.who+", and only its owner can open it.", "sudo -u "+problem.Word(owner.name)+" hawser …")
	case errors.Is(statErr, fs.ErrNotExist):
		return problem.New(CodeUnreachable, object, "No agent is running there.", "hawser agent --config FILE").Advise(other).Retry()
	case statErr == nil && info.Mode().Type() != fs.ModeSocket:
		return problem.New(CodeUnreachable, object, "It is not a socket.", "hawser agent --config FILE").Advise(other)
	case errors.Is(err, syscall.ECONNREFUSED):
		return problem.New(CodeUnreachable, object, "The agent is not running; it left its socket behind when it ended.", "hawser agent --config FILE").Advise(other).Retry()
	}
	return problem.New(CodeUnreachable, object, "The agent can't be reached", "hawser agent --config FILE").Advise(other).Because(err).Retry()
}

type owner struct{ who, name string }

// ownerOf names the owner of a file, as far as it can be seen.
func ownerOf(info fs.FileInfo) owner {
	if info == nil {
		return owner{"another user", "OWNER"}
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return owner{"another user", "OWNER"}
	}
	id := strconv.FormatUint(uint64(stat.Uid), 10)
	u, err := user.LookupId(id)
	if err != nil {
		return owner{"user " + id, "'#" + id + "'"}
	}
	return owner{"user " + u.Username, u.Username}
}
